"""A folder of DICOM slices as one volume: sorted by place, in the patient's axes, and refused where it is no volume."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import nibabel.affines
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from ayni.data.seen import seen_pair
from ayni.data.volumes import back_to_file, check_same_grid, read_volume
from ayni.errors import DataError
from ayni.task import ImageSettings

Array = np.ndarray[Any, np.dtype[Any]]
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # rows to the patient's left, columns to the back
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
TILTED = ((0.96, 0.28, 0.0), (-0.28, 0.96, 0.0))
NUM_SLICES, ROWS, COLUMNS = 5, 6, 4
SERIES = generate_uid()


def at_place(place_mm: Array) -> Array:
    """The value of a voxel tells its place (mm to the left, to the back, to the head)."""
    return np.asarray(1000 + 3 * place_mm[0] - 5 * place_mm[1] + 7 * place_mm[2])


def slice_of(number: int, directions: Any = AXIAL, step_mm: float = 2.5, **changes: Any) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    along_row, along_column = (np.array(direction) for direction in directions)
    origin = np.array([-30.0, 20, 10]) + number * step_mm * np.cross(along_row, along_column)
    dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.Modality = SERIES, 3, "MR"
    dataset.Rows, dataset.Columns, dataset.PixelSpacing = ROWS, COLUMNS, [1.5, 0.5]
    dataset.ImageOrientationPatient = [*along_row, *along_column]
    dataset.ImagePositionPatient = list(origin)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 0.25, 500
    rows, columns = np.indices((ROWS, COLUMNS))
    places = [origin[k] + rows * 1.5 * along_column[k] + columns * 0.5 * along_row[k] for k in range(3)]
    dataset.PixelData = np.rint((at_place(np.array(places)) - 500) / 0.25).astype(np.uint16).tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def write_series(folder: Path, numbers: Any = range(NUM_SLICES), directions: Any = AXIAL, **changes: Any) -> Path:
    """The files' names say nothing of their order."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        name = f"{(number * 7) % 5}-{number}.dcm"
        slice_of(number, directions, **changes).save_as(folder / name, enforce_file_format=True)
    return folder


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, SAGITTAL, TILTED])
def test_every_voxel_lies_where_its_slice_says(tmp_path: Path, directions: Any) -> None:
    volume = read_volume(write_series(tmp_path / "s", directions=directions))
    assert volume.source == "DICOM"
    right_front_head = nibabel.affines.apply_affine(
        volume.turned_affine, np.moveaxis(np.indices(volume.values_DHW.shape[::-1]), 0, -1)
    )  # of every voxel, [W, H, D, 3]
    expected = at_place(np.moveaxis(right_front_head, -1, 0) * np.array([-1, -1, 1]).reshape(3, 1, 1, 1))
    assert np.abs(volume.values_DHW - expected.transpose(2, 1, 0)).max() < 0.2  # stored in quarters
    axes = nibabel.aff2axcodes(volume.turned_affine)
    assert axes == ("R", "A", "S")
    assert volume.file_shape == (COLUMNS, ROWS, NUM_SLICES)
    back = back_to_file(volume.values_DHW[np.newaxis], volume)[0]
    assert np.abs(back[:, 2, 1] - at_place(_file_places(volume.affine, 2, 1))).max() < 0.2


def _file_places(affine: Array, row: int, slice_number: int) -> Array:
    voxels = np.array([[column, row, slice_number, 1] for column in range(COLUMNS)]).T
    return np.asarray(np.diag([-1, -1, 1]) @ (affine @ voxels)[:3])


def test_spacing_is_that_between_slices_rows_and_columns_of_the_patient(tmp_path: Path) -> None:
    assert read_volume(write_series(tmp_path / "a")).spacing_mm == pytest.approx((2.5, 1.5, 0.5))
    coronal = read_volume(write_series(tmp_path / "c", directions=CORONAL))
    assert coronal.spacing_mm == pytest.approx((1.5, 2.5, 0.5))
    sagittal = read_volume(write_series(tmp_path / "s", directions=SAGITTAL))
    assert sagittal.spacing_mm == pytest.approx((1.5, 0.5, 2.5))


