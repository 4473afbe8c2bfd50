"""NIfTI volumes as they come: which way round they lie, their numbers, and what is refused. nibabel is the judge."""

from __future__ import annotations

import gzip
import itertools
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ayni.data.volumes import back_to_file, check_same_grid, read_label_map, read_volume
from ayni.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
TURNS = [(order, ways) for order in itertools.permutations(range(3)) for ways in itertools.product((1, -1), repeat=3)]


def some_voxels(shape: tuple[int, ...] = (4, 5, 6), dtype: Any = np.int16) -> Array:
    return np.random.default_rng(3).integers(0, 200, shape).astype(dtype)


def saved(path: Path, values: Array, affine: Array | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def turned_affine(order: tuple[int, ...], ways: tuple[int, ...]) -> Array:
    """File axis k runs along `order[k]`, at 1, 2 or 3 mm a voxel, tilted a little."""
    affine = np.zeros((4, 4))
    for axis, (to, way) in enumerate(zip(order, ways, strict=True)):
        affine[to, axis] = way * (axis + 1.0)
    affine[:, 3] = (-7, 5, 11, 1)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    return np.asarray(tilt @ affine)


@pytest.mark.parametrize(("order", "ways"), TURNS)
def test_every_turn_of_a_file_ends_as_nibabels_canonical_and_goes_back(
    tmp_path: Path, order: tuple[int, ...], ways: tuple[int, ...]
) -> None:
    values_XYZ, affine = some_voxels(), turned_affine(order, ways)
    volume = read_volume(saved(tmp_path / "v.nii", values_XYZ, affine))
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values_XYZ, affine))
    assert np.array_equal(volume.values_DHW, np.asarray(canonical.dataobj).transpose(2, 1, 0))
    assert volume.spacing_mm == pytest.approx(canonical.header.get_zooms()[::-1], rel=1e-5)
    assert np.allclose(volume.turned_affine, canonical.affine, atol=1e-4)
    assert np.allclose(volume.affine, affine, atol=1e-5)
    assert volume.file_shape == values_XYZ.shape
    back = back_to_file(volume.values_DHW.astype(np.float32)[np.newaxis], volume)
    assert back.dtype == np.float32
    assert np.array_equal(back[0], values_XYZ)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", ">u2", "i4", "f4", ">f4", "f8", "i8"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_numbers_of_every_kind_come_as_nibabel_reads_them(tmp_path: Path, dtype: str, ending: str, kind: Any) -> None:
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(np.dtype(dtype).newbyteorder("="))
    nibabel.save(kind(some_voxels(dtype=dtype), np.eye(4), header), tmp_path / f"v{ending}")
    values_DHW = read_volume(tmp_path / f"v{ending}").values_DHW
    assert np.array_equal(values_DHW, nibabel.load(tmp_path / f"v{ending}").get_fdata().transpose(2, 1, 0))
    assert values_DHW.dtype.isnative
    assert values_DHW.dtype.itemsize <= 4


def test_a_headers_scale_counts_and_notes_before_the_voxels_do_not(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(some_voxels(), np.eye(4))
    image.header.set_slope_inter(-0.5, 100)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"taken on a Tuesday" * 99))
    nibabel.save(image, tmp_path / "v.nii.gz")
    stored = nibabel.load(tmp_path / "v.nii.gz")
    assert (stored.dataobj.slope, stored.dataobj.inter) == (-0.5, 100)
    values_DHW = read_volume(tmp_path / "v.nii.gz").values_DHW
    assert values_DHW.dtype == np.float32
    assert np.array_equal(values_DHW, stored.get_fdata().transpose(2, 1, 0))


