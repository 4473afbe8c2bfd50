"""What is in a folder or file of training data, before anything is trained. Needs no torch and no task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ayni.data.check_labels import DataReport, check_labelled
from ayni.data.check_masks import MaskReport, check_segmented
from ayni.data.folder import LABELS_FILE, read_labels
from ayni.data.nifti import is_volume_file
from ayni.data.npz import holds_masks, holds_volumes
from ayni.data.pairs import MASKS, find_pairs, is_series
from ayni.data.read import DATASET_FILE

__all__ = ["DataReport", "MaskReport", "check_data"]


def check_data(
    path: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    unlabelled: bool = False,
) -> DataReport | MaskReport:
    """Look at every image. Raises DataError only if there is nothing to look at (no such path, no labels or masks).

    A folder with `masks/` and no `labels.csv` is for segmentation, and so is a .npz file with masks and no labels.
    Images are volumes if the first one is. With `unlabelled`, images without a mask or label are no fault.
    """
    if path.is_dir() and not (path / LABELS_FILE).exists():
        if (path / MASKS).is_dir():
            found = find_pairs(path)
            files = [image_file for image_file, _ in found.pairs] + list(found.images_without_mask)
            return check_segmented(path, on_progress, volumes=_are_volumes(files), unlabelled=unlabelled)
        if (path / DATASET_FILE).exists():
            path = path / DATASET_FILE
    if path.is_dir():
        files = [path / name for name, _ in read_labels(path, unlabelled=True)]
        return check_labelled(path, on_progress, volumes=_are_volumes(files), unlabelled=unlabelled)
    look = check_segmented if holds_masks(path) else check_labelled
    return look(path, on_progress, volumes=holds_volumes(path), unlabelled=unlabelled)


def _are_volumes(files: list[Path]) -> bool:
    return bool(files) and (is_series(files[0]) or is_volume_file(files[0]))
