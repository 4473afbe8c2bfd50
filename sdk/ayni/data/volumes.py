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

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ayni.data.dicom_series import read_series
from ayni.data.eight_bits import Pixels, UnreadableError, Values
from ayni.data.nifti import MAX_VOXELS, Grid, read_nifti
from ayni.data.planes import ROUNDING, planes_of
from ayni.data.resample import resampled
from ayni.errors import DataError, MissingExtraError
from ayni.task import ImageSettings

VOLUME_RULES = "volume-1"
PERCENTILES = (0.5, 99.5)
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
MIN_VOLUME = 1e-2  # of the voxel's three directions as unit vectors; three in one plane span none
SAME_PLACE = 0.1  # voxels: a mask that lies farther from its image than this is another volume's

Voxels = Pixels


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume after rule 1. `affine` takes a voxel (x, y, z) of the FILE to the patient's right, front and head;
    `turn` says for each axis of the file which of those it is, and whether it runs the same way (1) or not (-1)."""

    values_DHW: Values
    spacing_mm: tuple[float, float, float]
    affine: npt.NDArray[np.float64]
    turn: tuple[tuple[int, int], ...]
    source: Literal["NIfTI", "DICOM"]
    is_oriented: bool = True

    @property
    def file_shape(self) -> tuple[int, ...]:
        """(X, Y, Z)"""
        return tuple(self.values_DHW.shape[::-1][axis] for axis, _ in self.turn)

    @property
    def turned_affine(self) -> npt.NDArray[np.float64]:
        """From a voxel (column, row, slice) to the same place."""
        affine = self.affine.copy()
        for file_axis, (axis, way) in enumerate(self.turn):
            step = self.affine[:3, file_axis]
            affine[:3, axis] = way * step
            if way < 0:
                affine[:3, 3] += step * (self.values_DHW.shape[2 - axis] - 1)
        return affine


def read_volume(path: Path, *, allow_burned_in: bool = False) -> Volume:
    """A NIfTI file, packed or not, or a folder with the slices of one DICOM series.

    Raises DataError, which names the file, or MissingExtraError; nothing else, whatever the bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.is_dir():
                values_XYZ, grid = read_series(path, allow_burned_in=allow_burned_in)
                return _turned(values_XYZ, grid, "DICOM")
            if path.exists() and not path.is_file():
                raise UnreadableError("is not a plain file. Give NIfTI, or a folder of DICOM slices.")
            if not os.stat(path).st_size:
                raise UnreadableError("it is empty. Copy or export it again.")
            return _turned(*read_nifti(path), "NIfTI")
    except UnreadableError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"there is no file {path}. Check its name.") from None
    except MemoryError:
        raise DataError(f"{path} is larger than this machine's memory. Cut out what matters.") from None
    except MissingExtraError:
        raise
    except Exception as error:  # parsers on foreign bytes: their ways to fail cannot be listed
        raise DataError(
            f"{path} is damaged or cut off ({type(error).__name__}). Export it again from where it came."
        ) from None


def _turned(values_XYZ: Values, grid: Grid, source: Literal["NIfTI", "DICOM"]) -> Volume:
    """Rule 1, and the checks of what a volume must be."""
    from nibabel.orientations import io_orientation

    steps = np.linalg.norm(grid.affine[:3, :3], axis=0) * grid.unit_mm
    if not np.isfinite(grid.affine).all() or not ((steps >= MIN_SPACING_MM) & (steps <= MAX_SPACING_MM)).all():
        raise UnreadableError(
            f"its header says voxels of {' x '.join(f'{step:g}' for step in steps)} mm. Export it with its true ones."
        )
    if abs(np.linalg.det(grid.affine[:3, :3] * grid.unit_mm / steps)) < MIN_VOLUME:
        raise UnreadableError("its header (affine) puts all voxels into one plane. Export it again with its geometry.")
    for plane in np.moveaxis(values_XYZ, 2, 0):
        if plane.dtype.kind == "f" and not np.isfinite(plane).all():
            raise UnreadableError("it holds values that are not finite (NaN or infinity). Export it without them.")
    orientation = io_orientation(grid.affine)
    turn = tuple((int(axis), int(way)) for axis, way in orientation)
    flipped = values_XYZ[tuple(slice(None, None, way) for _, way in turn)]
    order = [next(at for at, (axis, _) in enumerate(turn) if axis == wanted) for wanted in (2, 1, 0)]
    values_DHW = flipped.transpose(order)
    dz, dy, dx = (float(steps[axis]) for axis in order)
    return Volume(values_DHW, (dz, dy, dx), grid.affine, turn, source, grid.is_oriented)


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


def read_label_map(path: Path) -> Volume:
    """A NIfTI mask: whole numbers, 0 for background, exactly as they were saved (floats only if they are whole).

    Raises DataError, which names the file, or MissingExtraError.
    """
    if path.is_dir():
        raise DataError(f"the mask {path} is a folder. Give one NIfTI file with whole numbers.")
    volume = read_volume(path)
    values = volume.values_DHW
    least, most = float(values.min()), float(values.max())
    if any((plane != np.rint(plane)).any() for plane in values) or max(-least, most) >= 2**24:
        raise DataError(f"the mask {path} holds more than whole numbers. Save it with 0 for background, 1, 2, ...")
    dtype = np.uint8 if least >= 0 and most < 256 else np.int32
    return Volume(
        values.astype(dtype), volume.spacing_mm, volume.affine, volume.turn, volume.source, volume.is_oriented
    )


def check_same_grid(image: Volume, mask: Volume, image_name: str, mask_name: str) -> None:
    """A mask must lie where its image does, however either is turned in its file. Raises DataError."""
    shapes = image.values_DHW.shape, mask.values_DHW.shape
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{image_name} has {size_text(shapes[0])} voxels (slices x rows x columns) and its mask {mask_name} "
            f"{size_text(shapes[1])}. A mask must have its image's voxels: export both again."
        )
    ends = np.array(np.meshgrid(*((0, length - 1) for length in shapes[0][::-1]), [1], indexing="ij")).reshape(4, -1)
    apart = np.linalg.norm(((image.turned_affine - mask.turned_affine) @ ends)[:3], axis=0).max()
    if apart > SAME_PLACE * np.linalg.norm(image.affine[:3, :3], axis=0).min():
        raise DataError(
            f"the mask {mask_name} lies up to {apart:.3g} mm from where its image {image_name} does (their affines "
            "differ). Export both again, on one grid."
        )


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


def size_text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def spacing_text(spacing_mm: tuple[float, ...]) -> str:
    """
    >>> spacing_text((2.5, 1.0, 0.97656))
    '2.5 x 1 x 0.977'
    """
    return " x ".join(f"{step:.3g}" for step in spacing_mm)
