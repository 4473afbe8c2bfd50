"""What is in a folder or file of training data, before anything is trained. Needs no torch and no task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ayni.data.check_labels import DataReport, check_labelled
from ayni.data.check_masks import MaskReport, check_segmented
from ayni.data.folder import LABELS_FILE
from ayni.data.npz import holds_masks
from ayni.data.pairs import MASKS
from ayni.data.read import DATASET_FILE

__all__ = ["DataReport", "MaskReport", "check_data"]


def check_data(
    path: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> DataReport | MaskReport:
    """Look at every image. Raises DataError only if there is nothing to look at (no such path, no labels or masks).

    A folder with `masks/` and no `labels.csv` is for segmentation, and so is a .npz file with masks and no labels.
    """
    if path.is_dir() and not (path / LABELS_FILE).exists():
        if (path / MASKS).is_dir():
            return check_segmented(path, on_progress)
        if (path / DATASET_FILE).exists():
            path = path / DATASET_FILE
    if not path.is_dir() and holds_masks(path):
        return check_segmented(path, on_progress)
    return check_labelled(path, on_progress)
