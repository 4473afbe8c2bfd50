"""A data set on the disk, read for a simulation: all its images as the task's networks see them.

N = images, H x W = pixels (D x H x W of volumes), K = channels, S = structures.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ayni.data.folder import class_of
from ayni.data.images import IMAGE_SUFFIXES, prepare, read_image
from ayni.data.mask_file import read_mask
from ayni.data.npz import read_npz
from ayni.data.planes import planes_of, prepare_planes
from ayni.data.seen import seen_array, seen_pair
from ayni.errors import UserError
from ayni.task import ImageSettings, Task
from ayni_coordinator.simulation.collection import Collection, Pixels

MASK_FOLDERS = ("masks", "labels")  # the second is the Decathlon's


def load_collection(folder: Path, name: str, task: Task, crop: int = 0) -> Collection:
    """The data set `name` below the data folder. Raises UserError or DataError."""
    if (folder / f"{name}.npz").exists():
        return _medmnist(folder / f"{name}.npz", task)
    return _folder(folder / name, task, crop)


def _medmnist(path: Path, task: Task) -> Collection:
    """Its validation part is public here, and its test part every site's: shares of one collection are alike."""
    if task.kind == "segmentation":
        raise UserError(f"{path} holds labels; the task {task.name} needs masks: a folder with images/ and masks/.")
    parts = {"train": "train", "val": "public", "test": "test"}
    read = {part: read_npz(path, split, volumes=bool(task.image.depth)) for split, part in parts.items()}
    if task.image.depth:
        pixels = [seen_array(one, task.image, path.name) for images, _ in read.values() for one in images]
    else:
        pixels = [prepare(one, task.image, resize=True) for images, _ in read.values() for one in images]
    names = tuple(part for part, (images, _) in read.items() for _ in images)
    truth = np.concatenate([labels for _, labels in read.values()])
    if truth.max() >= len(task.classes):
        raise UserError(f"{path} has the label {truth.max()}; the task {task.name} has {len(task.classes)} classes.")
    each = tuple(str(number) for number in range(len(names)))
    return Collection(np.stack(pixels), truth, ("",) * len(names), each, names)


def _folder(folder: Path, task: Task, crop: int) -> Collection:
    rows = _read_sites(folder / "sites.csv", *(() if task.kind == "segmentation" else ("label",)))
    if task.image.depth and task.kind != "segmentation":
        raise UserError(f"{folder}: a folder of volumes is for segmentation; the task {task.name} is another kind.")
    masks = next((folder / name for name in MASK_FOLDERS if (folder / name).is_dir()), folder / MASK_FOLDERS[0])
    pixels: list[Pixels] = []
    truth: list[npt.NDArray[np.generic]] = []
    for row in rows:
        path = _image_file(folder / "images", row["id"])
        if task.image.depth:
            voxels_DHWK, planes_SDHW = seen_pair(path, masks / path.name, task.image, task.classes)
            pixels.append(voxels_DHWK)
            truth.append(planes_SDHW)
            continue
        whole_HWK = read_image(path)
        pixels.append(_seen(whole_HWK, task.image, crop))
        if task.kind == "segmentation":
            planes_SHW = planes_of(read_mask(folder / "masks" / f"{row['id']}.png"), task.classes, row["id"])
            cut_SHW = np.moveaxis(_middle(np.moveaxis(planes_SHW, 0, 2), crop), 2, 0)
            truth.append(prepare_planes(np.ascontiguousarray(cut_SHW), task.image))
        else:
            number = class_of(row["label"], task.classes)
            if number is None:
                raise UserError(f"{folder / 'sites.csv'}: {row['id']} is {row['label']!r}; classes are {task.classes}.")
            truth.append(np.asarray(number))
    all_truth = np.stack(truth)
    return Collection(
        np.stack(pixels),
        all_truth.astype(np.uint8) if task.kind == "segmentation" else all_truth.astype(np.int64),
        tuple(row["site"] for row in rows),
        tuple(row.get("patientid") or row["id"] for row in rows),
        ("",) * len(rows),
    )


def _read_sites(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"id", "site", *columns} - set(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Remove its folder and fetch it anew: `ayni data fetch`."
        ) from None
    if missing or not rows:
        raise UserError(f"{path} needs the columns {', '.join(('id', 'site', *columns))} and a line per image.")
    return rows


def _image_file(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES if (folder / f"{name}{suffix}").exists()]
    if not found:
        raise UserError(f"there is no image {name} in {folder}, which its sites.csv names. Fetch the data set again.")
    return found[0]


def _seen(pixels_HWK: Pixels, image: ImageSettings, crop: int) -> Pixels:
    cut_HWK = np.ascontiguousarray(_middle(pixels_HWK, crop))
    if image.channels == 1 and cut_HWK.shape[2] == 3:
        cut_HWK = np.rint(cut_HWK.mean(axis=2, keepdims=True)).astype(np.uint8)
    return prepare(cut_HWK, image, resize=True)


def _middle(pixels_HWK: Pixels, crop: int) -> Pixels:
    if not crop:
        return pixels_HWK
    height, width = pixels_HWK.shape[:2]
    top, left = max(0, height - crop) // 2, max(0, width - crop) // 2
    return pixels_HWK[top : top + crop, left : left + crop]
