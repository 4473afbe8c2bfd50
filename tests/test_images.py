"""The image reader: real files in every format, written here and read back."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from ayni.data.eight_bits import to_eight_bits
from ayni.data.images import read_image
from ayni.errors import DataError
from image_files import COLOUR, RAMP, dicom, save_dicom


@pytest.mark.parametrize("pixels", [RAMP, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("suffix", [".png", ".npy", ".dcm"])
def test_eight_bit_pixels_come_back_exactly(tmp_path: Path, suffix: str, pixels: np.ndarray[Any, Any]) -> None:
    path = tmp_path / f"image{suffix}"
    if suffix == ".png":
        Image.fromarray(pixels).save(path)
    elif suffix == ".npy":
        np.save(path, pixels)
    else:
        save_dicom(path, dicom(pixels))
    expected = pixels if pixels.ndim == 3 else pixels[:, :, None]
    assert read_image(path).tolist() == expected.tolist()


def test_a_large_colour_picture_is_copied_once(tmp_path: Path) -> None:
    Image.new("RGB", (1000, 1000), (10, 20, 30)).save(tmp_path / "large.jpg")
    read_image(tmp_path / "large.jpg")  # imports are done
    tracemalloc.start()
    pixels = read_image(tmp_path / "large.jpg")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pixels.nbytes == 3_000_000
    assert peak_bytes < 1.5 * pixels.nbytes  # itself, and some rows; Pillow's own copy is not counted


def test_a_jpeg_is_read_and_turned_as_its_exif_says(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    upright = np.zeros((16, 32), np.uint8)
    upright[:, 16:] = 255  # dark left, bright right
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    Image.fromarray(upright).save(path, exif=exif, quality=95)
    pixels = read_image(path)
    assert pixels.shape == (32, 16, 1)
    assert pixels[4].mean() < 20
    assert pixels[28].mean() > 235


def test_what_a_file_is_its_bytes_say_and_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    Image.fromarray(RAMP).save(path, format="PNG")
    assert read_image(path)[:, :, 0].tolist() == RAMP.tolist()


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_sixteen_bits_are_scaled_from_minimum_and_maximum(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[1000, 1500], [1750, 2000]], np.uint16)
    path = tmp_path / f"deep{suffix}"
    if suffix == ".png":
        Image.fromarray(deep).save(path)
    else:
        np.save(path, deep)
    assert read_image(path)[:, :, 0].tolist() == [[0, 128], [191, 255]]  # 127.5 and 191.25, rounded


def test_floats_are_scaled_whatever_their_range() -> None:
    assert to_eight_bits(np.array([[-1.7e308, 0.0, 1.7e308]])).tolist() == [[0, 128, 255]]
    assert to_eight_bits(np.array([[5e-324, 0.0]])).tolist() == [[0, 0]]  # a range too small to divide by
    assert to_eight_bits(np.full((1, 2), 7.0)).tolist() == [[0, 0]]
    assert to_eight_bits(np.array([[False, True]])).tolist() == [[0, 255]]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_slice_is_shown_with_the_right_of_the_patient_at_the_left_and_the_front_at_the_top(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"slice{suffix}"
    to_right_and_front = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)  # [right, front]
    nibabel.save(nibabel.Nifti1Image(to_right_and_front[:, :, None], np.eye(4)), path)
    assert read_image(path)[:, :, 0].tolist() == [[60, 30], [50, 20], [40, 10]]


def test_a_nifti_image_that_does_not_say_how_it_lies_is_not_turned(tmp_path: Path) -> None:
    path = tmp_path / "plain.nii"
    nibabel.save(nibabel.Nifti1Image(RAMP.T, None), path)  # [columns, rows]
    assert read_image(path)[:, :, 0].tolist() == RAMP.tolist()


@pytest.mark.parametrize("shape", [(1, 8, 9), (8, 1, 9), (8, 9, 1), (8, 9, 1, 1), (8, 9)])
def test_a_single_nifti_slice_may_lie_along_any_axis(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "slice.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path)
    assert read_image(path).shape == (9, 8, 1)


def test_a_volume_is_refused_and_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 9, 10), np.int16), np.eye(4)), path)
    with pytest.raises(DataError, match=r"volume\.nii\.gz.*volume of shape \[8, 9, 10\].*one slice per file"):
        read_image(path)


def test_a_dicom_window_sets_black_and_white(tmp_path: Path) -> None:
    deep = np.array([[0, 1000, 1400, 2000, 4000]], np.uint16)
    dataset = dicom(deep, WindowCenter="1500", WindowWidth="1000", VOILUTFunction="LINEAR_EXACT")
    pixels = read_image(save_dicom(tmp_path / "x.dcm", dataset))
    assert pixels[0, :, 0].tolist() == [0, 0, 102, 255, 255]  # (1400 - 1000) / 1000 * 255


def test_a_voi_lookup_table_is_applied(tmp_path: Path) -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor = [4, 0, 8]  # four entries from value 0 on, eight bits each
    item.LUTData = [0, 50, 100, 255]
    item["LUTDescriptor"].VR = "US"
    item["LUTData"].VR = "US"
    dataset = dicom(np.array([[0, 1, 2, 9]], np.uint16), VOILUTSequence=[item])
    pixels = read_image(save_dicom(tmp_path / "x.dcm", dataset))
    assert pixels[0, :, 0].tolist() == [0, 50, 100, 255]


def test_eight_bits_stay_as_they_are_though_the_header_gives_them_a_unit(tmp_path: Path) -> None:
    dataset = dicom(RAMP, RescaleSlope="1", RescaleIntercept="0")
    assert read_image(save_dicom(tmp_path / "x.dcm", dataset))[:, :, 0].tolist() == RAMP.tolist()


def test_a_negative_slope_turns_black_and_white(tmp_path: Path) -> None:
    dataset = dicom(np.array([[0, 1000, 2000]], np.uint16), RescaleSlope="-1", RescaleIntercept="2000")
    assert read_image(save_dicom(tmp_path / "x.dcm", dataset))[0, :, 0].tolist() == [255, 128, 0]


def test_a_large_image_is_scaled_as_a_small_one(tmp_path: Path) -> None:
    deep = np.arange(1024 * 1024, dtype=np.uint32).reshape(1024, 1024)  # four blocks of rows
    np.save(tmp_path / "x.npy", deep)
    expected = np.floor(deep / (2**20 - 1) * 255 + 0.5)
    assert (read_image(tmp_path / "x.npy")[:, :, 0] == expected).all()
    dataset = dicom(
        (deep // 64).astype(np.uint16), WindowCenter="4096", WindowWidth="8192", VOILUTFunction="LINEAR_EXACT"
    )
    expected = np.floor(np.minimum(deep // 64 / 8192, 1) * 255 + 0.5)
    assert (read_image(save_dicom(tmp_path / "x.dcm", dataset))[:, :, 0] == expected).all()


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    dataset = dicom(RAMP, PhotometricInterpretation="MONOCHROME1")
    assert read_image(save_dicom(tmp_path / "x.dcm", dataset))[:, :, 0].tolist() == (255 - RAMP).tolist()


def test_a_compressed_dicom_image_is_read(tmp_path: Path) -> None:
    dataset = dicom(np.tile(RAMP, (4, 4)))
    dataset.compress(RLELossless)
    pixels = read_image(save_dicom(tmp_path / "x.dcm", dataset))
    assert pixels[:, :, 0].tolist() == np.tile(RAMP, (4, 4)).tolist()


def test_text_burned_into_a_dicom_image_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "x.dcm", dicom(RAMP, BurnedInAnnotation="YES"))
    with pytest.raises(DataError, match=r"x\.dcm.*burned into"):
        read_image(path)
    assert read_image(path, allow_burned_in=True).shape == (3, 4, 1)


def test_files_that_are_no_single_image_are_refused_with_the_next_step(tmp_path: Path) -> None:
    frames = dicom(RAMP, NumberOfFrames=2)
    frames.PixelData = RAMP.tobytes() * 2
    save_dicom(tmp_path / "frames.dcm", frames)
    empty = dicom(RAMP)
    del empty.PixelData
    save_dicom(tmp_path / "report.dcm", empty)
    deflated = dicom(RAMP)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save_dicom(tmp_path / "deflated.dcm", deflated)
    (tmp_path / "empty.png").touch()
    (tmp_path / "letter.png").write_text("Dear colleague, ...")
    np.save(tmp_path / "volume.npy", np.zeros((5, 6, 7), np.uint8))
    np.save(tmp_path / "holes.npy", np.array([[1.0, np.nan]]))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "pickle.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    Image.fromarray(RAMP).save(tmp_path / "moving.png", save_all=True, append_images=[Image.fromarray(RAMP + 1)])
    clear = Image.fromarray(COLOUR).convert("RGBA")
    clear.putalpha(100)
    clear.save(tmp_path / "clear.png")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {
        "frames.dcm": "2 frames",
        "report.dcm": "no picture",
        "deflated.dcm": "uncompressed",
        "empty.png": "is empty",
        "letter.png": "no image of a known kind",
        "volume.npy": r"\[5, 6, 7\]",
        "holes.npy": "not finite",
        "words.npy": "not numbers",
        "pickle.npy": "not numbers",
        "moving.png": "animation",
        "clear.png": "transparent",
        "folder": "is a folder",
        "pipe.png": "not a plain file",
        "missing.png": "there is no file",
        "nul\0.png": "there is no file|cannot be read",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason) as raised:
            read_image(tmp_path / name)
        assert name in str(raised.value)
