"""`ayni data check` on images with masks: what is there, what is missing, and whether training will take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ayni.data.check import MaskReport, check_data
from ayni.data.masks import load_segmented
from ayni.errors import DataError
from ayni.task import ImageSettings


def grey(start: int, height: int = 10, width: int = 10) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.arange(start, start + height * width).astype(np.uint8).reshape(height, width)


def mask(*rows_of_values: int, height: int = 10, width: int = 10) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The first rows are of these values, the others of 0."""
    numbers = np.zeros((height, width), np.uint8)
    for row, value in enumerate(rows_of_values):
        numbers[row] = value
    return numbers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs: value 1 in two rows of ten; 1 in four and 2 in one; nothing; 2 in three."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number, rows in enumerate(((1, 1), (1, 1, 1, 1, 2), (), (2, 2, 2))):
        Image.fromarray(grey(number)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask(*rows)).save(tmp_path / "masks" / f"{number}.png")
    return tmp_path


def report_of(path: Path) -> MaskReport:
    report = check_data(path)
    assert isinstance(report, MaskReport)
    return report


def test_the_check_counts_images_and_mean_area_of_every_value(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_data(folder, lambda done, total: seen.append((done, total)))
    assert isinstance(report, MaskReport)
    assert report.num_images == 4
    assert report.foreground.num_images == 3
    assert report.foreground.mean_share == pytest.approx((0.2 + 0.5 + 0.3) / 3)
    assert {value: found.num_images for value, found in report.mask_values.items()} == {"1": 2, "2": 2}
    assert report.mask_values["1"].mean_share == pytest.approx((0.2 + 0.4) / 2)
    assert report.mask_values["2"].mean_share == pytest.approx((0.1 + 0.3) / 2)
    assert report.empty_masks == ["2.png"]
    assert report.sizes == {"10 x 10, grey": 4}
    assert report.usable
    assert report.warnings == ["only 4 images with masks; fewer than 10 teach little."]
    assert seen[-1] == (4, 4)


def test_the_check_finds_what_is_wrong_with_a_folder(folder: Path) -> None:
    Image.fromarray(grey(50)).save(folder / "images" / "alone.png")
    Image.fromarray(mask(1)).save(folder / "masks" / "lost.png")
    Image.fromarray(grey(0, 10, 12)).save(folder / "images" / "other.png")
    Image.fromarray(mask(1)).save(folder / "masks" / "other.png")
    Image.fromarray(grey(60)).save(folder / "images" / "jpeg.png")
    Image.fromarray(mask(1)).save(folder / "masks" / "jpeg.jpg")
    Image.fromarray(grey(0)).save(folder / "images" / "twin.png")
    Image.fromarray(mask(2)).save(folder / "masks" / "twin.png")
    report = report_of(folder)
    assert report.num_images == 5
    assert report.images_without_mask == ["alone.png"]
    assert report.masks_without_image == ["lost.png"]
    assert report.wrong_sizes == [
        "other.png is 12 x 10 pixels and its mask masks/other.png 10 x 10. A mask must have its image's size: export "
        "both again."
    ]
    assert [bad.file for bad in report.unreadable] == ["masks/jpeg.jpg"]
    assert report.duplicates == [["0.png", "twin.png"]]
    assert "1 images occur with different masks." in report.warnings
    assert not report.usable


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((255, 255), "the values above 0 are not 1, 2, 3"),
        (tuple(range(1, 11)), None),
        ((), "all masks are empty"),
    ],
)
def test_the_check_says_what_the_values_are_good_for(tmp_path: Path, values: tuple[int, ...], told: str | None) -> None:
    images, masks = np.stack([grey(i) for i in range(10)]), np.stack([mask(*values)] * 10)
    np.savez(tmp_path / "set.npz", images=images, masks=masks)
    report = report_of(tmp_path / "set.npz")
    assert [told in warning for warning in report.warnings] == [True] if told else report.warnings == []
    assert report.usable == bool(values)


def test_numbers_of_single_things_are_recognised(tmp_path: Path) -> None:
    numbered = np.arange(100, dtype=np.uint16).reshape(1, 10, 10).repeat(10, axis=0)
    np.savez(tmp_path / "set.npz", images=np.stack([grey(i) for i in range(10)]), masks=numbered)
    report = report_of(tmp_path / "set.npz")
    assert report.foreground.mean_share == pytest.approx(0.99)
    assert any("99 values above 0, as if each thing had its own number" in warning for warning in report.warnings)


def test_only_the_part_train_of_an_npz_counts_and_planes_are_values(tmp_path: Path) -> None:
    planes_NSHW = np.zeros((2, 2, 10, 10), np.uint8)
    planes_NSHW[:, 0, :2], planes_NSHW[:, 1, 1:4] = 1, 1  # one row is both
    np.savez(
        tmp_path / "set.npz",
        train_images=np.stack([grey(0), grey(1)]),
        train_masks=planes_NSHW,
        test_images=grey(9)[None],
        test_masks=np.full((1, 10, 10), 7),
    )
    report = report_of(tmp_path / "set.npz")
    assert (report.num_images, report.num_per_part) == (3, {"train": 2, "test": 1})
    assert {value: found.mean_share for value, found in report.mask_values.items()} == {
        "1": pytest.approx(0.2), "2": pytest.approx(0.3)
    }  # fmt: skip
    assert report.foreground.mean_share == pytest.approx(0.4)
    assert report.warnings[0] == "only the part train is trained on and counted per value (train: 2, test: 1 images)."


def test_what_training_refuses_the_check_calls_not_usable(tmp_path: Path) -> None:
    images = np.stack([grey(0), grey(1)])
    for masks in (np.full((2, 10, 10), -1), np.full((2, 1, 10, 10), 2), np.zeros((2, 10, 10), int)):
        np.savez(tmp_path / "set.npz", images=images, masks=masks)
        assert not report_of(tmp_path / "set.npz").usable
        with pytest.raises(DataError):
            load_segmented(tmp_path / "set.npz", ImageSettings(height=10, width=10), ("x",))


def test_labels_in_a_folder_or_file_make_it_one_for_classification(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\nimages/0.png,a\nimages/1.png,b\n")
    report = check_data(folder)
    assert not isinstance(report, MaskReport)
    assert report.num_per_class == {"a": 1, "b": 1}
