"""Volumes as they come, NIfTI or a folder of DICOM slices, and as a network sees them: the rules "volume-1".

1. Turned so that slices go from feet to head, rows from back to front, columns from the patient's left to right. Only
   turned by right angles and mirrored: a volume that was taken at a slant stays at its slant.
2. Resampled to the task's spacing (`resample.py`); without one, voxels are taken as they are.
3. Clipped at the 0.5th and the 99.5th percentile of the voxels, and scaled to 0 .. 255. Where these two are equal, at
   minimum and maximum. Voxels of eight bits pass unchanged if the task has no spacing.
4. For training: centred in the task's size, with 0 around. What is larger is an error; nothing is cut off silently.

All of it in numpy. D, H, W = slices, rows, columns; X, Y, Z = the axes of the file; S = structures.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ayni.data.eight_bits import Pixels, Values
from ayni.data.nifti import MAX_VOXELS
from ayni.data.planes import ROUNDING, planes_of
from ayni.data.resample import resampled
from ayni.data.volume_file import Volume, check_same_grid, read_label_map, read_volume, size_text, spacing_text
from ayni.errors import DataError
from ayni.task import ImageSettings

__all__ = [
    "PERCENTILES",
    "VOLUME_RULES",
    "Volume",
    "Voxels",
    "as_seen",
    "at_least",
    "back_to_file",
    "check_same_grid",
    "label_planes",
    "padded",
    "place_in",
    "plane_to_file",
    "read_label_map",
    "read_volume",
    "seen_shape",
]

VOLUME_RULES = "volume-1"
PERCENTILES = (0.5, 99.5)

Voxels = Pixels


def as_seen(volume: Volume, image: ImageSettings, name: str = "the volume") -> Voxels:
    """Rules 2 and 3: uint8 [D', H', W']. Raises DataError, in which `name` stands for the volume."""
    if image.spacing_mm is None and volume.values_DHW.dtype == np.uint8:
        return np.ascontiguousarray(volume.values_DHW)
    return _to_eight_bits(resampled(volume.values_DHW, seen_shape(volume, image, name)))


def seen_shape(volume: Volume, image: ImageSettings, name: str = "the volume") -> tuple[int, ...]:
    """(D', H', W') after rule 2. Raises DataError if no machine would hold that."""
    if image.spacing_mm is None:
        return tuple(volume.values_DHW.shape)
    sides = zip(volume.values_DHW.shape, volume.spacing_mm, image.spacing_mm, strict=True)
    lengths = tuple(max(1, round(length * old / new)) for length, old, new in sides)
    if lengths[0] * lengths[1] * lengths[2] > MAX_VOXELS:
        raise DataError(
            f"{name} would have {size_text(lengths)} voxels at the task's spacing of {spacing_text(image.spacing_mm)} "
            "mm. Cut out what matters, or ask the coordinator for a larger image.spacing_mm."
        )
    return lengths


def _to_eight_bits(values_DHW: Values) -> Voxels:
    """Rule 3."""
    low, high = (float(value) for value in np.percentile(values_DHW, PERCENTILES))
    if high <= low:
        low, high = float(values_DHW.min()), float(values_DHW.max())
    voxels = np.zeros(values_DHW.shape, np.uint8)
    if high <= low:
        return voxels
    for number, values_HW in enumerate(values_DHW):  # slice by slice: no copy of all in 64 bits
        voxels[number] = np.floor(np.clip((values_HW.astype(np.float64) - low) / (high - low), 0, 1) * 255 + 0.5)
    return voxels


def padded(voxels: Voxels, image: ImageSettings, name: str = "the volume") -> Voxels:
    """Rule 4, on the last three axes: [..., D', H', W'] to [..., depth, height, width]. Raises DataError."""
    place = place_in(voxels.shape[-3:], image.size, name)
    around = [(part.start, side - part.stop) for part, side in zip(place, image.size, strict=True)]
    return np.pad(voxels, [(0, 0)] * (voxels.ndim - 3) + around)


def place_in(shape: tuple[int, ...], size: tuple[int, ...], name: str = "the volume") -> tuple[slice, ...]:
    """Where a volume of this shape lies when it is centred in one of that size. Raises DataError if it is larger.

    >>> place_in((3, 4, 8), (4, 8, 8))
    (slice(0, 3, None), slice(2, 6, None), slice(0, 8, None))
    """
    if any(length > side for length, side in zip(shape, size, strict=True)):
        needed = tuple(max(pair) for pair in zip(shape, size, strict=True))
        raise DataError(
            f"{name} has {size_text(shape)} voxels (slices x rows x columns, at the task's spacing) and the task takes "
            f"{size_text(size)}. Cut out what matters, or ask the coordinator for image.depth, height and width of "
            f"at least {size_text(needed)}."
        )
    starts = [(side - length) // 2 for length, side in zip(shape, size, strict=True)]
    return tuple(slice(start, start + length) for start, length in zip(starts, shape, strict=True))


def at_least(voxels_DHW: Voxels, size: tuple[int, ...]) -> tuple[Voxels, tuple[slice, ...]]:
    """With 0 around wherever it is smaller than `size` (for a window that is larger), and where it lies in that."""
    whole = tuple(max(pair) for pair in zip(voxels_DHW.shape, size, strict=True))
    place = place_in(voxels_DHW.shape, whole)
    canvas = np.zeros(whole, np.uint8)
    canvas[place] = voxels_DHW
    return canvas, place


def label_planes(volume: Volume, structures: tuple[str, ...], image: ImageSettings, name: str = "the mask") -> Voxels:
    """A label map after rule 2: uint8 0/1 [S, D', H', W']; a voxel is a structure's if at least half of it is.

    With one structure all above 0 is it; with several, k is the k-th. Raises DataError, in which `name` is the mask.
    """
    shape = seen_shape(volume, image, name)
    planes = planes_of(volume.values_DHW, structures, name)
    if shape == volume.values_DHW.shape:
        return planes
    return np.stack([resampled(plane_DHW, shape) >= 0.5 - ROUNDING for plane_DHW in planes]).astype(np.uint8)


def back_to_file(probabilities_SDHW: npt.NDArray[np.float32], volume: Volume) -> npt.NDArray[np.float32]:
    """From the grid that `as_seen` made to the file's own: float32 [S, X, Y, Z]."""
    return np.stack([plane_to_file(plane_DHW, volume) for plane_DHW in probabilities_SDHW])


def plane_to_file(values_DHW: npt.NDArray[np.float32], volume: Volume) -> npt.NDArray[np.float32]:
    """The same for one structure, [X, Y, Z]: what is large goes one by one."""
    turned_XYZ = resampled(values_DHW, volume.values_DHW.shape).transpose(2, 1, 0)
    file_XYZ = turned_XYZ.transpose([axis for axis, _ in volume.turn])
    return np.asarray(file_XYZ[tuple(slice(None, None, way) for _, way in volume.turn)], np.float32)
