"""Any numbers to eight bits, a few rows at a time: a large X-ray must not fill a small machine's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MAX_PIXELS = 50_000_000  # the largest X-ray detectors have some 20 million
BLOCK_VALUES = 1 << 18

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Values = np.ndarray[Any, np.dtype[Any]]


class UnreadableError(Exception):
    """Why a file cannot be used and what to do; `read_image` makes a DataError of it, with the file's name."""


def check_num_pixels(num_pixels: int) -> None:
    if not 0 < num_pixels <= MAX_PIXELS:
        raise UnreadableError(f"it claims {num_pixels} pixels; 1 to {MAX_PIXELS} are read. Give one image per file.")


def to_eight_bits(values: Values, low: float | None = None, high: float | None = None) -> Pixels:
    """`low` becomes 0 and `high` 255 (the array's own minimum and maximum if not given); uint8 without them stays.

    >>> to_eight_bits(np.array([1000, 1500, 2000], np.uint16)).tolist()
    [0, 128, 255]
    """
    if values.dtype == np.uint8 and low is None:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    least, most = float(values.min()), float(values.max())
    if not (np.isfinite(least) and np.isfinite(most)):  # a NaN anywhere is the minimum
        raise UnreadableError("it holds values that are not finite (NaN or infinity). Export it again without them.")
    start = least if low is None else low
    # halves: the difference of two finite numbers may not be finite, that of their halves is
    half_span = (most if high is None else high) / 2 - start / 2
    if half_span <= 0:
        return np.zeros(values.shape, np.uint8)

    def scaled(block: Values) -> Values:
        shares = np.clip((block.astype(np.float64) / 2 - start / 2) / half_span, 0, 1)
        return np.floor(shares * 255 + 0.5)

    return by_rows(values, scaled)


def by_rows(values: Values, convert: Callable[[Values], Values]) -> Pixels:
    """`convert`, which keeps the shape, on some rows after the others."""
    pixels = np.empty(values.shape, np.uint8)
    num_rows = max(1, BLOCK_VALUES * len(values) // max(1, values.size))
    for row in range(0, len(values), num_rows):
        pixels[row : row + num_rows] = convert(values[row : row + num_rows])
    return pixels
