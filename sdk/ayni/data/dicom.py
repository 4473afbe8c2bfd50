"""One DICOM image to eight bits. Needs pydicom, which is imported only when such a file comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ayni.data.eight_bits import Pixels, UnreadableError, Values, by_rows, check_num_pixels, to_eight_bits
from ayni.errors import MissingExtraError

DEFLATED = "1.2.840.10008.1.2.1.99"


def read_dicom(path: Path, *, allow_burned_in: bool) -> Pixels:
    """uint8 [H, W] or [H, W, 3]. Raises UnreadableError or MissingExtraError, or what pydicom raises."""
    try:
        import pydicom
        import pydicom.filereader
    except ImportError:
        raise MissingExtraError("reading DICOM images", "deploy") from None
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DEFLATED:  # pydicom would inflate it without a bound
        raise UnreadableError("it is a deflated DICOM file, which is not read. Export it uncompressed.")
    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise UnreadableError("this DICOM file holds no picture. Export the image itself.")
    if not allow_burned_in and str(dataset.get("BurnedInAnnotation", "NO")).strip().upper() == "YES":
        raise UnreadableError("text is burned into this image and may name the patient. Export it without.")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise UnreadableError(f"it holds {dataset.NumberOfFrames} frames. Save one frame per file.")
    check_num_pixels(int(dataset.Rows) * int(dataset.Columns))
    return _shown(dataset)


def _shown(dataset: Any) -> Pixels:
    """As a viewer would show it."""
    try:
        values = dataset.pixel_array  # YBR is turned to RGB
    except (RuntimeError, NotImplementedError):
        raise UnreadableError("its compression is not read here. Export it uncompressed.") from None
    dataset.PixelData = None  # a copy less in memory
    if int(dataset.SamplesPerPixel) == 3:
        return to_eight_bits(values)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableError(f"its colours ({photometric}) are not read. Export it as grey or RGB.")
    pixels = _grey(values, dataset)
    return np.subtract(255, pixels, dtype=np.uint8) if photometric == "MONOCHROME1" else pixels


def _grey(stored: Values, dataset: Any) -> Pixels:
    """PS3.3 C.11: modality LUT, then VOI LUT or window with its ends at 0 and 255, or minimum and maximum."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    ends = _voi_ends(dataset)
    if ends is not None:
        return by_rows(
            stored,
            lambda rows: to_eight_bits(apply_voi_lut(apply_modality_lut(rows, dataset), dataset), *ends),
        )
    if dataset.get("ModalityLUTSequence") or float(dataset.get("RescaleSlope") or 1) < 0:
        return to_eight_bits(apply_modality_lut(stored, dataset))
    return to_eight_bits(stored)  # another unit changes no grey


def _voi_ends(dataset: Any) -> tuple[float, float] | None:
    """What black and white are after the VOI LUT or window, if there is one."""
    from pydicom.pixels.processing import apply_voi_lut

    if dataset.get("VOILUTSequence"):
        return 0.0, float(2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    if dataset.get("WindowWidth") is None or dataset.get("WindowCenter") is None:
        return None
    with np.errstate(over="ignore"):
        low, high = apply_voi_lut(np.array([-1e12, 1e12]), dataset)
    return float(low), float(high)
