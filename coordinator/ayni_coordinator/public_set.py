"""The public image set from a folder of images (or volumes) or a .npz file. Labels, if any, are left behind, but for
those of a set that the task calls labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ayni.data.eight_bits import Pixels
from ayni.data.images import IMAGE_SUFFIXES, prepare, read_image
from ayni.data.masks import load_segmented
from ayni.data.npz import read_npz_images
from ayni.data.pairs import is_series
from ayni.data.read import load_images
from ayni.data.seen import seen_array, seen_file
from ayni.errors import DataError, UserError
from ayni.task import ImageSettings, Task
from ayni.tensors.image_set import ImageSet, ImageSetInfo
from ayni.tensors.safe import Array
from ayni.tensors.truth import PublicTruth, TruthInfo, Values, encode_truth

OTHER_SIZE = "Set image.resize in the task, or scale the images."


def load_public_set(path: Path, task: Task) -> ImageSet:
    """Images in the order of their names (folder) or as they stand (the array `images` of a .npz).

    Raises UserError if there is no image, DataError (with the file's name) if one cannot be used.
    """
    image = task.image
    if path.is_dir():
        files = (file for file in sorted(path.iterdir()) if _is_image(file, volumes=image.depth > 0))
        pixels = [seen_file(file, image) if image.depth else _picture(read_image(file), image, file) for file in files]
    elif path.suffix == ".npz" and path.exists():
        arrays = enumerate(read_npz_images(path, volumes=image.depth > 0))
        named = ((f"{path}, images[{i}]", array) for i, array in arrays)
        pixels = [
            seen_array(array, image, name) if image.depth else _picture(array, image, name) for name, array in named
        ]
    else:
        raise UserError(f"there is no public set at {path}. Set `public_set` in the task to a folder or a .npz file.")
    if not pixels:
        raise UserError(
            f"the public set {path} holds no image. Give a folder with PNG, JPEG, .npy, NIfTI or DICOM files, or a "
            ".npz file with an array `images`."
        )
    return _image_set(np.stack(pixels), path, task)


def load_labelled_public_set(path: Path, task: Task) -> tuple[ImageSet, Array]:
    """A set that is laid out as a site's data, and the class numbers [L] or masks [L, S, (D,) H, W] of its first L
    images, those whose truth is known; the others follow. Raises DataError (with the file's name) for what will not do.
    """
    truth: Array
    if task.kind == "segmentation":
        outlined = load_segmented(path, task.image, task.classes, unlabelled=True)
        pixels, truth, others = outlined.pixels_NHWC, outlined.masks_NSHW, outlined.unlabelled
    else:
        labelled = load_images(path, task.image, task.classes, unlabelled=True)
        pixels, truth, others = labelled.pixels_NHWC, labelled.labels_N, labelled.unlabelled
        if len(np.unique(truth)) < 2:
            raise DataError(
                f"the labelled public images of {path} are of one class only. Add images of the others: "
                f"{', '.join(task.classes)}; or set public_set_labelled to false."
            )
    return _image_set(np.concatenate([pixels, others]) if len(others) else pixels, path, task), truth


def encoded_truth(truth: Array, image_set: str, task: Task) -> bytes:
    """The labels or masks as they travel, with the images whose artefact has the SHA-256 `image_set`."""
    values: Values = truth.astype(np.int64) if truth.ndim == 1 else truth.astype(np.uint8)
    return encode_truth(PublicTruth(TruthInfo(image_set=image_set, classes=task.classes, shape=values.shape), values))


def _image_set(pixels_NHWC: Pixels, path: Path, task: Task) -> ImageSet:
    info = ImageSetInfo(name=path.stem, licence=task.public_set_licence, shape=pixels_NHWC.shape)
    return ImageSet(info, pixels_NHWC)


def _picture(pixels_HWC: Pixels, image: ImageSettings, name: Path | str) -> Pixels:
    return prepare(pixels_HWC, image, resize=image.resize, name=str(name), remedy=OTHER_SIZE)


def _is_image(file: Path, *, volumes: bool) -> bool:
    return file.name.lower().endswith(IMAGE_SUFFIXES) or (volumes and is_series(file))
