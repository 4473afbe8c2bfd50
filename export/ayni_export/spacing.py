"""How large a pixel is, if the image's file says so: DICOM and NIfTI do; a PNG's or JPEG's resolution is of a print.

Read from the file's header, after `read_image` has taken its pixels. What is taken:

- DICOM: Pixel Spacing, which is in the patient; without it, or if it is the same as Imager Pixel Spacing, then that is
  the distance on the detector, and the body part was magnified by an unknown factor: `on_detector`.
- NIfTI: the voxel's sides along the slice, if the header names their unit. Many files name none: no guess is made.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MM_OF_UNIT = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
MAX_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
LARGEST_MM = 1000.0  # a pixel of more than a metre is a mistake


@dataclass(frozen=True, slots=True)
class Spacing:
    """From one pixel's centre to the next one's, in mm: the two directions, in no particular order."""

    mm: tuple[float, float]
    on_detector: bool = False

    @property
    def pixel_mm2(self) -> float:
        return self.mm[0] * self.mm[1]


def read_spacing(path: Path) -> Spacing | None:
    """None if the file does not say it, or not in a way that can be relied on."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
        if start[128:] == b"DICM":
            return _of_dicom(path)
        return _of_nifti(_nifti_header(path, packed=start.startswith(b"\x1f\x8b")))
    except Exception:  # parsers on foreign bytes; the area in pixels is still known
        return None


def _of_dicom(path: Path) -> Spacing | None:
    import pydicom

    names = ["PixelSpacing", "ImagerPixelSpacing"]
    dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=names)
    pixel, imager = (_sides(dataset.get(name) or ()) for name in names)
    on_detector = imager is not None and pixel in (None, imager)
    sides = pixel or imager
    return None if sides is None else Spacing(sides, on_detector)


def _nifti_header(path: Path, *, packed: bool) -> bytes:
    with gzip.open(path) if packed else path.open("rb") as file:
        return bytes(file.read(MAX_HEADER_BYTES))


def _of_nifti(data: bytes) -> Spacing | None:
    if data[344:348] != b"n+1\0" and data[4:8] != b"n+2\0":
        return None
    import nibabel

    kind: Any = nibabel.Nifti1Header if data[344:348] == b"n+1\0" else nibabel.Nifti2Header
    header = kind.from_fileobj(io.BytesIO(data), check=False)
    unit = MM_OF_UNIT.get(header.get_xyzt_units()[0])
    along = zip(header.get_data_shape(), header.get_zooms(), strict=True)
    sides = [float(zoom) for length, zoom in along if length > 1]
    return None if unit is None or (found := _sides([side * unit for side in sides])) is None else Spacing(found)


def _sides(values: Sequence[Any]) -> tuple[float, float] | None:
    """Two plausible lengths, or None.

    >>> _sides(("0.2", "0.25")), _sides((0.0, 1.0)), _sides((1.0,))
    ((0.2, 0.25), None, None)
    """
    if len(values) != 2:
        return None
    first, second = float(values[0]), float(values[1])
    return (first, second) if all(math.isfinite(side) and 0 < side <= LARGEST_MM for side in (first, second)) else None
