"""Volumes as files for tests of sites and of the centre: NIfTI folders, .npz files, a teacher, a site's jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import nibabel
import numpy as np
import numpy.typing as npt

from ayni.jobs import FinishTraining, SiteContext, TrainRound
from ayni.learning.networks import initial_weights, seeded_network, weights_of
from ayni.task import Role, Task
from ayni.tensors import safe
from ayni.tensors.teacher import TeacherInfo, TeacherWeights, encode_teacher
from ayni.tensors.update import encode_whole
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


class Place:
    """One site's data, a task, a teacher and the first weights, as files."""

    def __init__(self, folder: Path, task: Task) -> None:
        self.folder, self.task = folder, task
        self.data = write_npz(folder / "volumes.npz", 4, 3, seed=1)
        self.start = initial_weights(self.task)
        self.written("task.json", self.task.to_json())
        self.teacher = self.written("teacher", teacher_bytes(self.task))
        self.model = self.written("model", encode_whole(self.start, "fp16"))

    def written(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)

    def context(self, home: str, role: Role) -> SiteContext:
        place = self.folder / home
        task_path, data = str(self.folder / "task.json"), str(self.data)
        return SiteContext(
            home=str(place), task_path=task_path, site="s", role=role, participation="weights", data=data
        )

    def round(self, home: str, number: int = 1, role: Role = "clinic", **changes: Any) -> TrainRound:
        job = TrainRound(
            context=self.context(home, role),
            round_number=number,
            global_model=[self.model],
            global_digest=safe.digest(self.start),
            public_set=None,
            guidance=None,
            consensus=None,
            update_out=str(self.folder / home / f"update-{number}"),
            soft_labels_out=None,
            teacher=self.teacher,
        )
        return msgspec.structs.replace(job, **changes)

    def finish(self, home: str, role: Role, **changes: Any) -> FinishTraining:
        job = FinishTraining(
            context=self.context(home, role),
            rounds=1,
            global_model=[self.model],
            global_digest=safe.digest(self.start),
            teacher=self.teacher,
        )
        return msgspec.structs.replace(job, **changes)

    def update(self, home: str, number: int = 1) -> bytes:
        return (self.folder / home / f"update-{number}").read_bytes()
