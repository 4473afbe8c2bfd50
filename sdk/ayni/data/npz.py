"""A MedMNIST-style .npz: `train_images`, `train_labels`, `val_images` ..., or plain `images`, `labels`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ayni.errors import DataError

MAX_SET_BYTES = 8 << 30  # unpacked; a zip bomb stops here
SPLITS = ("train", "val", "test")


def read_npz(path: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images uint8 [N, H, W, C] (C = 1 or 3) and labels [N]. Raises DataError, which says what is wrong."""
    arrays = _load(path)
    prefix = f"{split}_" if f"{split}_images" in arrays else ""
    images, labels = arrays.get(f"{prefix}images"), arrays.get(f"{prefix}labels")
    if images is None or labels is None:
        raise DataError(
            f"{path} holds {sorted(arrays)}; "
            f"needed are '{split}_images' and '{split}_labels', or 'images' and 'labels'."
        )
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{path}: images must be 8-bit and of shape [images, height, width] or [..., 1 or 3 channels]; "
            f"these are {images.dtype} {list(images.shape)}."
        )
    if labels.dtype.kind not in "ui" or labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{path}: {len(images)} images need as many whole-number labels, one each; "
            f"these are {labels.dtype} {list(labels.shape)}."
        )
    images_NHWC = np.asarray(images if images.ndim == 4 else images[..., None], np.uint8)
    return images_NHWC, labels.reshape(len(labels)).astype(np.int64)


def splits_of(path: Path) -> list[str]:
    """Which parts a file holds; a plain one holds "train". Raises DataError."""
    names = _names(path)
    return [split for split in SPLITS if f"{split}_images" in names] or (["train"] if "images" in names else [])


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


def _load(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    _names(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{path} is damaged or holds more than plain arrays ({error}).") from None
