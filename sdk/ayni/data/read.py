"""Labelled images as training sees them, from a folder with `labels.csv` or from a .npz file.

N = images, U = images without a label, D = slices (volumes only), H = height, W = width, C = channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ayni.data.eight_bits import Pixels
from ayni.data.folder import LABELS_FILE, class_of, read_labels
from ayni.data.npz import read_npz, read_npz_unlabelled
from ayni.data.seen import OTHER_SIZE, gathered, seen_arrays, seen_file
from ayni.errors import DataError
from ayni.task import ImageSettings

__all__ = ["DATASET_FILE", "OTHER_SIZE", "LabelledImages", "load_images"]

DATASET_FILE = "dataset.npz"


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """N images of the task's size, the number of each one's class, and where it came from; and U images of which
    nobody knows the class. Of volumes all have one axis more, D before H."""

    pixels_NHWC: Pixels
    labels_N: npt.NDArray[np.int64]
    names: tuple[str, ...]
    unlabelled: Pixels


def load_images(
    path: Path, image: ImageSettings, classes: tuple[str, ...], split: str = "train", *, unlabelled: bool = False
) -> LabelledImages:
    """Every image, or DataError with the name of the first that cannot be used and the next step.

    `path` is a folder with `labels.csv` (or `dataset.npz`) or a .npz file; `split` is the npz's part. `unlabelled`
    images, whose label is left empty, are an error unless the task learns from them.
    """
    if path.is_dir() and not (path / LABELS_FILE).exists() and (path / DATASET_FILE).exists():
        path = path / DATASET_FILE
    if path.is_dir():
        loaded = _from_folder(path, image, classes, unlabelled)
    elif path.exists():
        loaded = _from_npz(path, image, classes, split, unlabelled)
    else:
        raise DataError(f"there are no data at {path}. Give a folder with {LABELS_FILE}, or a .npz file.")
    if not len(loaded.labels_N) and len(loaded.unlabelled):
        raise DataError(f"{path}: no image has a label. Label some, so that there is something to learn and to check.")
    if not len(loaded.labels_N):
        raise DataError(f"{path} holds no images.")
    return loaded


def _from_folder(folder: Path, image: ImageSettings, classes: tuple[str, ...], unlabelled: bool) -> LabelledImages:
    labelled: list[tuple[str, int]] = []
    others: list[str] = []
    for name, label in read_labels(folder, unlabelled=unlabelled):
        number = class_of(label, classes)
        if number is None and label:
            raise DataError(f"{folder / LABELS_FILE}: {name} has the label {label!r}; this task has {list(classes)}.")
        if number is None:
            others.append(name)
        else:
            labelled.append((name, number))
    names = tuple(name for name, _ in labelled)
    return LabelledImages(
        gathered((seen_file(folder / name, image) for name in names), len(names), image),
        np.array([number for _, number in labelled], np.int64),
        names,
        gathered((seen_file(folder / name, image) for name in others), len(others), image),
    )


def _from_npz(
    path: Path, image: ImageSettings, classes: tuple[str, ...], split: str, unlabelled: bool
) -> LabelledImages:
    images, labels_N = read_npz(path, split, volumes=image.depth > 0)
    unknown = np.flatnonzero((labels_N < 0) | (labels_N >= len(classes)))
    if len(unknown):
        raise DataError(
            f"{path}: image {unknown[0]} has the label {labels_N[unknown[0]]}; this task has the classes "
            f"0 to {len(classes) - 1} ({', '.join(classes)})."
        )
    others = read_npz_unlabelled(path, volumes=image.depth > 0) if unlabelled else images[:0]
    names = tuple(f"{split}[{i}]" for i in range(len(images)))
    return LabelledImages(
        seen_arrays(images, image, f"{path}, {split}"),
        labels_N,
        names,
        seen_arrays(others, image, f"{path}, unlabelled"),
    )
