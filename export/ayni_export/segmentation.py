"""The answer to one image of a segmentation: a mask per structure in the file's own pixels, its area, and how sure.

S = structures, H x W = pixels of the file, h x w = pixels as the model sees them, K = channels. numpy and Pillow only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ayni.data.images import placement
from ayni.task import ImageSettings
from ayni_export.spacing import Spacing

THRESHOLD = 0.5  # a pixel is outlined from this probability on
SURE = 0.9
SHOWN_PIXELS = 448  # the longer side of the picture in the report is at most this
BAND_VALUES = 1 << 17

Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Structure:
    """One outlined structure. `mask_HW` has the file's size, turned as the file is shown (see `read_image`)."""

    name: str
    mask_HW: Mask
    num_sure: int  # of the mask's pixels, those with a probability of at least SURE
    highest: float  # the highest probability in the image

    @property
    def num_pixels(self) -> int:
        return int(np.count_nonzero(self.mask_HW))

    @property
    def share(self) -> float:
        """Of the image, 0 to 1."""
        return self.num_pixels / self.mask_HW.size

    @property
    def sure_share(self) -> float | None:
        """Of the mask, 0 to 1; None if nothing is outlined."""
        return self.num_sure / self.num_pixels if self.num_pixels else None


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What the model outlines in one image. `shown_HWK` is the image, scaled down for the report if it is large."""

    path: Path
    sha256: str
    width: int  # of the file, in pixels
    height: int
    structures: tuple[Structure, ...]
    spacing: Spacing | None
    shown_HWK: Pixels

    def area_mm2(self, structure: Structure) -> float | None:
        """None if the file does not say how large a pixel is."""
        return None if self.spacing is None else structure.num_pixels * self.spacing.pixel_mm2


def structures_of(
    probabilities_Shw: Floats, names: tuple[str, ...], image: ImageSettings, height: int, width: int
) -> tuple[Structure, ...]:
    """The masks of a file of `height` x `width`: the model's answer, taken back from where `prepare` put the image.

    The black around the image is cut off; the probabilities, not the mask, are stretched to the file's size (bilinear).
    """
    top, left, new_height, new_width = placement(height, width, image)
    inside_Shw = probabilities_Shw[:, top : top + new_height, left : left + new_width]
    return tuple(_structure(name, p_hw, height, width) for name, p_hw in zip(names, inside_Shw, strict=True))


def _structure(name: str, probability_hw: Floats, height: int, width: int) -> Structure:
    mask_HW, num_sure, highest = np.empty((height, width), np.bool_), 0, 0.0
    for rows, band_bW in bands(probability_hw, height, width):
        mask_HW[rows] = band_bW >= THRESHOLD
        num_sure += int(np.count_nonzero(band_bW >= SURE))
        highest = max(highest, float(band_bW.max()))
    return Structure(name, mask_HW, num_sure, highest)


def bands(values_hw: Floats, height: int, width: int) -> Iterator[tuple[slice, Floats]]:
    """The values stretched to [height, width], some rows at a time: a large X-ray must not fill a small memory.

    Pixels are squares and have their values at their middle; between two middles it runs straight, and outside of the
    outermost ones it stays.

    >>> [band.tolist() for _, band in bands(np.array([[0, 1]], np.float32), 1, 4)]
    [[[0.0, 0.25, 0.75, 1.0]]]
    """
    if values_hw.shape == (height, width):
        yield slice(0, height), values_hw
        return
    left_W, right_W, share_W = _neighbours(values_hw.shape[1], width)
    wide_hW = values_hw[:, left_W] * (1 - share_W) + values_hw[:, right_W] * share_W
    upper_H, lower_H, share_H = _neighbours(values_hw.shape[0], height)
    num_rows = max(1, BAND_VALUES // width)
    for first in range(0, height, num_rows):
        rows = slice(first, min(height, first + num_rows))
        share_b1 = share_H[rows, np.newaxis]
        yield rows, wide_hW[upper_H[rows]] * (1 - share_b1) + wide_hW[lower_H[rows]] * share_b1


def _neighbours(length: int, new_length: int) -> tuple[Any, Any, Floats]:
    """For each new pixel, the two old ones whose middles lie around its own, and the second's share."""
    middles = np.clip((np.arange(new_length) + 0.5) * (length / new_length) - 0.5, 0, length - 1)
    first = np.minimum(middles.astype(np.int64), length - 1)
    return first, np.minimum(first + 1, length - 1), (middles - first).astype(np.float32)


def shown(pixels_HWK: Pixels) -> Pixels:
    """The image as it is, or scaled down so that its longer side has SHOWN_PIXELS."""
    height, width = pixels_HWK.shape[:2]
    scale = SHOWN_PIXELS / max(height, width)
    if scale >= 1:
        return pixels_HWK
    size = max(1, round(width * scale)), max(1, round(height * scale))
    planes = [Image.fromarray(np.ascontiguousarray(pixels_HWK[:, :, k])) for k in range(pixels_HWK.shape[2])]
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.BILINEAR)) for plane in planes], axis=2)


def grey_of(mask_HW: Mask) -> Pixels:
    """255 inside and 0 outside."""
    return np.multiply(mask_HW.view(np.uint8), 255, dtype=np.uint8)


def shown_mask(mask_HW: Mask, height: int, width: int) -> Mask:
    """The mask in a picture of `height` x `width`: scaled down (half of a pixel covered counts), or repeated."""
    if mask_HW.shape[0] > height or mask_HW.shape[1] > width:
        small = Image.fromarray(grey_of(mask_HW)).resize((width, height), Image.Resampling.BOX)
        return np.asarray(np.asarray(small) >= 128, np.bool_)
    return mask_HW.repeat(height // mask_HW.shape[0], axis=0).repeat(width // mask_HW.shape[1], axis=1)
