"""One mask as it is on the disk: PNG or .npy in, its whole numbers out, exactly.

An image's greys are stretched when they have 16 bits (`images.py`); a mask's numbers say which structure a pixel
belongs to, and nothing may touch them. What a file is, its first bytes say, not its name. H = height, W = width.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ayni.data.eight_bits import UnreadableError, Values, check_num_pixels
from ayni.data.images import read_bytes, read_npy
from ayni.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"
BIT_DEPTH, COLOUR_TYPE = 24, 25  # where a PNG says them: in its first chunk, which always stands at the start
GREY = 0


def read_mask(path: Path) -> Values:
    """One mask [H, W] of whole numbers, as they were saved. Raises DataError, which names the file."""
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _checked(_read_png(data) if data.startswith(PNG) else _read_array(data))
    except UnreadableError as error:
        raise DataError(f"the mask {path}: {error}") from None
    except Exception as error:  # two parsers on foreign bytes: their ways to fail cannot be listed
        raise DataError(
            f"the mask {path} is damaged or cut off ({type(error).__name__}). Export it again from where it came."
        ) from None


def _read_array(data: bytes) -> Values:
    if data.startswith(b"\xff\xd8\xff"):
        raise UnreadableError("JPEG changes a mask's numbers. Save it as PNG (grey, 8 or 16 bits) or .npy.")
    if not data.startswith(b"\x93NUMPY"):
        raise UnreadableError("this is no mask of a known kind. Give PNG (grey, 8 or 16 bits) or .npy.")
    return read_npy(data)


def _read_png(data: bytes) -> Values:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        check_num_pixels(image.width * image.height)
        if getattr(image, "n_frames", 1) != 1:
            raise UnreadableError("it is an animation. Save one picture per file.")
        if data[COLOUR_TYPE] != GREY and data[BIT_DEPTH] == 16:  # Pillow drops the lower eight
            raise UnreadableError("it has 16 bits and more than grey. Save it as grey or .npy.")
        ImageOps.exif_transpose(image, in_place=True)  # as its image is turned
        if image.mode in ("P", "PA"):
            raise UnreadableError("it has a palette, so its numbers may mean anything. Save it as grey or .npy.")
        values = np.asarray(image)
    if data[COLOUR_TYPE] == GREY and data[BIT_DEPTH] in (2, 4):
        return values // np.uint8(255 // (2 ** data[BIT_DEPTH] - 1))  # Pillow has stretched them to 0 .. 255
    return values


def _checked(values: Values) -> Values:
    if values.ndim == 3 and values.shape[2] in (2, 4):  # transparency
        if (values[:, :, -1] != np.iinfo(values.dtype).max).any():
            raise UnreadableError("parts of it are transparent. Save it without transparency.")
        values = values[:, :, :-1]
    if values.ndim == 3 and values.shape[2] in (1, 3):
        if (values != values[:, :, :1]).any():
            raise UnreadableError("it is in colour; a mask is grey: 0 is background. Save it as grey or .npy.")
        values = values[:, :, 0]
    if values.ndim != 2:
        raise UnreadableError(f"its shape is {list(values.shape)}; a mask is [height, width].")
    check_num_pixels(values.size)
    if values.dtype.kind not in "bui":
        raise UnreadableError(f"its values are of type {values.dtype}; a mask has whole numbers, 0 for background.")
    return np.ascontiguousarray(values)
