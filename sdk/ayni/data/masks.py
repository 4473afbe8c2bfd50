"""Images with masks as training sees them, from a folder with `images/` and `masks/` or from a .npz file.

N = images, S = structures, H = height, W = width, C = channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ayni.data.images import prepare, read_image
from ayni.data.mask_file import read_mask
from ayni.data.npz import read_npz_masks
from ayni.data.pairs import MASKS, check_complete, find_pairs
from ayni.data.planes import check_planes, planes_of, prepare_planes
from ayni.data.read import DATASET_FILE, OTHER_SIZE
from ayni.errors import DataError
from ayni.task import ImageSettings


@dataclass(frozen=True, slots=True)
class SegmentedImages:
    """N images of the task's size, one plane of 0 and 1 per structure for each, and where it came from."""

    pixels_NHWC: npt.NDArray[np.uint8]
    masks_NSHW: npt.NDArray[np.uint8]
    names: tuple[str, ...]


def load_segmented(
    path: Path, image: ImageSettings, structures: tuple[str, ...], split: str = "train"
) -> SegmentedImages:
    """Every image with its mask, or DataError with the name of the first that cannot be used and the next step.

    `path` is a folder with `images/` and `masks/` (or with `dataset.npz`), or a .npz file; `split` is the npz's part.
    """
    if path.is_dir() and not (path / MASKS).exists() and (path / DATASET_FILE).exists():
        path = path / DATASET_FILE
    if path.is_dir():
        pixels, masks, names = _from_folder(path, image, structures)
    elif path.exists():
        pixels, masks, names = _from_npz(path, image, structures, split)
    else:
        raise DataError(f"there are no data at {path}. Give a folder with images and masks, or a .npz file.")
    if not names:
        raise DataError(f"{path} holds no images.")
    if not any(planes_SHW.any() for planes_SHW in masks):
        raise DataError(f"all masks of {path} are empty: nothing can be learned from them. Add images with structures.")
    return SegmentedImages(np.stack(pixels), np.stack(masks), tuple(names))


_Loaded = tuple[list[npt.NDArray[np.uint8]], list[npt.NDArray[np.uint8]], list[str]]


def _from_folder(folder: Path, image: ImageSettings, structures: tuple[str, ...]) -> _Loaded:
    found = find_pairs(folder)
    check_complete(folder, found)
    pixels, masks = [], []
    for image_file, mask_file in found.pairs:
        pixels_HWC, values_HW = read_image(image_file), read_mask(mask_file)
        check_same_size(pixels_HWC.shape, values_HW.shape, str(image_file), str(mask_file))
        pixels.append(prepare(pixels_HWC, image, resize=image.resize, name=str(image_file), remedy=OTHER_SIZE))
        masks.append(prepare_planes(planes_of(values_HW, structures, str(mask_file)), image))
    return pixels, masks, [image_file.name for image_file, _ in found.pairs]


def check_same_size(image_shape: tuple[int, ...], mask_shape: tuple[int, ...], image_name: str, mask_name: str) -> None:
    """Both begin with height and width. Raises DataError."""
    if image_shape[:2] != mask_shape[:2]:
        raise DataError(
            f"{image_name} is {image_shape[1]} x {image_shape[0]} pixels and its mask {mask_name} "
            f"{mask_shape[1]} x {mask_shape[0]}. A mask must have its image's size: export both again."
        )


def _from_npz(path: Path, image: ImageSettings, structures: tuple[str, ...], split: str) -> _Loaded:
    images_NHWC, values = read_npz_masks(path, split)
    names = [f"{split}[{index}]" for index in range(len(images_NHWC))]
    pixels, masks = [], []
    for name, pixels_HWC, mask in zip(names, images_NHWC, values, strict=True):
        told = f"{path}, {name}"
        planes_SHW = check_planes(mask, structures, told) if mask.ndim == 3 else planes_of(mask, structures, told)
        pixels.append(prepare(pixels_HWC, image, resize=image.resize, name=told, remedy=OTHER_SIZE))
        masks.append(prepare_planes(planes_SHW, image))
    return pixels, masks, names
