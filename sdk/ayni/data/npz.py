"""A MedMNIST-style .npz: `train_images`, `train_labels`, `val_images` ..., or plain `images`, `labels`.

For segmentation `train_masks` or `masks` take the place of the labels. `unlabelled_images` are what a task of dual
distillation learns from besides. Volumes have one axis more: [N, D, H, W], and have no spacing here.
N = images, S = structures, D = slices, H = height, W = width, C = channels.
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
UNLABELLED = "unlabelled_images"


def read_npz(path: Path, split: str, *, volumes: bool = False) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Images uint8 [N, H, W, C] (C = 1 or 3), or `volumes` [N, D, H, W, 1], and labels [N]. Raises DataError, which
    says what is wrong."""
    names = _names(path)
    prefix = f"{split}_" if f"{split}_images" in names else ""
    if not {f"{prefix}images", f"{prefix}labels"} <= set(names):
        raise DataError(
            f"{path} holds {sorted(names)}; needed are '{split}_images' and '{split}_labels', or 'images' and 'labels'."
        )
    images, labels = _load(path, f"{prefix}images", f"{prefix}labels")
    pixels = _checked(path, images, volumes)
    if labels.dtype.kind not in "ui" or labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{path}: {len(images)} images need as many whole-number labels, one each; "
            f"these are {labels.dtype} {list(labels.shape)}."
        )
    return pixels, labels.reshape(len(labels)).astype(np.int64)


def read_npz_masks(path: Path, split: str, *, volumes: bool = False) -> tuple[Pixels, npt.NDArray[np.generic]]:
    """Images uint8 [N, H, W, C] and their masks as they are: whole numbers [N, H, W], or 0 and 1 [N, S, H, W], one
    plane for each of S structures; of `volumes` with D before H. Raises DataError, which says what is wrong."""
    names = _names(path)
    prefix = f"{split}_" if f"{split}_images" in names else ""
    if not {f"{prefix}images", f"{prefix}masks"} <= set(names):
        raise DataError(
            f"{path} holds {sorted(names)}; needed are '{split}_images' and '{split}_masks', or 'images' and 'masks'."
        )
    images, masks = _load(path, f"{prefix}images", f"{prefix}masks")
    pixels = _checked(path, images, volumes)
    size = pixels.shape[1:-1]
    fits = masks.ndim in (1 + len(size), 2 + len(size)) and len(masks) == len(pixels)
    if masks.dtype.kind not in "uib" or not fits or masks.shape[-len(size) :] != size or 0 in masks.shape[1:]:
        axes = "slices x height x width" if volumes else "height x width"
        raise DataError(
            f"{path}: {len(pixels)} images of {' x '.join(map(str, size))} ({axes}) need as many masks of that size, "
            f"in whole numbers [images, {axes.replace(' x', ',')}]; these are {masks.dtype} {list(masks.shape)}."
        )
    return pixels, masks


def read_npz_unlabelled(path: Path, *, volumes: bool = False) -> Pixels:
    """`unlabelled_images` as uint8 [N, (D,) H, W, C], none if the file has no such array. Raises DataError."""
    if UNLABELLED in _names(path):
        return _checked(path, _load(path, UNLABELLED)[0], volumes)
    return np.empty((0, 1, 1, 1, 1) if volumes else (0, 1, 1, 1), np.uint8)


def holds_volumes(path: Path) -> bool:
    """Whether the images of a file can only be volumes. Only their headers are read. Raises DataError."""
    names = _names(path)
    shapes = [_shape(path, name) for name in names if name == "images" or name.endswith("_images")]
    return any(len(shape) == 5 or (len(shape) == 4 and shape[3] not in (1, 3)) for shape in shapes)


def holds_masks(path: Path) -> bool:
    """Whether a .npz file is for segmentation: it has masks, and no labels. Raises DataError."""
    names = _names(path)
    return any(name.endswith("masks") for name in names) and not any(name.endswith("labels") for name in names)


def read_npz_images(path: Path, *, volumes: bool = False) -> Pixels:
    """The array `images` alone, as uint8 [N, H, W, C] (C = 1 or 3), or `volumes` [N, D, H, W, 1]; labels are not read.
    Raises DataError."""
    names = _names(path)
    if "images" not in names:
        raise DataError(f"{path} holds {sorted(names)}; needed is 'images'.")
    return _checked(path, _load(path, "images")[0], volumes)


def splits_of(path: Path) -> list[str]:
    """Which parts a file holds; plain `images` count as "train", for these are trained on. Raises DataError."""
    names = _names(path)
    return [split for split in SPLITS if f"{split}_images" in names or (split == "train" and "images" in names)]


def _checked(path: Path, images: npt.NDArray[np.generic], volumes: bool = False) -> Pixels:
    num_axes = 4 if volumes else 3
    num_channels = (1,) if volumes else (1, 3)
    fits = images.ndim == num_axes or (images.ndim == num_axes + 1 and images.shape[-1] in num_channels)
    if images.dtype != np.uint8 or not fits or 0 in images.shape[1:]:
        needed = "slices, height, width] or [..., 1 channel]" if volumes else "height, width] or [..., 1 or 3 channels]"
        raise DataError(
            f"{path}: images must be 8-bit and of shape [images, {needed}; "
            f"these are {images.dtype} {list(images.shape)}."
        )
    return np.asarray(images if images.ndim == num_axes + 1 else images[..., None], np.uint8)


def _shape(path: Path, name: str) -> tuple[int, ...]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return tuple(read(file)[0])
    except Exception as error:  # zip and numpy on foreign bytes: their ways to fail cannot be listed
        raise DataError(f"{path} is damaged or holds more than plain arrays ({error}).") from None


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
