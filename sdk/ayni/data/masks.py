"""Images with masks as training sees them, from a folder with `images/` and `masks/` or from a .npz file.

N = images, U = images without a mask, S = structures, D = slices (volumes only), H = height, W = width, C = channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ayni.data.eight_bits import Pixels
from ayni.data.npz import read_npz_masks, read_npz_unlabelled
from ayni.data.pairs import MASKS, check_complete, find_pairs
from ayni.data.read import DATASET_FILE
from ayni.data.seen import check_same_size, seen_array, seen_file, seen_pair, seen_planes, stacked
from ayni.errors import DataError
from ayni.task import ImageSettings

__all__ = ["SegmentedImages", "check_same_size", "load_segmented"]


@dataclass(frozen=True, slots=True)
class SegmentedImages:
    """N images of the task's size, one plane of 0 and 1 per structure for each, and where it came from; and U images
    that nobody has outlined. Of volumes all have one axis more, D before H."""

    pixels_NHWC: Pixels
    masks_NSHW: Pixels
    names: tuple[str, ...]
    unlabelled: Pixels


def load_segmented(
    path: Path, image: ImageSettings, structures: tuple[str, ...], split: str = "train", *, unlabelled: bool = False
) -> SegmentedImages:
    """Every image with its mask, or DataError with the name of the first that cannot be used and the next step.

    `path` is a folder with `images/` and `masks/` (or with `dataset.npz`), or a .npz file; `split` is the npz's part.
    `unlabelled` images, without a mask, are an error unless the task learns from them.
    """
    if path.is_dir() and not (path / MASKS).exists() and (path / DATASET_FILE).exists():
        path = path / DATASET_FILE
    if path.is_dir():
        pixels, masks, names, others = _from_folder(path, image, structures, unlabelled)
    elif path.exists():
        pixels, masks, names, others = _from_npz(path, image, structures, split, unlabelled)
    else:
        raise DataError(f"there are no data at {path}. Give a folder with images and masks, or a .npz file.")
    if not names and others:
        raise DataError(f"{path}: no image has a mask. Outline some, so that there is something to learn and to check.")
    if not names:
        raise DataError(f"{path} holds no images.")
    if not any(planes_SHW.any() for planes_SHW in masks):
        raise DataError(f"all masks of {path} are empty: nothing can be learned from them. Add images with structures.")
    return SegmentedImages(np.stack(pixels), np.stack(masks), tuple(names), stacked(others, image))


_Loaded = tuple[list[Pixels], list[Pixels], list[str], list[Pixels]]


def _from_folder(folder: Path, image: ImageSettings, structures: tuple[str, ...], unlabelled: bool) -> _Loaded:
    found = find_pairs(folder)
    check_complete(folder, found, unlabelled=unlabelled)
    pixels, masks = [], []
    for image_file, mask_file in found.pairs:
        pixels_HWC, planes_SHW = seen_pair(image_file, mask_file, image, structures)
        pixels.append(pixels_HWC)
        masks.append(planes_SHW)
    others = [seen_file(file, image) for file in found.images_without_mask]
    return pixels, masks, [image_file.name for image_file, _ in found.pairs], others


def _from_npz(path: Path, image: ImageSettings, structures: tuple[str, ...], split: str, unlabelled: bool) -> _Loaded:
    images, values = read_npz_masks(path, split, volumes=image.depth > 0)
    names = [f"{split}[{index}]" for index in range(len(images))]
    pixels, masks = [], []
    for name, pixels_HWC, mask in zip(names, images, values, strict=True):
        masks.append(seen_planes(mask, image, structures, f"{path}, {name}"))
        pixels.append(seen_array(pixels_HWC, image, f"{path}, {name}"))
    return pixels, masks, names, npz_unlabelled(path, image) if unlabelled else []


def npz_unlabelled(path: Path, image: ImageSettings) -> list[Pixels]:
    """Each of the array `unlabelled_images`, if the file has one. Raises DataError."""
    others = read_npz_unlabelled(path, volumes=image.depth > 0)
    return [seen_array(pixels, image, f"{path}, unlabelled[{index}]") for index, pixels in enumerate(others)]
