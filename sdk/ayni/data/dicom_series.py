"""One DICOM series, a folder of slices, to a volume. Needs pydicom, which is imported only when such a folder comes."""

from __future__ import annotations

from pathlib import Path

from ayni.data.eight_bits import UnreadableError, Values
from ayni.data.nifti import Grid


def read_series(folder: Path, *, allow_burned_in: bool) -> tuple[Values, Grid]:
    """Voxels [X, Y, Z]: columns, rows, slices along their normal. Raises UnreadableError, or what pydicom raises."""
    raise UnreadableError(f"{folder} is a folder, and folders of DICOM slices are not read yet.")