def test_a_nifti_mask_of_the_same_place_fits_the_series(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s")
    volume = read_volume(series)
    labels = np.zeros(volume.values_DHW.shape[::-1], np.uint8)
    labels[1:3, 2:4, 1:4] = 1
    nibabel.save(nibabel.Nifti1Image(labels, volume.turned_affine), tmp_path / "m.nii.gz")
    check_same_grid(volume, read_volume(tmp_path / "m.nii.gz"), "s", "m")
    finer = ImageSettings(depth=8, height=16, width=8, spacing_mm=(2.5, 0.75, 0.5))
    pixels, planes = seen_pair(series, tmp_path / "m.nii.gz", finer, ("one",))
    assert (pixels.shape, planes.shape) == ((8, 16, 8, 1), (1, 8, 16, 8))
    assert planes.sum() == labels.sum() * 2
    assert np.argwhere(planes[0]).min(axis=0).tolist() == [1 + 1, 2 + 4, 2 + 1]  # the margin, and where it begins


def test_other_files_and_a_dicomdir_do_not_matter(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s")
    expected = read_volume(series).values_DHW
    (series / "readme.txt").write_text("exported on Tuesday")
    (series / ".DS_Store").write_bytes(b"x")
    directory = slice_of(0, SOPClassUID="1.2.840.10008.1.3.10")
    directory.save_as(series / "DICOMDIR", enforce_file_format=True)
    assert np.array_equal(read_volume(series).values_DHW, expected)


def _two_series(folder: Path) -> None:
    slice_of(9, SeriesInstanceUID=generate_uid(), SeriesNumber=4).save_as(folder / "z.dcm", enforce_file_format=True)


def _change_one(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        slice_of(5, **changes).save_as(folder / "z.dcm", enforce_file_format=True)

    return change


def _moved(folder: Path) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        left, back, head = (float(part) for part in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [left, back + 0.3 * (head - 10), head]
        dataset.save_as(file)


def _deflated(folder: Path) -> None:
    file = next(folder.iterdir())
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    dataset.save_as(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_two_series, r"holds 2 series: series 3 \(MR, 5 files, 0-0\.dcm is one\); series 4 \(MR, 1 files, z\.dcm"),
        (lambda folder: (folder / "4-2.dcm").unlink(), r"slices are missing: 2-1\.dcm and 1-3\.dcm are 5 mm apart, w"),
        (_change_one(step_mm=2.6), r"not evenly spaced: 3-4\.dcm and z\.dcm are 3 mm apart, where others are 2\.5"),
        (_change_one(step_mm=2.0), r"3-4\.dcm and z\.dcm lie at the same place"),
        (_change_one(BurnedInAnnotation="YES"), r"text is burned into z\.dcm and may name the patient"),
        (_change_one(NumberOfFrames=3), r"z\.dcm holds 3 frames\. Save one slice per file"),
        (_change_one(SamplesPerPixel=3), r"z\.dcm is in colour"),
        (_change_one(ImagePositionPatient=None), r"z\.dcm does not say its ImagePositionPatient"),
        (_change_one(directions=CORONAL), r"differ in size, spacing or direction"),
        (_change_one(PixelSpacing=[1.5, 0.6]), r"differ in size, spacing or direction"),
        (_change_one(Rows=7), r"differ in size, spacing or direction"),
        (_change_one(PixelData=None), r"z\.dcm holds no picture"),
        (_change_one(PixelData=b"12"), r"its slice z\.dcm is damaged or cut off"),
        (_moved, r"not at right angles to each other, as with a tilted gantry"),
        (_deflated, r"is a deflated DICOM file"),
        (lambda folder: (folder / "0-0.dcm").write_bytes(b"cut"), r"0-0\.dcm is no DICOM file, or damaged"),
        (lambda folder: [file.unlink() for file in list(folder.iterdir())[1:]], "holds 1 DICOM slices"),
    ],
)
def test_what_is_no_whole_series_is_refused_with_the_next_step(
    tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    series = write_series(tmp_path / "s")
    change(series)
    with pytest.raises(DataError, match=message):
        read_volume(series)


@settings(max_examples=40)
@given(st.data())
def test_whatever_is_damaged_in_a_slice_is_an_error_of_the_data_or_none(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        series = write_series(Path(folder) / "s")
        file = series / "2-1.dcm"
        whole = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, 899)) % len(whole)] = data.draw(st.integers(0, 255))
        file.write_bytes(whole[: data.draw(st.integers(0, 2000))])  # it has some 900
        with suppress(DataError):
            read_volume(series)


def test_burned_in_text_passes_if_it_is_allowed(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", BurnedInAnnotation="YES")
    assert read_volume(series, allow_burned_in=True).values_DHW.shape == (NUM_SLICES, ROWS, COLUMNS)


def test_a_folder_of_folders_holds_no_slices(tmp_path: Path) -> None:
    shutil.move(write_series(tmp_path / "s"), tmp_path / "outer" / "s")
    with pytest.raises(DataError, match=r"holds 0 DICOM slices, .* straight into it"):
        read_volume(tmp_path / "outer")
