"""Areas in mm², from real DICOM and NIfTI files, worked out by hand; and none where the file does not say enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from ayni_export.diagnose import diagnose
from ayni_export.report import entry
from ayni_export.segmentation import Segmentation
from ayni_export.spacing import Spacing, read_spacing
from image_files import dicom, save_dicom
from outlining_by_hand import bright_and_dark

PIXELS = np.zeros((32, 32), np.uint8)
PIXELS[3:13, 5:25] = 255  # 200 pixels


def outlined(path: Path) -> tuple[Segmentation, dict[str, Any]]:
    bundle = bright_and_dark()
    (answer,) = diagnose(bundle, [path])
    assert isinstance(answer, Segmentation), answer
    made = entry(bundle, answer, 1, ("masks/a.png", "masks/b.png"))
    bright = made.reported.structures["bright"]
    return answer, {"mm2": bright.area_mm2, "reported": made.reported, "section": made.section}


def test_pixel_spacing_gives_the_area_in_the_patient(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "ct.dcm", dicom(PIXELS, PixelSpacing=["0.5", "0.25"]))
    _, told = outlined(path)
    assert told["mm2"] == 25.0  # 200 pixels of 0.5 x 0.25 mm
    assert told["reported"].pixel_mm == (0.5, 0.25)
    assert not told["reported"].pixel_mm_on_detector
    assert "200 pixels · 19.5 % of the image · 25 mm²" in told["section"]
    assert "detector" not in told["section"]


@pytest.mark.parametrize("tags", [{}, {"PixelSpacing": ["0.2", "0.2"]}], ids=["imager alone", "the same twice"])
def test_without_a_calibration_the_area_is_that_on_the_detector_and_says_so(
    tmp_path: Path, tags: dict[str, Any]
) -> None:
    path = save_dicom(tmp_path / "dx.dcm", dicom(PIXELS, ImagerPixelSpacing=["0.2", "0.2"], **tags))
    _, told = outlined(path)
    assert told["mm2"] == pytest.approx(8.0)  # 200 x 0.2 x 0.2
    assert told["reported"].pixel_mm_on_detector
    assert "that on the detector: the body part itself is smaller" in told["section"]


def test_a_calibrated_pixel_spacing_counts_before_the_detectors(tmp_path: Path) -> None:
    tags = {"ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.16", "0.16"]}
    assert read_spacing(save_dicom(tmp_path / "dx.dcm", dicom(PIXELS, **tags))) == Spacing((0.16, 0.16))


@pytest.mark.parametrize("value", [["0", "0.2"], ["-1", "1"], ["2000", "1"]])
def test_a_spacing_that_cannot_be_is_none(tmp_path: Path, value: list[str]) -> None:
    answer, told = outlined(save_dicom(tmp_path / "x.dcm", dicom(PIXELS, PixelSpacing=value)))
    assert answer.spacing is None
    assert told["mm2"] is None
    assert "mm²" not in told["section"]


def nifti(path: Path, shape: tuple[int, ...], sides: tuple[float, ...], unit: str | None) -> Path:
    image = nibabel.Nifti1Image(PIXELS.T.reshape(shape), np.diag([*sides, 1.0]))
    if unit is not None:
        image.header.set_xyzt_units(xyz=unit)
    image.to_filename(path)
    return path


@pytest.mark.parametrize(
    ("name", "unit", "shape", "sides", "mm2"),
    [
        ("a.nii", "mm", (32, 32, 1), (0.5, 2.0, 7.0), 200.0),
        ("b.nii.gz", "mm", (32, 1, 32), (0.5, 7.0, 3.0), 300.0),  # a slice the other way: 7 mm is its thickness
        ("c.nii", "micron", (32, 32, 1), (500.0, 500.0, 1.0), 50.0),
        ("d.nii", None, (32, 32, 1), (0.5, 2.0, 7.0), None),  # of which unit, nobody knows
    ],
)
def test_a_nifti_slice_is_measured_along_itself_if_its_unit_is_known(
    tmp_path: Path, name: str, unit: str | None, shape: tuple[int, ...], sides: tuple[float, ...], mm2: float | None
) -> None:
    answer, told = outlined(nifti(tmp_path / name, shape, sides, unit))
    assert answer.structures[0].num_pixels == 200
    assert told["mm2"] == (None if mm2 is None else pytest.approx(mm2))


def test_a_pictures_resolution_is_of_a_print_and_not_of_a_patient(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(300, 300))
    assert read_spacing(tmp_path / "a.png") is None


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1f\x8bnot packed", b"\0" * 128 + b"DICM" + b"\xff" * 40])
def test_no_bytes_make_the_reading_of_a_spacing_fail(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert read_spacing(tmp_path / "x") is None
    assert read_spacing(tmp_path / "missing") is None
