"""Any torch `Dataset` of (image, label) or (image, mask), written once to a .npz file that training reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ayni.artefacts.files import write_atomic
from ayni.data.eight_bits import Pixels
from ayni.data.images import prepare
from ayni.data.planes import check_planes, planes_of, prepare_planes
from ayni.data.read import OTHER_SIZE
from ayni.data.seen import check_same_size
from ayni.errors import DataError
from ayni.task import ImageSettings


def store_dataset(dataset: Any, path: Path, image: ImageSettings, *, structures: tuple[str, ...] | None = None) -> int:
    """Write all of `dataset` (anything with `len` and whole-number indices) to `path`; returns the number of images.

    An item is (image, label), or with `structures` (image, mask). An image is a tensor or array [H, W], [C, H, W] or
    [H, W, C] with C = 1 or 3, of 8-bit values or of floats from 0 to 1 as torchvision's `ToTensor` makes them; or a
    Pillow image. A mask is [H, W] or [1, H, W] of whole numbers (0 is background), or one plane of 0 and 1 for each
    structure, [S, H, W]. Raises DataError.
    """
    pixels: list[Pixels] = []
    targets: list[npt.NDArray[np.generic]] = []
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"item {index} of the dataset is no pair of image and {'label' if structures is None else 'mask'}."
            )
        pixels_HWC = _pixels(item[0], index)
        pixels.append(prepare(pixels_HWC, image, resize=image.resize, name=f"item {index}", remedy=OTHER_SIZE))
        if structures is None:
            targets.append(np.array(_label(item[1], index), np.int64))
        else:
            planes_SHW = _planes(item[1], index, structures)
            check_same_size(pixels_HWC.shape, planes_SHW.shape[1:], f"item {index}", "(the item's second part)")
            targets.append(prepare_planes(planes_SHW, image))
    if not pixels:
        raise DataError("the dataset is empty.")
    arrays = {"images": np.stack(pixels), "labels" if structures is None else "masks": np.stack(targets)}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_atomic(path, file.getvalue())
    return len(pixels)


def _pixels(value: Any, index: int) -> npt.NDArray[np.uint8]:
    array = np.asarray(value)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise DataError(
            f"item {index}: an image of shape {list(array.shape)}; needed is [H, W], [C, H, W] or [H, W, C]."
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


def _planes(value: Any, index: int, structures: tuple[str, ...]) -> Pixels:
    values, name = np.asarray(value), f"the mask of item {index}"
    if values.ndim not in (2, 3) or values.size == 0:
        raise DataError(f"{name} has the shape {list(values.shape)}; needed is [H, W], or one plane per structure.")
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "bui":
        raise DataError(f"{name} is of type {values.dtype} and holds no whole numbers. Do not scale masks.")
    if values.ndim == 3 and len(values) > 1:
        return check_planes(values, structures, name)
    return planes_of(values if values.ndim == 2 else values[0], structures, name)
