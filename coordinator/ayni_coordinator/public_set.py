"""The public image set from a folder of images or a .npz file. Labels, if there are any, are left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ayni.data.images import IMAGE_SUFFIXES, prepare, read_image
from ayni.data.npz import read_npz_images
from ayni.errors import UserError
from ayni.task import Task
from ayni.tensors.image_set import ImageSet, ImageSetInfo

OTHER_SIZE = "Set image.resize in the task, or scale the images."


def load_public_set(path: Path, task: Task) -> ImageSet:
    """Images in the order of their names (folder) or as they stand (the array `images` of a .npz).

    Raises UserError if there is no image, DataError (with the file's name) if one cannot be used.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.lower().endswith(IMAGE_SUFFIXES))
        named = ((str(file), read_image(file)) for file in files)
    elif path.suffix == ".npz" and path.exists():
        named = ((f"{path}, images[{i}]", pixels_HWC) for i, pixels_HWC in enumerate(read_npz_images(path)))
    else:
        raise UserError(f"there is no public set at {path}. Set `public_set` in the task to a folder or a .npz file.")
    pixels = [
        prepare(pixels_HWC, task.image, resize=task.image.resize, name=name, remedy=OTHER_SIZE)
        for name, pixels_HWC in named
    ]
    if not pixels:
        raise UserError(
            f"the public set {path} holds no image. Give a folder with PNG, JPEG, .npy, NIfTI or DICOM files, or a "
            ".npz file with an array `images`."
        )
    pixels_NHWC = np.stack(pixels)
    info = ImageSetInfo(name=path.stem, licence=task.public_set_licence, shape=pixels_NHWC.shape)
    return ImageSet(info, pixels_NHWC)
