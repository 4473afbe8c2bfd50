"""A coordinator's folder of a task with a teacher, and labelled squares for it to learn from: small, and quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ayni.task import DualKdSettings, Task, UNetSettings
from ayni_coordinator.database import transaction
from ayni_coordinator.federation import listed_artefacts
from ayni_coordinator.home import CoordinatorHome, create_home
from small_setups import small_task, squares

TEACHER = UNetSettings(channels=(6, 8), features=4)
STEPS = 8


def taught_task(**changes: Any) -> Task:
    """Bright squares are outlined; one site is enough for a round."""
    task = small_task("segmentation")
    return msgspec.structs.replace(
        task,
        dual_kd=DualKdSettings(teacher=TEACHER, teacher_steps=STEPS, passes=2),
        round=msgspec.structs.replace(task.round, deadline_s=3600.0),
        **changes,
    )


def new_home(folder: Path, task: Task | None = None, *, endpoint: str = "tcp://127.0.0.1:7700") -> Path:
    create_home(folder, task or taught_task(), endpoint=endpoint, bind=endpoint).engine.dispose()
    return folder


def write_squares(path: Path, num_images: int = 12, seed: int = 7) -> Path:
    pixels_NHWC, masks_NSHW = squares(num_images, "segmentation", seed)
    np.savez(path, images=pixels_NHWC, masks=masks_NSHW)
    return path


def published(folder: Path) -> bytes:
    """The one teacher that the manifest lists."""
    home = CoordinatorHome.open(folder)
    with transaction(home.engine) as session:
        (row,) = (row for row in listed_artefacts(session) if row.kind == "teacher")
    data = bytes(home.store.read(row.sha256))
    home.engine.dispose()
    return data
