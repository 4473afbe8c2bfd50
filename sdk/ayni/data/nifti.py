"""The voxels of a NIfTI volume as its file has them. Needs nibabel, which is imported only when such a file comes."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from ayni.data.eight_bits import UnreadableError, Values
from ayni.errors import MissingExtraError

MAX_VOXELS = 1 << 28  # 512 x 512 x 1024, more than a CT of the whole body has
MAX_OFFSET = 16 << 20  # where the voxels begin; before them stand a header and notes
CHUNK_BYTES = 1 << 20
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
MAGIC = {b"n+1\0": 344, b"n+2\0": 4}
HEADER_BYTES = 540  # of the longer kind


class Grid:
    """Where the voxels are: `affine` from voxel (x, y, z) of the file to the patient's right, front and head, in
    the file's unit of `unit_mm`. `is_oriented`: whether the file says so, or it is only assumed."""

    def __init__(self, affine: npt.NDArray[np.float64], unit_mm: float, is_oriented: bool) -> None:
        self.affine, self.unit_mm, self.is_oriented = affine, unit_mm, is_oriented


def is_nifti(start: bytes) -> bool:
    """Whether a file begins like one that is not packed."""
    return any(start[place : place + 4] == magic for magic, place in MAGIC.items())


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """What a file holds, whether it is packed or not."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_packed:
            yield file
            return
        with gzip.open(file) as unpacked:
            yield cast(IO[bytes], unpacked)


def is_volume_file(path: Path) -> bool:
    """Whether it is a NIfTI file of more than one slice, whatever else may be wrong with it."""
    try:
        with _opened(path) as file:
            start = file.read(HEADER_BYTES)
        return is_nifti(start) and sum(length > 1 for length in _header(start).get_data_shape()) > 2
    except Exception:  # gzip and nibabel on foreign bytes: whoever reads it in earnest says what is wrong
        return False


def read_nifti(path: Path) -> tuple[Values, Grid]:
    """Voxels [X, Y, Z] of the file's own type, or float32 if it scales them. Raises UnreadableError or
    MissingExtraError, or what gzip and nibabel raise."""
    try:
        with _opened(path) as file:
            return _read(file)
    except EOFError:
        raise UnreadableError("it is cut off. Copy or export it again.") from None


def _read(file: IO[bytes]) -> tuple[Values, Grid]:
    start = file.read(HEADER_BYTES)
    if not is_nifti(start):
        raise UnreadableError("this is no volume of a known kind. Give NIfTI, or a folder of DICOM slices.")
    header = _header(start)
    shape, dtype = _checked_shape(header), header.get_data_dtype()
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise UnreadableError(f"its values are of type {dtype}, not numbers of grey. Save it as 16 bits or float.")
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= MAX_OFFSET:
        raise UnreadableError(f"its header says that the voxels begin at byte {offset:.0f}. Export it again.")
    _skip(file, int(offset) - len(start))
    values = _filled(file, shape, dtype, start[int(offset) :])
    grid = Grid(
        np.asarray(header.get_best_affine(), np.float64),
        MILLIMETRES.get(header.get_xyzt_units()[0], 1.0),
        bool(int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0),
    )
    return _scaled(values, *header.get_slope_inter()), grid


def _header(start: bytes) -> Any:
    """nibabel's header, without the notes that may follow it."""
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError("reading NIfTI volumes", "deploy") from None
    kind = nibabel.Nifti1Header if start[344:348] == b"n+1\0" else nibabel.Nifti2Header
    return kind(binaryblock=start[: kind.sizeof_hdr], check=True)


def _checked_shape(header: Any) -> tuple[int, ...]:
    shape = tuple(int(length) for length in header.get_data_shape())
    if any(length != 1 for length in shape[3:]):
        raise UnreadableError(f"it holds {len(shape)} dimensions, of {list(shape)}. Save one volume per file.")
    if len(shape) < 3 or 1 in shape[:3]:
        raise UnreadableError(f"it is a single slice, of shape {list(shape)}. Give the whole volume.")
    num_voxels = 1
    for length in shape[:3]:
        num_voxels *= max(0, length)
    if not 0 < num_voxels <= MAX_VOXELS:
        raise UnreadableError(f"it claims {num_voxels} voxels; 1 to {MAX_VOXELS} are read. Cut out what matters.")
    return shape[:3]


def _skip(file: IO[bytes], num_bytes: int) -> None:
    """Up to where the voxels begin."""
    while num_bytes > 0:
        read = file.read(min(num_bytes, CHUNK_BYTES))
        if not read:
            raise UnreadableError("it is cut off. Copy or export it again.")
        num_bytes -= len(read)


def _filled(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], begun: bytes) -> Values:
    """The voxels, without a second copy of them in memory."""
    values = np.empty(shape, dtype, order="F")
    room, place = values.reshape(-1, order="F").view(np.uint8).data, 0
    for source in (io.BytesIO(begun), file):
        while place < len(room):
            read = source.read(min(CHUNK_BYTES, len(room) - place))
            if not read:
                break
            room[place : place + len(read)] = read
            place += len(read)
    if place < len(room):
        raise UnreadableError("it is cut off: its header promises more voxels. Copy or export it again.")
    return values


def _scaled(values_XYZ: Values, slope: float | None, intercept: float | None) -> Values:
    """As the header says, slice by slice; 64-bit values, too, become float32."""
    plain = (slope is None or slope == 1.0) and not intercept
    if plain and values_XYZ.dtype.itemsize <= 4 and values_XYZ.dtype.kind != "b":
        return values_XYZ.astype(values_XYZ.dtype.newbyteorder("="), copy=False)
    out = np.empty(values_XYZ.shape, np.float32, order="F")
    for number in range(values_XYZ.shape[2]):
        with np.errstate(over="ignore"):  # infinite then, and refused as such
            scaled = values_XYZ[:, :, number].astype(np.float64) * (1.0 if slope is None else slope)
            out[:, :, number] = scaled + (intercept or 0.0)
    return out
