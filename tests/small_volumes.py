"""Small volumes and tasks about them, for tests."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from ayni.learning.site_data import OwnImages, own_images
from ayni.task import DualKdSettings, ImageSettings, NetworkSettings, Task, TrainingSettings, UNetSettings

SIZE = (8, 16, 12)


def volume_task(**changes: object) -> Task:
    """Two structures in volumes of 8 x 16 x 12 voxels, 2 x 1 x 0.5 mm each."""
    unet = UNetSettings(channels=(4, 8, 16), features=4)
    depth, height, width = SIZE
    task = Task(
        name="v",
        title="Volumes",
        kind="segmentation",
        classes=("anterior", "posterior"),
        image=ImageSettings(depth=depth, height=height, width=width, spacing_mm=(2.0, 1.0, 0.5)),
        training=TrainingSettings(rounds=2, steps_per_round=4, batch_size=2, learning_rate=1e-2),
        networks=NetworkSettings(small=unet, large=unet),
        dual_kd=DualKdSettings(teacher_steps=6, passes=2),
    )
    return msgspec.structs.replace(task, **changes)


def boxes(num_volumes: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Volumes [N, D, H, W, 1] with a bright and a less bright box in noise, and the boxes' masks [N, 2, D, H, W]."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (num_volumes, *SIZE, 1), dtype=np.uint8)
    masks = np.zeros((num_volumes, 2, *SIZE), np.uint8)
    for n in range(num_volumes):
        z, y, x = random.integers(1, 4), random.integers(1, 4), random.integers(1, 4)
        masks[n, 0, z : z + 3, y : y + 5, x : x + 6] = 1
        masks[n, 1, z : z + 3, y + 6 : y + 10, x : x + 6] = 1
        pixels[n, ..., 0] += masks[n, 0] * np.uint8(180) + masks[n, 1] * np.uint8(90)
    return pixels, masks


def own_volumes(task: Task, num_labelled: int = 4, num_unlabelled: int = 3, seed: int = 0) -> OwnImages:
    pixels, masks = boxes(num_labelled + num_unlabelled, seed)
    labelled = slice(0, num_labelled)
    return own_images(pixels[labelled], masks[labelled], task, "site", unlabelled=pixels[num_labelled:])
