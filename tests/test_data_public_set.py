"""The public set from a folder or a .npz file: pixels without labels, or a message that helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ayni.errors import DataError, UserError
from ayni.task import ImageSettings, Task, TrainingSettings
from ayni_coordinator.public_set import load_public_set

TASK = Task(
    name="t",
    title="T",
    classes=("a", "b"),
    image=ImageSettings(height=8, width=8),
    training=TrainingSettings(rounds=1),
)
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
