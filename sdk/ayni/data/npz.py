"""A MedMNIST-style .npz: `train_images`, `train_labels`, `val_images` ..., or plain `images`, `labels`.

For segmentation `train_masks` or `masks` take the place of the labels.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ayni.data.eight_bits import Pixels
from ayni.errors import DataError

MAX_SET_BYTES = 8 << 30  # unpacked; a zip bomb stops here
SPLITS = ("train", "val", "test")


def read_npz(path: Path, split: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Images uint8 [N, H, W, C] (C = 1 or 3) and labels [N]. Raises DataError, which says what is wrong."""
    names = _names(path)
    prefix = f"{split}_" if f"{split}_images" in names else ""
    if not {f"{prefix}images", f"{prefix}labels"} <= set(names):
        raise DataError(
            f"{path} holds {sorted(names)}; needed are '{split}_images' and '{split}_labels', or 'images' and 'labels'."
        )
    images, labels = _load(path, f"{prefix}images", f"{prefix}labels")
    images_NHWC = _checked(path, images)
    if labels.dtype.kind not in "ui" or labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{path}: {len(images)} images need as many whole-number labels, one each; "
            f"these are {labels.dtype} {list(labels.shape)}."
        )
    return images_NHWC, labels.reshape(len(labels)).astype(np.int64)


def read_npz_masks(path: Path, split: str) -> tuple[Pixels, npt.NDArray[np.generic]]:
    """Images uint8 [N, H, W, C] and their masks as they are: whole numbers [N, H, W], or 0 and 1 [N, S, H, W], one
    plane for each of S structures. Raises DataError, which says what is wrong."""
    names = _names(path)
    prefix = f"{split}_" if f"{split}_images" in names else ""
    if not {f"{prefix}images", f"{prefix}masks"} <= set(names):
        raise DataError(
            f"{path} holds {sorted(names)}; needed are '{split}_images' and '{split}_masks', or 'images' and 'masks'."
        )
    images, masks = _load(path, f"{prefix}images", f"{prefix}masks")
    images_NHWC = _checked(path, images)
    num_images, height, width, _ = images_NHWC.shape
    fits = masks.ndim in (3, 4) and len(masks) == num_images and masks.shape[-2:] == (height, width)
    if masks.dtype.kind not in "uib" or not fits or 0 in masks.shape[1:]:
        raise DataError(
            f"{path}: {num_images} images of {height} x {width} (height x width) need as many masks of that size, in "
            f"whole numbers [images, height, width]; these are {masks.dtype} {list(masks.shape)}."
        )
    return images_NHWC, masks


def holds_masks(path: Path) -> bool:
    """Whether a .npz file is for segmentation: it has masks, and no labels. Raises DataError."""
    names = _names(path)
    return any(name.endswith("masks") for name in names) and not any(name.endswith("labels") for name in names)


def read_npz_images(path: Path) -> Pixels:
    """The array `images` alone, as uint8 [N, H, W, C] (C = 1 or 3); labels are not read. Raises DataError."""
    names = _names(path)
    if "images" not in names:
        raise DataError(f"{path} holds {sorted(names)}; needed is 'images'.")
    return _checked(path, *_load(path, "images"))


def splits_of(path: Path) -> list[str]:
    """Which parts a file holds; plain `images` count as "train", for these are trained on. Raises DataError."""
    names = _names(path)
    return [split for split in SPLITS if f"{split}_images" in names or (split == "train" and "images" in names)]


def _checked(path: Path, images: npt.NDArray[np.generic]) -> Pixels:
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not fits or 0 in images.shape[1:]:
        raise DataError(
            f"{path}: images must be 8-bit and of shape [images, height, width] or [..., 1 or 3 channels]; "
            f"these are {images.dtype} {list(images.shape)}."
        )
    return np.asarray(images if images.ndim == 4 else images[..., None], np.uint8)


def _names(path: Path) -> list[str]:
    """The arrays of the file; bounds what it unpacks to."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except FileNotFoundError:
        raise DataError(f"there is no file {path}.") from None
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise DataError(f"{path} is no .npz file ({error}).") from None
    if sum(entry.file_size for entry in entries) > MAX_SET_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_SET_BYTES >> 30} GiB. Split it into smaller sets.")
    return [entry.filename.removesuffix(".npy") for entry in entries]


def _load(path: Path, *names: str) -> list[npt.NDArray[np.generic]]:
    """These arrays only: the other parts of a file would take memory for nothing."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [np.asarray(archive[name]) for name in names]
    except MemoryError:
        raise DataError(
            f"{path} promises arrays larger than this machine's memory. Split it, or save it anew."
        ) from None
    except Exception as error:  # zip and numpy on foreign bytes: their ways to fail cannot be listed
        raise DataError(f"{path} is damaged or holds more than plain arrays ({error}).") from None
