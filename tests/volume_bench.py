"""Volumes as files for tests of sites and of the centre: NIfTI folders, .npz files, and a teacher that knows little."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt

from ayni.learning.networks import seeded_network, weights_of
from ayni.task import Task
from ayni.tensors.teacher import TeacherInfo, TeacherWeights, encode_teacher
from small_volumes import boxes

SPACING_XYZ_MM = (0.5, 1.0, 2.0)  # of `volume_task`
MOST = 16
Pixels = npt.NDArray[np.uint8]


def _volumes(count: int, seed: int) -> tuple[Pixels, Pixels]:
    """The first of these are the same, however many are wanted."""
    pixels, masks = boxes(MOST, seed)
    return pixels[:count], masks[:count]


def write_npz(path: Path, num_labelled: int, num_unlabelled: int, seed: int) -> Path:
    pixels, masks = _volumes(num_labelled + num_unlabelled, seed)
    arrays = {"images": pixels[:num_labelled, ..., 0], "masks": masks[:num_labelled]}
    if num_unlabelled:
        arrays["unlabelled_images"] = pixels[num_labelled:, ..., 0]
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def write_folder(folder: Path, num_labelled: int, num_unlabelled: int, seed: int) -> Path:
    """NIfTI images, label maps for the first of them."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    pixels, masks = _volumes(num_labelled + num_unlabelled, seed)
    affine = np.diag([*SPACING_XYZ_MM, 1.0])
    for n, voxels_DHW in enumerate(pixels[..., 0]):
        nibabel.save(nibabel.Nifti1Image(voxels_DHW.transpose(2, 1, 0), affine), folder / "images" / f"v{n}.nii.gz")
    for n in range(num_labelled):
        labels_DHW = masks[n, 0] + 2 * masks[n, 1]
        nibabel.save(nibabel.Nifti1Image(labels_DHW.transpose(2, 1, 0), affine), folder / "masks" / f"v{n}.nii.gz")
    return folder


def teacher_bytes(task: Task, seed: int = 9) -> bytes:
    """Fresh weights, as an artefact."""
    info = TeacherInfo(
        task=task.name,
        kind=task.kind,
        network=task.teacher_network,
        classes=task.classes,
        image=task.image,
        pixel_mean=(0.25,),
        pixel_std=(0.125,),
        name="fresh",
    )
    return encode_teacher(TeacherWeights(info, weights_of(seeded_network(task.teacher_network, task, seed))))
