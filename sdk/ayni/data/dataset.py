"""Any torch `Dataset` of (image, label) or (image, mask), written once to a .npz file that training reads.

S = structures, D = slices (volumes only), H = height, W = width, C = channels.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ayni.artefacts.files import write_atomic
from ayni.data.eight_bits import Pixels, Values
from ayni.data.seen import check_same_size, seen_array, seen_planes
from ayni.data.volume_file import check_same_shape
from ayni.errors import DataError
from ayni.task import ImageSettings


def store_dataset(dataset: Any, path: Path, image: ImageSettings, *, structures: tuple[str, ...] | None = None) -> int:
    """Write all of `dataset` (anything with `len` and whole-number indices) to `path`; returns the number of images.

    An item is (image, label), or with `structures` (image, mask). An image is a tensor or array [H, W], [C, H, W] or
    [H, W, C] with C = 1 or 3, of 8-bit values or of floats from 0 to 1 as torchvision's `ToTensor` makes them; or a
    Pillow image. A mask is [H, W] or [1, H, W] of whole numbers (0 is background), or one plane of 0 and 1 for each
    structure, [S, H, W]. For a task of volumes all have D before H, and C = 1; they must have the task's spacing, for a
    dataset tells none. Raises DataError.
    """
    pixels: list[Pixels] = []
    targets: list[npt.NDArray[np.generic]] = []
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"item {index} of the dataset is no pair of image and {'label' if structures is None else 'mask'}."
            )
        array = _pixels(item[0], index, len(image.size))
        pixels.append(seen_array(array, image, f"item {index}"))
        if structures is None:
            targets.append(np.array(_label(item[1], index), np.int64))
            continue
        mask = _mask(item[1], index, len(image.size))
        check = check_same_shape if image.depth else check_same_size
        check(array.shape[:-1], mask.shape[-len(image.size) :], f"item {index}", "(the item's second part)")
        targets.append(seen_planes(mask, image, structures, f"the mask of item {index}"))
    if not pixels:
        raise DataError("the dataset is empty.")
    arrays = {"images": np.stack(pixels), "labels" if structures is None else "masks": np.stack(targets)}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_atomic(path, file.getvalue())
    return len(pixels)


def _pixels(value: Any, index: int, num_axes: int) -> Pixels:
    """[(D,) H, W, C]; `num_axes` is 2, or 3 for volumes."""
    array = np.asarray(value)
    num_channels = (1, 3) if num_axes == 2 else (1,)
    if array.ndim == num_axes:
        array = array[..., None]
    elif array.ndim == num_axes + 1 and array.shape[-1] not in num_channels and array.shape[0] in num_channels:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != num_axes + 1 or array.shape[-1] not in num_channels:
        size = "H, W" if num_axes == 2 else "D, H, W"
        raise DataError(
            f"item {index}: an image of shape {list(array.shape)}; needed is [{size}], [C, {size}] or [{size}, C]."
        )
    if array.dtype == np.uint8:
        return np.asarray(array, np.uint8)
    if array.dtype.kind == "f" and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        return np.asarray(np.rint(array * 255), np.uint8)
    raise DataError(f"item {index}: pixels must be 8-bit, or floats from 0 to 1; do not normalise, training does it.")


def _label(value: Any, index: int) -> int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "uib" or int(array.reshape(-1)[0]) < 0:
        raise DataError(f"item {index}: the label {value!r} is no class number (0, 1, ...).")
    return int(array.reshape(-1)[0])


def _mask(value: Any, index: int, num_axes: int) -> Values:
    """Whole numbers [(D,) H, W], or several planes [S, (D,) H, W]."""
    values, name = np.asarray(value), f"the mask of item {index}"
    if values.ndim not in (num_axes, num_axes + 1) or values.size == 0:
        size = "H, W" if num_axes == 2 else "D, H, W"
        raise DataError(f"{name} has the shape {list(values.shape)}; needed is [{size}], or one plane per structure.")
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "bui":
        raise DataError(f"{name} is of type {values.dtype} and holds no whole numbers. Do not scale masks.")
    return values[0] if values.ndim > num_axes and len(values) == 1 else values
