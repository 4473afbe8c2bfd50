"""The image reader on damaged and hostile files: a DataError, and nothing else."""

from __future__ import annotations

import gzip
import io
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import RLELossless

from ayni.data.eight_bits import MAX_PIXELS
from ayni.data.images import read_image
from ayni.errors import DataError
from image_files import COLOUR, RAMP, dicom, save_dicom


def test_sizes_are_bounded_before_memory_is_taken(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 2**40)})
    (tmp_path / "lie.npy").write_bytes(header.getvalue() + b"12")
    nifti = nibabel.Nifti1Header()
    nifti.set_data_dtype(np.float64)
    nifti.set_data_shape((30000, 30000, 1))
    nifti["vox_offset"] = 352
    (tmp_path / "lie.nii").write_bytes(nifti.binaryblock[:344] + b"n+1\0" + b"\0" * 100)
    lie = dicom(RAMP)
    lie.Rows = lie.Columns = 60000
    save_dicom(tmp_path / "lie.dcm", lie)
    Image.new("1", (9000, MAX_PIXELS // 9000 + 1)).save(tmp_path / "bomb.png")
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(b"\0" * (2**28 + 1), 1))
    for name, reason in {
        "lie.npy": "promises another length",
        "lie.nii": "900000000 pixels",
        "lie.dcm": "3600000000 pixels",
        "bomb.png": "pixels",
        "bomb.nii.gz": "unpacks to more",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / name)


def _seeds() -> list[bytes]:
    """One real file of each format."""
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        Image.fromarray(RAMP).save(at / "a.png")
        Image.fromarray(COLOUR).save(at / "b.jpg")
        np.save(at / "c.npy", RAMP.astype(np.float32))
        nibabel.save(nibabel.Nifti1Image(RAMP[:, :, None], np.eye(4)), at / "d.nii")
        nibabel.save(nibabel.Nifti2Image(RAMP[:, :, None], np.eye(4)), at / "e.nii.gz")
        save_dicom(at / "f.dcm", dicom(RAMP, WindowCenter="5", WindowWidth="3"))
        compressed = dicom(np.tile(RAMP, (4, 4)))
        compressed.compress(RLELossless)
        save_dicom(at / "g.dcm", compressed)
        return [path.read_bytes() for path in sorted(at.iterdir())]


SEEDS = _seeds()
MAGICS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00", b"\0" * 128 + b"DICM", b"\x1f\x8b\x08"]


def _only_a_data_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(data)
        try:
            pixels = read_image(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MAGICS), st.binary(max_size=600))
def test_no_bytes_raise_anything_but_a_data_error(magic: bytes, data: bytes) -> None:
    _only_a_data_error(magic + data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), st.floats(0, 1))
def test_no_damage_to_a_real_file_raises_anything_but_a_data_error(
    data: bytes, changes: list[tuple[float, int]], kept: float
) -> None:
    damaged = bytearray(data)
    for where, value in changes:
        damaged[int(where * (len(damaged) - 1))] = value
    _only_a_data_error(bytes(damaged[: max(1, int((0.5 + kept) * len(damaged)))]))
