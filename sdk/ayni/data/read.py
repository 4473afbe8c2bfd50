"""Labelled images as training sees them, from a folder with `labels.csv` or from a .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ayni.data.folder import LABELS_FILE, class_of, read_labels
from ayni.data.images import prepare, read_image
from ayni.data.npz import read_npz
from ayni.errors import DataError
from ayni.task import ImageSettings

DATASET_FILE = "dataset.npz"
OTHER_SIZE = "Ask the coordinator to set image.resize in the task, or scale the images."


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """N images of the task's size, the number of each one's class, and where it came from."""

    pixels_NHWC: npt.NDArray[np.uint8]
    labels_N: npt.NDArray[np.int64]
    names: tuple[str, ...]


def load_images(path: Path, image: ImageSettings, classes: tuple[str, ...], split: str = "train") -> LabelledImages:
    """Every image, or DataError with the name of the first that cannot be used and the next step.

    `path` is a folder with `labels.csv` (or `dataset.npz`) or a .npz file; `split` is the npz's part.
    """
    if path.is_dir() and not (path / LABELS_FILE).exists() and (path / DATASET_FILE).exists():
        path = path / DATASET_FILE
    if path.is_dir():
        loaded = _from_folder(path, image, classes)
    elif path.exists():
        loaded = _from_npz(path, image, classes, split)
    else:
        raise DataError(f"there are no data at {path}. Give a folder with {LABELS_FILE}, or a .npz file.")
    if not len(loaded.labels_N):
        raise DataError(f"{path} holds no images.")
    return loaded


def _from_folder(folder: Path, image: ImageSettings, classes: tuple[str, ...]) -> LabelledImages:
    pixels, labels, names = [], [], []
    for name, label in read_labels(folder):
        number = class_of(label, classes)
        if number is None:
            raise DataError(f"{folder / LABELS_FILE}: {name} has the label {label!r}; this task has {list(classes)}.")
        pixels_HWC = read_image(folder / name)
        pixels.append(prepare(pixels_HWC, image, resize=image.resize, name=str(folder / name), remedy=OTHER_SIZE))
        labels.append(number)
        names.append(name)
    return LabelledImages(np.stack(pixels) if pixels else _no_pixels(image), np.array(labels, np.int64), tuple(names))


def _from_npz(path: Path, image: ImageSettings, classes: tuple[str, ...], split: str) -> LabelledImages:
    images_NHWC, labels_N = read_npz(path, split)
    unknown = np.flatnonzero((labels_N < 0) | (labels_N >= len(classes)))
    if len(unknown):
        raise DataError(
            f"{path}: image {unknown[0]} has the label {labels_N[unknown[0]]}; this task has the classes "
            f"0 to {len(classes) - 1} ({', '.join(classes)})."
        )
    names = tuple(f"{split}[{i}]" for i in range(len(images_NHWC)))
    if images_NHWC.shape[1:] != (image.height, image.width, image.channels):
        prepared = [
            prepare(pixels_HWC, image, resize=image.resize, name=f"{path}, {name}", remedy=OTHER_SIZE)
            for pixels_HWC, name in zip(images_NHWC, names, strict=True)
        ]
        images_NHWC = np.stack(prepared) if prepared else _no_pixels(image)
    return LabelledImages(np.ascontiguousarray(images_NHWC), labels_N, names)


def _no_pixels(image: ImageSettings) -> npt.NDArray[np.uint8]:
    return np.empty((0, image.height, image.width, image.channels), np.uint8)
