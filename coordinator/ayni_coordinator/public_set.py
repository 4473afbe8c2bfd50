"""The public image set from a folder of images or a .npz file. Labels, if there are any, are left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ayni.data.images import prepare, read_image
from ayni.errors import DataError, UserError
from ayni.task import Task
from ayni.tensors.image_set import ImageSet, ImageSetInfo

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".npy", ".dcm", ".nii", ".gz"}


def load_public_set(path: Path, task: Task) -> ImageSet:
    """Images in the order of their names (folder) or as they stand (the array `images` of a .npz)."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
        if not files:
            raise UserError(f"the public set {path} holds no image. Put PNG, JPEG, .npy, NIfTI or DICOM files there.")
        pixels_NHWC = np.stack([prepare(read_image(file), task.image, resize=task.image.resize) for file in files])
    elif path.suffix == ".npz" and path.exists():
        try:
            with np.load(path, allow_pickle=False) as archive:
                images = archive["images"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"the public set {path} cannot be read ({error}). It needs an array `images`.") from None
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(f"the public set {path} must hold 8-bit images [N, height, width(, channels)].")
        pixels_NHWC = np.stack([prepare(image, task.image, resize=task.image.resize) for image in images])
    else:
        raise UserError(f"there is no public set at {path}. Set `public_set` in the task to a folder or a .npz file.")
    height, width, channels = pixels_NHWC.shape[1:]
    info = ImageSetInfo(
        name=path.stem, licence=task.public_set_licence, shape=(len(pixels_NHWC), height, width, channels)
    )
    return ImageSet(info, pixels_NHWC)
