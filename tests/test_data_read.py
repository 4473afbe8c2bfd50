"""Training data from folders, .npz files and torch datasets: the right pixels, or a message that helps."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import TensorDataset

from ayni.data.check import DataReport, check_data
from ayni.data.dataset import store_dataset
from ayni.data.read import load_images
from ayni.errors import DataError
from ayni.task import ImageSettings

GREY_8 = ImageSettings(height=8, width=8)
CLASSES = ("normal", "pneumonia")


def ramp(start: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.arange(start, start + 64, dtype=np.uint8).reshape(8, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(ramp(0)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", ramp(100))
    (tmp_path / "labels.csv").write_text("file,label\na.png,pneumonia\nb.npy,0\n")
    return tmp_path


def test_a_folder_gives_its_pixels_with_labels_by_name_or_number(folder: Path) -> None:
    images = load_images(folder, GREY_8, CLASSES)
    assert images.pixels_NHWC[:, :, :, 0].tolist() == [ramp(0).tolist(), ramp(100).tolist()]
    assert images.labels_N.tolist() == [1, 0]
    assert images.names == ("a.png", "b.npy")


def test_an_unknown_label_is_named_with_its_file_and_the_classes(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\na.png,flu\n")
    with pytest.raises(DataError, match=r"a\.png has the label 'flu'; this task has \['normal', 'pneumonia'\]"):
        load_images(folder, GREY_8, CLASSES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na.png,0\n", "needs the columns 'file' and 'label'"),
        ("file,label\na.png,\n", "line 2: the file or the label is missing"),
        ("file,label\nmissing.png,0\n", r"missing\.png"),
        ("file,label\n", "holds no images"),
        ("", "needs the columns"),
    ],
)
def test_a_wrong_labels_file_says_where(folder: Path, text: str, message: str) -> None:
    (folder / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_images(folder, GREY_8, CLASSES)


def test_a_folder_without_labels_says_how_to_write_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file,label"):
        load_images(tmp_path, GREY_8, CLASSES)


def test_medmnist_parts_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    train, test = np.stack([ramp(0), ramp(1)]), ramp(9)[None]
    np.savez(path, train_images=train, train_labels=[[0], [1]], test_images=test, test_labels=[[1]])
    assert load_images(path, GREY_8, CLASSES).labels_N.tolist() == [0, 1]
    assert load_images(path, GREY_8, CLASSES, "test").pixels_NHWC[0, 0, 0, 0] == 9
    with pytest.raises(DataError, match="'val_images'"):
        load_images(path, GREY_8, CLASSES, "val")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.float32), "labels": [0, 1]}, "must be 8-bit"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": [0]}, "2 images need as many"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": [0, 2]}, "image 1 has the label 2"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": [0.5, 1]}, "whole-number labels"),
        ({"images": np.zeros((1, 9, 8), np.uint8), "labels": [0]}, r"8 x 9.*let the coordinator set image\.resize"),
        ({"images": np.zeros((2, 0, 8), np.uint8), "labels": [0, 1]}, r"\[2, 0, 8\]"),
        ({"images": np.array([{}], dtype=object), "labels": [0]}, "more than plain arrays"),
    ],
)
def test_a_wrong_npz_says_what_is_wrong(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_images(tmp_path / "set.npz", GREY_8, CLASSES)


def test_an_npz_that_promises_more_than_any_memory_is_an_error_of_the_data(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for name in ("images", "labels"):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 59, 8)}  # four exabytes
                np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match="promises arrays larger than"):
        load_images(tmp_path / "set.npz", GREY_8, CLASSES)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut", b"file,label\n"])
def test_a_file_that_is_no_npz_is_an_error_of_the_data(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"is no \.npz file"):
        load_images(tmp_path / "set.npz", GREY_8, CLASSES)


def test_a_torch_dataset_comes_back_as_it_was(tmp_path: Path) -> None:
    import torch

    pixels_NCHW = torch.from_numpy(np.stack([ramp(0), ramp(50)])[:, None] / np.float32(255))
    dataset = TensorDataset(pixels_NCHW, torch.tensor([1, 0]))
    assert store_dataset(dataset, tmp_path / "dataset.npz", GREY_8) == 2
    images = load_images(tmp_path, GREY_8, CLASSES)  # a folder that holds dataset.npz
    assert images.pixels_NHWC[:, :, :, 0].tolist() == [ramp(0).tolist(), ramp(50).tolist()]
    assert images.labels_N.tolist() == [1, 0]


def test_a_normalised_dataset_is_refused_with_the_remedy(tmp_path: Path) -> None:
    import torch

    dataset = TensorDataset(torch.full((1, 1, 8, 8), -1.0), torch.tensor([0]))
    with pytest.raises(DataError, match="do not normalise"):
        store_dataset(dataset, tmp_path / "dataset.npz", GREY_8)


def test_the_check_finds_what_is_wrong_with_a_folder(folder: Path) -> None:
    Image.fromarray(ramp(0)).save(folder / "copy.bmp", format="PNG")
    Image.fromarray(np.zeros((5, 7, 3), np.uint8) + np.array([1, 2, 3], np.uint8)).save(folder / "colour.png")
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "forgotten.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "labels.csv").write_text(
        "file,label\na.png,sick\nb.npy,well\ncopy.bmp,well\ncolour.png,well\nbroken.png,well\ngone.png,sick\n"
    )
    report = check_data(folder)
    assert isinstance(report, DataReport)
    assert report.num_images == 4
    assert report.num_per_class == {"sick": 1, "well": 3}
    assert report.sizes == {"8 x 8, grey": 3, "7 x 5, colour": 1}
    assert report.duplicates == [["a.png", "copy.bmp"]]
    assert [bad.file for bad in report.unreadable] == ["broken.png"]
    assert report.images_without_label == ["forgotten.png"]
    assert report.labels_without_image == ["gone.png"]
    assert "1 images occur under different labels." in report.warnings
    assert "only 1 image of class sick; fewer than 10 teach little." in report.warnings
    assert not report.usable


def test_the_check_counts_every_part_of_an_npz_and_says_which_is_trained_on(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8), dtype=np.uint8)
    labels = np.arange(15) % 2  # 8 of class 0, 7 of class 1
    np.savez(
        tmp_path / "s.npz",
        train_images=images[:15],
        train_labels=labels,
        test_images=images[15:],
        test_labels=labels,
    )
    report = check_data(tmp_path / "s.npz")
    assert isinstance(report, DataReport)
    assert (report.num_images, report.num_per_part) == (30, {"train": 15, "test": 15})
    assert report.num_per_class == {"0": 8, "1": 7}
    assert report.warnings[0] == "only the part train is trained on and counted per class (train: 15, test: 15 images)."
    assert report.usable


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 8, 8), np.uint8), "labels": [0, 0, 0]}, "all images are of one class (0)"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "there is no image to train on"),
        ({"test_images": np.zeros((2, 8, 8), np.uint8), "test_labels": [0, 1]}, "there is no image to train on"),
        (
            {
                "train_images": np.zeros((2, 8, 8), np.uint8),
                "train_labels": [1, 1],
                "val_images": np.zeros((1, 8, 8), np.uint8),
                "val_labels": [0],
            },
            "all images are of one class (1)",
        ),
    ],
)
def test_what_training_refuses_the_check_calls_not_usable_and_says_why(
    tmp_path: Path, arrays: dict[str, object], message: str
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
    report = check_data(tmp_path / "s.npz")
    assert not report.usable
    assert any(message in warning for warning in report.warnings)
