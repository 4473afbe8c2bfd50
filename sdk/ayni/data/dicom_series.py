"""One DICOM series, a folder of slices, to a volume. Needs pydicom, which is imported only when such a folder comes.

Values are those of the modality LUT (Hounsfield units, say), whatever window or inversion a viewer would use.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ayni.data.dicom import DEFLATED
from ayni.data.eight_bits import UnreadableError, Values, check_num_pixels
from ayni.data.nifti import MAX_VOXELS, Grid
from ayni.errors import MissingExtraError

MAX_SLICES = 4096
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR lists files and is none of the slices
SAME = 1e-3  # of directions and spacings that slices must share
UNEVEN = 0.05  # of the distance between slices, by which one may differ from the others (and 0.02 mm, rounding)
TO_RIGHT_FRONT_HEAD = np.diag([-1.0, -1.0, 1.0])  # DICOM counts to the left, the back and the head


@dataclass(frozen=True, slots=True)
class _Slice:
    """What its header says of one file. Two values of `spacing`: between rows, between columns, in mm."""

    file: Path
    shape: tuple[int, int]
    spacing: npt.NDArray[np.float64]
    directions: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]


def read_series(folder: Path, *, allow_burned_in: bool) -> tuple[Values, Grid]:
    """Voxels [X, Y, Z]: columns, rows, slices along their normal. Raises UnreadableError, or what pydicom raises."""
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("reading DICOM series", "deploy") from None
    slices = _sorted([_slice(*item, allow_burned_in) for item in _headers(folder)])
    first, last = slices[0], slices[-1]
    rows, columns = first.shape
    if rows * columns * len(slices) > MAX_VOXELS:
        raise UnreadableError(f"it claims {rows * columns * len(slices)} voxels; {MAX_VOXELS} are read at most.")
    values_ZYX = np.empty((len(slices), rows, columns), np.float32)
    for number, one in enumerate(slices):
        values_ZYX[number] = _values(one, pydicom.dcmread(one.file))
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]  # along a row, from column to column
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    affine[:3] = TO_RIGHT_FRONT_HEAD @ affine[:3]
    return values_ZYX.transpose(2, 1, 0), Grid(affine, 1.0, True)


def _headers(folder: Path) -> list[tuple[Path, Any]]:
    """Of every DICOM file in the folder, which must be of one series. Files of other kinds do not count."""
    import pydicom
    import pydicom.filereader

    found: list[tuple[Path, Any]] = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        with file.open("rb") as opened:
            is_dicom = opened.read(132)[128:] == b"DICM"
        if not is_dicom and file.name.lower().endswith((".dcm", ".dicom")):
            raise UnreadableError(f"{file.name} is no DICOM file, or damaged. Copy or export the series again.")
        if not is_dicom:
            continue
        meta = pydicom.filereader.read_file_meta_info(file)
        if meta.get("MediaStorageSOPClassUID") == DIRECTORY:
            continue
        if meta.get("TransferSyntaxUID") == DEFLATED:  # pydicom would inflate it without a bound
            raise UnreadableError(f"{file.name} is a deflated DICOM file, which is not read. Export it uncompressed.")
        if len(found) == MAX_SLICES:
            raise UnreadableError(f"it holds more than {MAX_SLICES} DICOM files. Put one series into a folder.")
        found.append((file, pydicom.dcmread(file, stop_before_pixels=True)))
    if len(found) < 2:
        raise UnreadableError(
            f"this folder holds {len(found)} DICOM slices, and a volume has at least two. Put the files of one series "
            "straight into it; volumes as NIfTI are named file by file."
        )
    _check_one_series(found)
    return found


def _check_one_series(found: list[tuple[Path, Any]]) -> None:
    counts = Counter(str(header.get("SeriesInstanceUID", "")) for _, header in found)
    if len(counts) == 1:
        return
    told = []
    for uid, count in counts.items():
        file, header = next(item for item in found if str(item[1].get("SeriesInstanceUID", "")) == uid)
        number, modality = header.get("SeriesNumber", "without number"), header.get("Modality", "?")
        told.append(f"series {number} ({modality}, {count} files, {file.name} is one)")
    raise UnreadableError(f"it holds {len(counts)} series: {'; '.join(told)}. Put one series into a folder.")


def _slice(file: Path, header: Any, allow_burned_in: bool) -> _Slice:
    if not allow_burned_in and str(header.get("BurnedInAnnotation", "NO")).strip().upper() == "YES":
        raise UnreadableError(f"text is burned into {file.name} and may name the patient. Export it without.")
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise UnreadableError(f"{file.name} holds {header.NumberOfFrames} frames. Save one slice per file.")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise UnreadableError(f"{file.name} is in colour. Export the series as it was taken, in grey.")
    needed = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
    missing = [name for name in needed if header.get(name) is None]
    if missing:
        raise UnreadableError(f"{file.name} does not say its {', '.join(missing)}. Export the series as it was taken.")
    check_num_pixels(int(header.Rows) * int(header.Columns))
    return _Slice(
        file,
        (int(header.Rows), int(header.Columns)),
        np.array([float(step) for step in header.PixelSpacing]),
        np.array([float(part) for part in header.ImageOrientationPatient]).reshape(2, 3),
        np.array([float(part) for part in header.ImagePositionPatient]),
    )


def _sorted(slices: list[_Slice]) -> list[_Slice]:
    """Along their normal. Raises UnreadableError unless they are alike and evenly spaced."""
    first = slices[0]
    for one in slices[1:]:
        same = one.shape == first.shape and np.allclose(one.spacing, first.spacing, rtol=SAME)
        if not (same and np.allclose(one.directions, first.directions, atol=SAME)):
            raise UnreadableError(
                f"{one.file.name} and {first.file.name} differ in size, spacing or direction. Leave out what is no "
                "slice of this volume (a localizer, say)."
            )
    normal = np.cross(*first.directions)
    slices = sorted(slices, key=lambda one: float(normal @ one.position))
    steps = np.diff([float(normal @ one.position) for one in slices])
    usual = float(np.median(steps))
    for step, one, following in zip(steps, slices, slices[1:], strict=False):
        between = f"{one.file.name} and {following.file.name}"
        if step < SAME * max(usual, 1.0):
            raise UnreadableError(
                f"{between} lie at the same place: several times or echoes in one series. Give one of them."
            )
        if step > 1.5 * usual:
            raise UnreadableError(
                f"slices are missing: {between} are {step:.4g} mm apart, where others are {usual:.4g}. Copy the whole "
                "series."
            )
        if abs(step - usual) > max(UNEVEN * usual, 0.02):
            raise UnreadableError(
                f"its slices are not evenly spaced: {between} are {step:.4g} mm apart, where others are {usual:.4g}. "
                "Export it with even slices."
            )
    return slices


def _values(one: _Slice, dataset: Any) -> Values:
    """Rows and columns, after the modality LUT."""
    from pydicom.pixels.processing import apply_modality_lut

    if "PixelData" not in dataset:
        raise UnreadableError(f"{one.file.name} holds no picture. Leave it out.")
    try:
        stored = dataset.pixel_array
    except (RuntimeError, NotImplementedError):
        raise UnreadableError(f"the compression of {one.file.name} is not read here. Export it uncompressed.") from None
    except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        what = f"its slice {one.file.name} is damaged or cut off ({type(error).__name__})"
        raise UnreadableError(f"{what}. Copy or export the series again.") from None
    if stored.shape != one.shape:
        raise UnreadableError(f"{one.file.name} has another size than its header says. Export it again.")
    return np.asarray(apply_modality_lut(stored, dataset))
