"""The public set from a folder or a .npz file: pixels without labels, or with them, or a message that helps."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from ayni.errors import DataError, UserError
from ayni.task import ImageSettings, Task, TrainingSettings
from ayni.tensors.image_set import ImageSet
from ayni_coordinator.public_set import load_labelled_public_set, load_public_set

TASK = Task(
    name="t",
    title="T",
    classes=("a", "b"),
    image=ImageSettings(height=8, width=8),
    training=TrainingSettings(rounds=1),
)
OUTLINED = msgspec.structs.replace(TASK, kind="segmentation", classes=("left", "right"))
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_a_folder_gives_its_images_by_name_and_an_npz_its_array_without_labels(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    Image.fromarray(RAMP + 1).save(tmp_path / "folder/b.PNG")
    Image.fromarray(RAMP).save(tmp_path / "folder/a.png")
    (tmp_path / "folder/notes.txt").write_text("not an image")
    np.savez(tmp_path / "set.npz", images=np.stack([RAMP, RAMP + 1]))
    for name in ("folder", "set.npz"):
        images = load_public_set(tmp_path / name, TASK)
        assert images.pixels_NHWC[:, :, :, 0].tolist() == [RAMP.tolist(), (RAMP + 1).tolist()]
        assert images.info.shape == (2, 8, 8, 1)


def test_a_set_without_an_image_is_the_users_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 8, 8), np.uint8))
    (tmp_path / "empty").mkdir()
    for name in ("none.npz", "empty"):
        with pytest.raises(UserError, match="holds no image"):
            load_public_set(tmp_path / name, TASK)


def test_what_cannot_be_used_is_named_with_the_remedy(tmp_path: Path) -> None:
    np.savez(tmp_path / "parts.npz", val_images=RAMP[None])
    np.savez(tmp_path / "large.npz", images=np.zeros((1, 9, 8), np.uint8))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    for name, message in (
        ("parts.npz", "needed is 'images'"),
        ("large.npz", r"images\[0\] is 8 x 9 .*Set image\.resize in the task"),
        ("cut.npz", r"is no \.npz file"),
    ):
        with pytest.raises(DataError, match=message):
            load_public_set(tmp_path / name, TASK)


def write_grey(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def first_pixels(images: ImageSet) -> list[int]:
    return [int(value) for value in images.pixels_NHWC[:, 0, 0, 0]]


def test_of_a_labelled_folder_images_without_a_label_follow_those_that_have_one(tmp_path: Path) -> None:
    for value in (10, 20, 30, 40):
        write_grey(tmp_path / f"public/{value}.png", value)
    (tmp_path / "public/labels.csv").write_text("file,label\n40.png,b\n20.png,\n10.png,a\n30.png,1\n")
    images, truth = load_labelled_public_set(tmp_path / "public", TASK)
    assert first_pixels(images) == [40, 10, 30, 20]  # in the order of the lines, the one without a label last
    assert truth.tolist() == [1, 0, 1]
    assert (images.info.name, images.info.shape) == ("public", (4, 8, 8, 1))


def test_of_a_segmentation_images_without_a_mask_follow_those_that_have_one(tmp_path: Path) -> None:
    """A mask's value is the number of a structure: 1 in the left half and 2 in the right of a.png, c.png is empty."""
    for name, value in (("a", 10), ("b", 20), ("c", 30)):
        write_grey(tmp_path / f"images/{name}.png", value)
    write_grey(tmp_path / "masks/c.png", 0)
    halves_HW = np.repeat(np.array([[1] * 4 + [2] * 4], np.uint8), 8, axis=0)
    Image.fromarray(halves_HW).save(tmp_path / "masks/a.png")
    images, truth = load_labelled_public_set(tmp_path, OUTLINED)
    assert first_pixels(images) == [10, 30, 20]
    assert truth.shape == (2, 2, 8, 8)  # two images, two structures
    assert truth[0, 0].tolist() == [[1] * 4 + [0] * 4] * 8
    assert truth[0, 1].tolist() == [[0] * 4 + [1] * 4] * 8
    assert not truth[1].any()


def test_of_an_npz_unlabelled_images_follow_too(tmp_path: Path) -> None:
    several = np.stack([RAMP, RAMP + 1, RAMP + 2])
    np.savez(tmp_path / "set.npz", images=several[:2], labels=np.array([1, 0]), unlabelled_images=several[2:])
    images, truth = load_labelled_public_set(tmp_path / "set.npz", TASK)
    assert images.pixels_NHWC[..., 0].tolist() == several.tolist()
    assert truth.tolist() == [1, 0]
    masks = (several[:2] > 40).astype(np.uint8)
    np.savez(tmp_path / "masks.npz", images=several[:2], masks=masks, unlabelled_images=several[2:])
    task = msgspec.structs.replace(OUTLINED, classes=("bright",))
    images, truth = load_labelled_public_set(tmp_path / "masks.npz", task)
    assert images.pixels_NHWC[..., 0].tolist() == several.tolist()
    assert truth.tolist() == masks[:, None].tolist()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1.png,a\n2.png,cat", r"labels\.csv: 2\.png has the label 'cat'; this task has \['a', 'b'\]"),
        ("1.png,\n2.png,", "no image has a label"),
        ("1.png,a\n2.png,a", "one class only. Add images of the others: a, b"),
        ("1.png,a\n2.png,b\n3.png,b", r"3\.png"),
        (None, r"there is no labels\.csv in .*public\. Write one line per image"),
    ],
    ids=["unknown class", "no label at all", "one class", "no such image", "no labels.csv"],
)
def test_labels_that_cannot_teach_are_the_users_error(tmp_path: Path, lines: str | None, message: str) -> None:
    for value in (1, 2):
        write_grey(tmp_path / f"public/{value}.png", value)
    if lines is not None:
        (tmp_path / "public/labels.csv").write_text(f"file,label\n{lines}\n")
    with pytest.raises(DataError, match=message):
        load_labelled_public_set(tmp_path / "public", TASK)


def test_masks_that_cannot_teach_are_the_users_error(tmp_path: Path) -> None:
    write_grey(tmp_path / "images/a.png", 1)
    with pytest.raises(
        DataError, match=r"there is no folder .*masks\. Segmentation needs the folders images and masks"
    ):
        load_labelled_public_set(tmp_path, OUTLINED)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="no image has a mask"):
        load_labelled_public_set(tmp_path, OUTLINED)
    write_grey(tmp_path / "masks/a.png", 0)
    with pytest.raises(DataError, match=r"all masks of .* are empty"):
        load_labelled_public_set(tmp_path, OUTLINED)
