"""Images with masks as training sees them, from a folder with `images/` and `masks/` or from a .npz file.

N = images, U = images without a mask, S = structures, D = slices (volumes only), H = height, W = width, C = channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ayni.data.eight_bits import Pixels
from ayni.data.npz import read_npz_masks, read_npz_unlabelled
from ayni.data.pairs import MASKS, check_complete, find_pairs
from ayni.data.read import DATASET_FILE
from ayni.data.seen import check_same_size, gathered, seen_arrays, seen_file, seen_pair, seen_planes
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
        loaded = _from_folder(path, image, structures, unlabelled)
    elif path.exists():
        loaded = _from_npz(path, image, structures, split, unlabelled)
    else:
        raise DataError(f"there are no data at {path}. Give a folder with images and masks, or a .npz file.")
    if not loaded.names and len(loaded.unlabelled):
        raise DataError(f"{path}: no image has a mask. Outline some, so that there is something to learn and to check.")
    if not loaded.names:
        raise DataError(f"{path} holds no images.")
    if not loaded.masks_NSHW.any():
        raise DataError(f"all masks of {path} are empty: nothing can be learned from them. Add images with structures.")
    return loaded


def _from_folder(folder: Path, image: ImageSettings, structures: tuple[str, ...], unlabelled: bool) -> SegmentedImages:
    found = find_pairs(folder)
    check_complete(folder, found, unlabelled=unlabelled)
    num_pairs, others = len(found.pairs), found.images_without_mask
    masks = np.empty((num_pairs, len(structures), *image.size), np.uint8)

    def with_masks() -> Iterator[Pixels]:
        for number, (image_file, mask_file) in enumerate(found.pairs):
            pixels, masks[number] = seen_pair(image_file, mask_file, image, structures)
            yield pixels

    return SegmentedImages(
        gathered(with_masks(), num_pairs, image),
        masks,
        tuple(image_file.name for image_file, _ in found.pairs),
        gathered((seen_file(file, image) for file in others), len(others), image),
    )


def _from_npz(
    path: Path, image: ImageSettings, structures: tuple[str, ...], split: str, unlabelled: bool
) -> SegmentedImages:
    images, values = read_npz_masks(path, split, volumes=image.depth > 0)
    others = read_npz_unlabelled(path, volumes=image.depth > 0) if unlabelled else images[:0]
    names = tuple(f"{split}[{index}]" for index in range(len(images)))
    masks = np.empty((len(images), len(structures), *image.size), np.uint8)
    for number, (name, mask) in enumerate(zip(names, values, strict=True)):
        masks[number] = seen_planes(mask, image, structures, f"{path}, {name}")
    return SegmentedImages(
        seen_arrays(images, image, f"{path}, {split}"), masks, names, seen_arrays(others, image, f"{path}, unlabelled")
    )