def test_lengths_in_micrometres_are_told_in_millimetres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(some_voxels(), np.diag([500.0, 1000.0, 2000.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "v.nii")
    assert read_volume(tmp_path / "v.nii").spacing_mm == pytest.approx((2, 1, 0.5))


def test_a_file_that_does_not_say_where_the_patients_right_is_is_known_as_such(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(some_voxels(), None), tmp_path / "v.nii")
    assert not read_volume(tmp_path / "v.nii").is_oriented
    assert read_volume(saved(tmp_path / "w.nii", some_voxels())).is_oriented


def with_bytes(path: Path, place: int, data: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[place : place + len(data)] = data
    path.write_bytes(whole)


def write_bad(path: Path, what: str) -> None:
    values = some_voxels()
    if what in ("four", "single"):
        saved(path, some_voxels((4, 5, 6, 2) if what == "four" else (4, 5, 1)))
    elif what == "nan":
        saved(path, np.where(values == values.max(), np.nan, values).astype(np.float32))
    elif what == "colour":
        saved(path, np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    elif what in ("flat", "slanted"):
        affine = np.eye(4)
        affine[:2, 1] = (1, 0) if what == "flat" else (0.2, 1)
        saved(path, values, affine)
    elif what == "no size":
        saved(path, values)
        with_bytes(path, 280, bytes(48))  # the rows of the sform
    elif what == "huge":
        saved(path, values)
        with_bytes(path, 42, np.array([30000, 30000, 30000], np.int16).tobytes())
    elif what == "far":
        saved(path, values)
        with_bytes(path, 108, np.array([1e9], np.float32).tobytes())
    elif what == "picture":
        Image.fromarray(values[0].astype(np.uint8)).save(path, format="PNG")
    elif what == "empty":
        path.write_bytes(b"")
    else:
        saved(path, values)
        whole = path.read_bytes() if what == "cut" else gzip.compress(path.read_bytes())
        path.write_bytes(whole[:-100])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("four", r"4 dimensions, of \[4, 5, 6, 2\]\. Save one volume per file"),
        ("single", r"single slice, of shape \[4, 5, 1\]\. Give the whole volume"),
        ("nan", "not finite"),
        ("colour", "not numbers of grey"),
        ("flat", "not at right angles"),
        ("slanted", "not at right angles"),
        ("no size", r"voxels of 0 x 0 x 0 mm\. Export it with its true ones"),
        ("huge", "claims 27000000000000 voxels"),
        ("far", "the voxels begin at byte 1000000000"),
        ("picture", r"no volume of a known kind\. Give NIfTI, or a folder of DICOM slices"),
        ("empty", r"is empty\. Copy or export it again"),
        ("cut", "is cut off"),
        ("cut gz", r"is cut off\. Copy or export it again"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_next_step(tmp_path: Path, what: str, message: str) -> None:
    write_bad(tmp_path / "v.nii", what)
    with pytest.raises(DataError, match=rf"v\.nii.*{message}"):
        read_volume(tmp_path / "v.nii")


def test_a_file_that_is_not_there_and_a_folder_without_slices_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*gone\.nii"):
        read_volume(tmp_path / "gone.nii")
    with pytest.raises(DataError, match=r"holds 0 DICOM slices.* volumes as NIfTI are named file by file"):
        read_volume(tmp_path)


@settings(max_examples=150)
@given(st.data())
def test_whatever_is_damaged_in_a_file_is_an_error_of_the_data_or_none(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder) / "v.nii", some_voxels())
        whole = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, 360))] = data.draw(st.integers(0, 255))
        whole = whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))]
        path.write_bytes(gzip.compress(whole) if data.draw(st.booleans()) else whole)
        with suppress(DataError):
            read_volume(path)


def test_a_label_map_keeps_its_numbers_and_must_have_whole_ones(tmp_path: Path) -> None:
    values = some_voxels(dtype=np.float32)
    labels = read_label_map(saved(tmp_path / "m.nii.gz", values)).values_DHW
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, values.transpose(2, 1, 0))
    values[1, 2, 3] = 300
    assert read_label_map(saved(tmp_path / "m.nii.gz", values)).values_DHW.max() == 300
    values[1, 2, 3] = 0.5
    with pytest.raises(DataError, match="more than whole numbers"):
        read_label_map(saved(tmp_path / "m.nii.gz", values))
    with pytest.raises(DataError, match=r"is a folder\. Give one NIfTI file"):
        read_label_map(tmp_path)


def test_a_mask_that_is_turned_otherwise_fits_its_image_if_it_lies_in_the_same_place(tmp_path: Path) -> None:
    affine = turned_affine((0, 1, 2), (1, 1, 1))
    image = nibabel.Nifti1Image(some_voxels(), affine)
    other = image.as_reoriented(nibabel.orientations.axcodes2ornt(("P", "S", "L")))
    assert other.shape == (6, 4, 5)
    nibabel.save(image, tmp_path / "i.nii")
    nibabel.save(other, tmp_path / "m.nii")
    first, second = read_volume(tmp_path / "i.nii"), read_volume(tmp_path / "m.nii")
    check_same_grid(first, second, "i.nii", "m.nii")
    assert np.array_equal(first.values_DHW, second.values_DHW)


def test_a_mask_of_another_size_or_in_another_place_is_refused(tmp_path: Path) -> None:
    image = read_volume(saved(tmp_path / "i.nii", some_voxels()))
    cut = read_volume(saved(tmp_path / "c.nii", some_voxels((4, 5, 5))))
    with pytest.raises(DataError, match=r"i\.nii has 6 x 5 x 4 voxels .* its mask c\.nii 5 x 5 x 4"):
        check_same_grid(image, cut, "i.nii", "c.nii")
    moved = np.diag([1.0, 2.0, 3.0, 1.0])
    moved[2, 3] = 1.5
    with pytest.raises(DataError, match=r"mask m\.nii lies up to 1\.5 mm from where its image i\.nii does"):
        check_same_grid(image, read_volume(saved(tmp_path / "m.nii", some_voxels(), moved)), "i.nii", "m.nii")
    rounded = np.diag([1.004, 2.0, 3.0, 1.0])  # three voxels farther: 0.012 mm
    check_same_grid(image, read_volume(saved(tmp_path / "r.nii", some_voxels(), rounded)), "i.nii", "r.nii")
