"""Images that nobody has outlined or labelled: an error, unless the task has dual distillation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ayni.cli_data import data_app
from ayni.data.check import DataReport, MaskReport, check_data
from ayni.data.masks import load_segmented
from ayni.data.pairs import check_complete, find_pairs
from ayni.data.read import load_images
from ayni.errors import DataError
from ayni.task import ImageSettings

GREY_8 = ImageSettings(height=8, width=8)


def grey(value: int, side: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((side, side), value, np.uint8)


@pytest.fixture
def outlined(tmp_path: Path) -> Path:
    """a and c have a mask, b and d have none."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number, name in enumerate("abcd", start=1):
        Image.fromarray(grey(10 * number)).save(tmp_path / "images" / f"{name}.png")
    for name in "ac":
        Image.fromarray(grey(1)).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for number in range(1, 6):
        Image.fromarray(grey(10 * number)).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text("file,label\n1.png,well\n2.png,\n3.png,sick\n4.png, \n5.png,well\n")
    return tmp_path


def test_images_without_a_mask_come_apart_from_the_others(outlined: Path) -> None:
    loaded = load_segmented(outlined, GREY_8, ("x",), unlabelled=True)
    assert loaded.names == ("a.png", "c.png")
    assert loaded.pixels_NHWC[:, 0, 0, 0].tolist() == [10, 30]
    assert loaded.unlabelled.shape == (2, 8, 8, 1)
    assert loaded.unlabelled[:, 0, 0, 0].tolist() == [20, 40]


def test_they_are_an_error_for_other_tasks_and_the_error_says_what_they_are_good_for(outlined: Path) -> None:
    told = r"^b\.png, d\.png in .*images: no mask of that name .* good only for a task with dual distillation"
    with pytest.raises(DataError, match=told):
        load_segmented(outlined, GREY_8, ("x",))
    with pytest.raises(DataError, match=told):
        check_complete(outlined, find_pairs(outlined))
    check_complete(outlined, find_pairs(outlined), unlabelled=True)
    Image.fromarray(grey(1)).save(outlined / "masks" / "lost.png")
    with pytest.raises(DataError, match=r"lost\.png in .*masks: no image"):
        load_segmented(outlined, GREY_8, ("x",), unlabelled=True)


def test_they_must_be_of_the_tasks_size_too(outlined: Path) -> None:
    Image.fromarray(grey(1, 9)).save(outlined / "images" / "d.png")
    with pytest.raises(DataError, match=r"images/d\.png is 9 x 9 pixels"):
        load_segmented(outlined, GREY_8, ("x",), unlabelled=True)


def test_some_must_be_outlined_or_labelled(outlined: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for mask in (outlined / "masks").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match="no image has a mask"):
        load_segmented(outlined, GREY_8, ("x",), unlabelled=True)
    other = tmp_path_factory.mktemp("other")
    Image.fromarray(grey(1)).save(other / "1.png")
    (other / "labels.csv").write_text("file,label\n1.png,\n")
    with pytest.raises(DataError, match="no image has a label"):
        load_images(other, GREY_8, ("well", "sick"), unlabelled=True)


def test_lines_without_a_label_are_unlabelled_images(labelled: Path) -> None:
    loaded = load_images(labelled, GREY_8, ("well", "sick"), unlabelled=True)
    assert (loaded.names, loaded.labels_N.tolist()) == (("1.png", "3.png", "5.png"), [0, 1, 0])
    assert loaded.unlabelled[:, 0, 0, 0].tolist() == [20, 40]
    with pytest.raises(
        DataError, match=r"labels\.csv, line 3: the file or the label is missing\. .* dual distillation"
    ):
        load_images(labelled, GREY_8, ("well", "sick"))
    (labelled / "labels.csv").write_text("file,label\n1.png,well\n,\n")
    with pytest.raises(DataError, match="line 3: the file or the label is missing"):
        load_images(labelled, GREY_8, ("well", "sick"), unlabelled=True)


@pytest.mark.parametrize("truth", ["labels", "masks"])
def test_an_npz_brings_them_in_an_array_of_their_own(tmp_path: Path, truth: str) -> None:
    truths = np.array([0, 1]) if truth == "labels" else np.ones((2, 8, 8), np.uint8)
    arrays = {"images": np.stack([grey(1), grey(2)]), truth: truths, "unlabelled_images": np.stack([grey(3)] * 5)}
    np.savez(tmp_path / "dataset.npz", **arrays)  # type: ignore[arg-type]
    load: Any = load_images if truth == "labels" else load_segmented
    assert load(tmp_path, GREY_8, ("a", "b")).unlabelled.shape == (0, 8, 8, 1)
    unlabelled = load(tmp_path, GREY_8, ("a", "b"), unlabelled=True).unlabelled
    assert (unlabelled.shape, int(unlabelled.min())) == ((5, 8, 8, 1), 3)
    report = check_data(tmp_path)
    assert (report.num_images, report.num_unlabelled, report.usable) == (2, 5, True)
    assert any("5 images without a" in warning for warning in report.warnings)


def test_the_check_counts_them_and_says_what_they_are_good_for(outlined: Path) -> None:
    report = check_data(outlined)
    assert isinstance(report, MaskReport)
    assert (report.num_images, report.num_unlabelled) == (2, 2)
    assert report.images_without_mask == ["b.png", "d.png"]
    assert report.warnings[0].startswith("2 images without a mask: good only for a task with dual distillation")
    assert not report.usable
    allowed = check_data(outlined, unlabelled=True)
    assert allowed.usable
    assert allowed.sizes == {"8 x 8, grey": 4}
    assert allowed.warnings == ["only 2 images with masks; fewer than 4 teach little."]  # beside a teacher
    (outlined / "images" / "b.png").write_bytes(b"cut")
    Image.fromarray(grey(10)).save(outlined / "images" / "d.png")
    bad = check_data(outlined, unlabelled=True)
    assert ([one.file for one in bad.unreadable], bad.duplicates) == (["images/b.png"], [["a.png", "d.png"]])
    assert any("1 images occur with a mask and without" in warning for warning in bad.warnings)
    assert not bad.usable


def test_the_check_lists_lines_without_a_label(labelled: Path) -> None:
    report = check_data(labelled)
    assert isinstance(report, DataReport)
    assert (report.num_images, report.num_unlabelled, report.unlabelled) == (3, 2, ["2.png", "4.png"])
    assert report.num_per_class == {"well": 2, "sick": 1}
    assert not report.usable
    assert check_data(labelled, unlabelled=True).usable


def test_the_command_says_so_and_ends_with_two_unless_they_are_allowed(outlined: Path) -> None:
    run = CliRunner().invoke
    refused, allowed = run(data_app, ["check", str(outlined)]), run(data_app, ["check", str(outlined), "--unlabelled"])
    assert (refused.exit_code, allowed.exit_code) == (2, 0)
    assert "image without a mask: b.png" in refused.output
    assert "without a mask: 2\n" in allowed.output
    assert "usable for training" in allowed.output
    told = json.loads(run(data_app, ["check", str(outlined), "--unlabelled", "--json"]).output)
    assert (told["num_unlabelled"], told["unlabelled_allowed"]) == (2, True)
