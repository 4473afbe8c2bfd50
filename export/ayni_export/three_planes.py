"""Three cuts through a volume as a radiologist looks at them: axial, coronal, sagittal. numpy and Pillow only.

D x H x W = voxels (slices from feet to head, rows from back to front, columns from left to right), h x w = pixels of a
picture. The head or the front is at the top; the patient's right, or the front, at the left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ayni.data.volumes import PERCENTILES

LONGEST_SIDE = 448  # of the largest of the three pictures; all have the same scale
HOT = 0.95  # of the highest
WINDOW_VALUES = 1 << 20  # about so many are looked at to choose black and white

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Values = np.ndarray[Any, np.dtype[Any]]
Point = tuple[int, int, int]
Name = Literal["axial", "coronal", "sagittal"]

NAMES: tuple[Name, ...] = ("axial", "coronal", "sagittal")  # across the axes D, H and W
EDGES = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}  # what lies left, right, above, below


@dataclass(frozen=True, slots=True)
class Plane:
    """One cut. `number` counts from 1: from the feet, from the back, from the patient's left."""

    name: Name
    number: int
    num_slices: int
    shown_hw1: Pixels
    masks: tuple[Mask, ...]  # [h, w] of each structure
    in_squares: bool  # it was enlarged, and each voxel is a rectangle
    heat_hw: Floats | None = None  # 0 to 1, of any size: it is stretched over the picture

    @property
    def edges(self) -> str:
        """What lies at the left, at the right, above and below: Right, Left, Anterior, Posterior, Head, Feet."""
        return EDGES[self.name]


def three_planes(
    values_DHW: Values,
    masks: Sequence[Mask],
    spacing_mm: tuple[float, float, float],
    at: Point,
    heat: Floats | None = None,
) -> tuple[Plane, ...]:
    """`masks`: [D, H, W] of each structure. `at`: the voxel in which the three planes cross. `heat`: over the same
    extent, in voxels of its own."""
    low, high = window_of(values_DHW)
    lengths = [length * step for length, step in zip(values_DHW.shape, spacing_mm, strict=True)]
    pixels_per_mm = LONGEST_SIDE / max(lengths)
    made = []
    for axis, name in enumerate(NAMES):
        rows, columns = (other for other in range(3) if other != axis)
        size = max(1, round(lengths[rows] * pixels_per_mm)), max(1, round(lengths[columns] * pixels_per_mm))
        grey_HW = _eight_bits(_cut(values_DHW, axis, at[axis]), low, high)
        shown_hw1 = scaled(grey_HW, size)[:, :, np.newaxis]
        cuts = tuple(scaled_mask(_cut(mask_DHW, axis, at[axis]), size) for mask_DHW in masks)
        in_squares = all(new > 2 * old for new, old in zip(size, grey_HW.shape, strict=True))
        heat_hw = None if heat is None else _cut(heat, axis, _same_place(at, values_DHW.shape, heat.shape)[axis])
        made.append(Plane(name, at[axis] + 1, values_DHW.shape[axis], shown_hw1, cuts, in_squares, heat_hw))
    return tuple(made)


def centre_of(found_DHW: Mask, spacing_mm: tuple[float, float, float]) -> Point:
    """The voxel of what was found that is closest (in mm) to its middle; the volume's middle if nothing was found.

    >>> centre_of(np.array([[[True, True, True, False, False, True]]]), (1, 1, 1))
    (0, 0, 2)
    """
    depth, height, width = found_DHW.shape
    counts = [found_DHW.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    if not counts[0].any():
        return depth // 2, height // 2, width // 2
    mid_z, mid_y, mid_x = (float(np.average(np.arange(len(count)), weights=count)) for count in counts)
    dz, dy, dx = spacing_mm
    closest, place = math.inf, (0, 0, 0)
    for z in np.flatnonzero(counts[0]).tolist():  # slice by slice: what is found can be half of a large volume
        y_N, x_N = np.nonzero(found_DHW[z])
        apart_N = ((z - mid_z) * dz) ** 2 + ((y_N - mid_y) * dy) ** 2 + ((x_N - mid_x) * dx) ** 2
        n = int(np.argmin(apart_N))
        if apart_N[n] < closest:
            closest, place = float(apart_N[n]), (z, int(y_N[n]), int(x_N[n]))
    return place


def hottest(heat_DHW: Floats, shape: tuple[int, ...]) -> Point:
    """The voxel of a volume of this shape in the middle of where the heat over its extent is highest (the patches of an
    occlusion leave no single peak); without heat, the volume's middle."""
    if not heat_DHW.any():
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    hot_DHW = heat_DHW >= HOT * float(heat_DHW.max())
    return _same_place(centre_of(hot_DHW, (1.0, 1.0, 1.0)), heat_DHW.shape, shape)


def _same_place(at: Point, shape: tuple[int, ...], other: tuple[int, ...]) -> Point:
    """
    >>> _same_place((0, 1, 9), (2, 2, 10), (2, 4, 5))
    (0, 3, 4)
    """
    z, y, x = (int((place + 0.5) * new / old) for place, old, new in zip(at, shape, other, strict=True))
    return z, y, x


def window_of(values_DHW: Values) -> tuple[float, float]:
    """What is shown black and white: as the rules of volumes have it, of a part of the voxels if there are many."""
    every = max(1, round((values_DHW.size / WINDOW_VALUES) ** (1 / 3)))
    some = values_DHW[::every, ::every, ::every]
    low, high = (float(value) for value in np.percentile(some, PERCENTILES))
    return (low, high) if high > low else (float(some.min()), float(some.max()))


def _cut(volume_DHW: Values, axis: int, number: int) -> Values:
    """Turned to be looked at: every axis of a volume runs against the picture's."""
    cut_HW: Values = np.take(volume_DHW, number, axis=axis)
    return cut_HW[::-1, ::-1]


def _eight_bits(values_HW: Values, low: float, high: float) -> Pixels:
    span = high - low if high > low else 1.0
    return np.asarray(np.clip((values_HW.astype(np.float64) - low) / span, 0, 1) * 255 + 0.5, np.uint8)


def scaled(pixels_HW: Pixels, size: tuple[int, int]) -> Pixels:
    """To [h, w]: smaller with antialiasing, larger with each voxel a rectangle: nothing is smoothed into it."""
    return _resized(pixels_HW, size, Image.Resampling.BILINEAR)


def scaled_mask(mask_HW: Mask, size: tuple[int, int]) -> Mask:
    """The same for a mask: half of a pixel covered counts."""
    grey = np.multiply(mask_HW.view(np.uint8), 255, dtype=np.uint8)
    return np.asarray(_resized(grey, size, Image.Resampling.BOX) >= 128, np.bool_)


def _resized(pixels_HW: Pixels, size: tuple[int, int], smaller: Image.Resampling) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(pixels_HW))
    (height, width), nearest = size, Image.Resampling.NEAREST
    image = image.resize((width, image.height), nearest if width >= image.width else smaller)
    image = image.resize((width, height), nearest if height >= image.height else smaller)
    return np.asarray(image)
