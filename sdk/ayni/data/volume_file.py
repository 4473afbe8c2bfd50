"""Volumes as they come: NIfTI, or a folder of DICOM slices.

D, H, W = slices, rows, columns; X, Y, Z = the axes of the file.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ayni.data.dicom_series import read_series
from ayni.data.eight_bits import UnreadableError, Values
from ayni.data.nifti import Grid, read_nifti
from ayni.errors import DataError, MissingExtraError

MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
MAX_SLANT = 0.05  # cosine between two axes of a volume: beyond 3 degrees from a right angle distances are wrong
SAME_PLACE = 0.1  # voxels: a mask that lies farther from its image than this is another volume's


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume, turned: slices from feet to head, rows from back to front, columns from the patient's left to right.

    `affine` takes a voxel (x, y, z) of the FILE to millimetres towards the patient's right, front and head. `turn` says
    for each axis of the file which of those it is, and whether it runs the same way (1) or not (-1).
    """

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
                raise UnreadableError("it is not a plain file. Give NIfTI, or a folder of DICOM slices.")
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
    """Axes to the patient's right, front and head, as far as right angles go; and what a volume must be."""
    try:
        from nibabel.orientations import io_orientation
    except ImportError:
        raise MissingExtraError("reading volumes", "deploy") from None

    steps = np.linalg.norm(grid.affine[:3, :3], axis=0) * grid.unit_mm
    if not np.isfinite(grid.affine).all() or not ((steps >= MIN_SPACING_MM) & (steps <= MAX_SPACING_MM)).all():
        raise UnreadableError(
            f"its header says voxels of {' x '.join(f'{step:g}' for step in steps)} mm. Export it with its true ones."
        )
    along = grid.affine[:3, :3] * grid.unit_mm / steps
    if np.abs(along.T @ along - np.eye(3)).max() > MAX_SLANT:
        raise UnreadableError(
            "its axes (affine) are not at right angles to each other, as with a tilted gantry. Resample it to a "
            "straight grid first."
        )
    for plane in np.moveaxis(values_XYZ, 2, 0):
        if plane.dtype.kind == "f" and not np.isfinite(plane).all():
            raise UnreadableError("it holds values that are not finite (NaN or infinity). Export it without them.")
    turn = tuple((int(axis), int(way)) for axis, way in io_orientation(grid.affine))
    flipped = values_XYZ[tuple(slice(None, None, way) for _, way in turn)]
    order = [next(at for at, (axis, _) in enumerate(turn) if axis == wanted) for wanted in (2, 1, 0)]
    values_DHW = flipped.transpose(order)
    dz, dy, dx = (float(steps[axis]) for axis in order)
    return Volume(values_DHW, (dz, dy, dx), grid.affine, turn, source, grid.is_oriented)


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
    return replace(volume, values_DHW=values.astype(dtype))


def check_same_grid(image: Volume, mask: Volume, image_name: str, mask_name: str) -> None:
    """A mask must lie where its image does, however either is turned in its file. Raises DataError."""
    shape = image.values_DHW.shape
    check_same_shape(shape, mask.values_DHW.shape, image_name, mask_name)
    ends = np.array(np.meshgrid(*((0, length - 1) for length in shape[::-1]), [1], indexing="ij")).reshape(4, -1)
    apart = np.linalg.norm(((image.turned_affine - mask.turned_affine) @ ends)[:3], axis=0).max()
    if apart > SAME_PLACE * np.linalg.norm(image.affine[:3, :3], axis=0).min():
        raise DataError(
            f"the mask {mask_name} lies up to {apart:.3g} mm from where its image {image_name} does (their affines "
            "differ). Export both again, on one grid."
        )


def check_same_shape(
    image_shape: tuple[int, ...], mask_shape: tuple[int, ...], image_name: str, mask_name: str
) -> None:
    """Both are (D, H, W). Raises DataError."""
    if image_shape != mask_shape:
        raise DataError(
            f"{image_name} has {size_text(image_shape)} voxels (slices x rows x columns) and its mask {mask_name} "
            f"{size_text(mask_shape)}. A mask must have its image's voxels: export both again."
        )


def size_text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def spacing_text(spacing_mm: tuple[float, ...]) -> str:
    """
    >>> spacing_text((2.5, 1.0, 0.97656))
    '2.5 x 1 x 0.977'
    """
    return " x ".join(f"{step:.3g}" for step in spacing_mm)
