"""A data set dealt out to the sites of a simulation: a pure function of the files, the experiment's entry and the seed.

N = images, H x W = pixels, K = channels, S = structures. `sites.csv` of a data set says each image's natural group
(scanner, hospital), its patient if known, and the label of a classification; masks lie in `masks/`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ayni.data.folder import class_of
from ayni.data.images import IMAGE_SUFFIXES, prepare, read_image
from ayni.data.mask_file import read_mask
from ayni.data.npz import read_npz
from ayni.data.planes import planes_of, prepare_planes
from ayni.errors import UserError
from ayni.learning.batches import seed_of
from ayni.task import Fraction, ImageSettings, Role, Task
from ayni_coordinator.simulation.experiment import TaskEntry

Pixels = npt.NDArray[np.uint8]
Truth = npt.NDArray[np.int64] | npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


class SitePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site gets `share` of the images of `group` ("": of all) that are not public, whole patients at a time; it
    learns from `num_train` of them (or from `train_share`), and the others are its test part."""

    role: Role
    group: str = ""
    share: Fraction = 1.0
    num_train: Annotated[int, Meta(ge=4)] | None = None
    train_share: Fraction = 0.6


class PublicPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`share` of the images of `group` are public, the same ones for every seed. `out_of_domain` names another data
    set, whose images are public instead where a method asks for it."""

    group: str = ""
    share: Fraction = 1.0
    licence: str = ""
    out_of_domain: str = ""
    out_of_domain_group: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """All images of a data set at the task's size. `part` is "train", "public" or "test" where its publisher says so,
    else empty."""

    pixels_NHWK: Pixels
    truth: Truth  # class numbers [N], or masks [N, S, H, W]
    group_N: tuple[str, ...]
    patient_N: tuple[str, ...]
    part_N: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dealt:
    """One site's images to learn from (some of them will be held out) and to be tested on."""

    name: str
    role: Role
    pixels_NHWK: Pixels
    truth: Truth
    test_pixels_NHWK: Pixels
    test_truth: Truth


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
    read = {part: read_npz(path, split) for split, part in parts.items()}
    pixels = [prepare(one, task.image, resize=True) for images, _ in read.values() for one in images]
    names = tuple(part for part, (images, _) in read.items() for _ in images)
    truth = np.concatenate([labels for _, labels in read.values()])
    if truth.max() >= len(task.classes):
        raise UserError(f"{path} has the label {truth.max()}; the task {task.name} has {len(task.classes)} classes.")
    each = tuple(str(number) for number in range(len(names)))
    return Collection(np.stack(pixels), truth, ("",) * len(names), each, names)


def _folder(folder: Path, task: Task, crop: int) -> Collection:
    rows = _read_sites(folder / "sites.csv", *(() if task.kind == "segmentation" else ("label",)))
    pixels: list[Pixels] = []
    truth: list[npt.NDArray[np.generic]] = []
    for row in rows:
        path = _image_file(folder / "images", row["id"])
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


def read_plans(entry: TaskEntry) -> tuple[PublicPlan, dict[str, SitePlan]]:
    """Raises UserError for what an entry of the experiment says wrong."""
    try:
        public = msgspec.convert(entry.public, PublicPlan)
        sites: dict[str, SitePlan] = msgspec.convert(entry.sites, dict[str, SitePlan])
    except msgspec.ValidationError as error:
        raise UserError(f"the entry of {entry.task} in the experiment: {error}.") from None
    if not sites:
        raise UserError(f"the entry of {entry.task} in the experiment names no sites.")
    return public, sites


def public_indices(collection: Collection, plan: PublicPlan) -> Indices:
    """Which images are public: those that the publisher set aside, or a share of a group's patients."""
    chosen = np.flatnonzero(np.array(collection.part_N) == "public")
    if len(chosen):
        return chosen
    mine = _of_group(collection, plan.group)
    ordered = _in_order(collection, mine, seed=seed_of("public", plan.group))
    return np.sort(ordered[: _whole_patients(collection, ordered, plan.share * len(ordered))])


def deal(collection: Collection, public: PublicPlan, sites: dict[str, SitePlan], *, seed: int) -> list[Dealt]:
    """In the order of the experiment; no image, and no patient of a group, is at two sites, or public and private.

    Raises UserError if the plan would need that.
    """
    _check_plans(collection, sites)
    taken = set(public_indices(collection, public).tolist())
    given_out: dict[str, int] = {}
    dealt = []
    for name, plan in sites.items():
        mine = np.array([i for i in _of_group(collection, plan.group) if i not in taken], np.int64)
        ordered = _in_order(collection, mine, seed=seed_of(seed, "deal", plan.group))
        start = given_out.get(plan.group, 0)
        end = _whole_patients(collection, ordered, start + plan.share * len(ordered))
        given_out[plan.group] = end
        dealt.append(_split(collection, ordered[start:end], name, plan, seed))
    return dealt


def _check_plans(collection: Collection, sites: dict[str, SitePlan]) -> None:
    shares: dict[str, float] = {}
    for plan in sites.values():
        shares[plan.group] = shares.get(plan.group, 0.0) + plan.share
    if "" in shares and len(shares) > 1:
        raise UserError("sites with a group and sites without one would share images: give all a group, or none.")
    for group, share in shares.items():
        if share > 1 + 1e-9:
            raise UserError(f"the sites of group {group!r} have shares of {share:g} together; 1 is all.")
    if "test" in collection.part_N and any(plan.num_train is not None for plan in sites.values()):
        raise UserError("this data set has a test part of its own: give its sites a share, and no num_train.")


def _split(collection: Collection, own: Indices, name: str, plan: SitePlan, seed: int) -> Dealt:
    """To learn from, and to be tested on; of a publisher's test part, all of it."""
    official = np.flatnonzero(np.array(collection.part_N) == "test")
    if len(official):
        train, test = own, official
    else:
        ordered = _in_order(collection, own, seed=seed_of(seed, "split", name))
        wanted = plan.num_train if plan.num_train is not None else plan.train_share * len(ordered)
        cut = _whole_patients(collection, ordered, wanted)
        train, test = ordered[:cut], ordered[cut:]
    if not len(train) or not len(test):
        raise UserError(
            f"site {name} gets {len(train)} images to learn from and {len(test)} to be tested on. Change its share, "
            "its num_train or train_share, or the share of its group that is public."
        )
    pixels, truth = collection.pixels_NHWK, collection.truth
    return Dealt(name, plan.role, pixels[train], truth[train], pixels[test], truth[test])


def _of_group(collection: Collection, group: str) -> Indices:
    private = [i for i, part in enumerate(collection.part_N) if part in ("", "train")]
    mine = [i for i in private if group in ("", collection.group_N[i])]
    if not mine:
        raise UserError(f"the data set has no images of the group {group!r}; it has {sorted(set(collection.group_N))}.")
    return np.array(mine, np.int64)


def _in_order(collection: Collection, some: Indices, *, seed: int) -> Indices:
    """Mixed, a patient's images together, and every stretch of the list with the classes' shares of the whole."""
    random = np.random.default_rng(seed)
    patients: dict[str, list[int]] = {}
    for i in random.permutation(some).tolist():
        patients.setdefault(collection.patient_N[i], []).append(i)
    strata: dict[int, list[list[int]]] = {}
    for images in patients.values():
        label = int(collection.truth[images[0]]) if collection.truth.ndim == 1 else 0
        strata.setdefault(label, []).append(images)
    placed = [
        ((place + 0.5) / len(of_label), label, images)
        for label, of_label in sorted(strata.items())
        for place, images in enumerate(of_label)
    ]
    return np.array([i for _, _, images in sorted(placed, key=lambda one: one[:2]) for i in images], np.int64)


def _whole_patients(collection: Collection, ordered: Sequence[int] | Indices, wanted: float) -> int:
    """`wanted` images, or so many more that no patient is cut in two."""
    end = min(len(ordered), round(wanted))
    while 0 < end < len(ordered) and collection.patient_N[ordered[end]] == collection.patient_N[ordered[end - 1]]:
        end += 1
    return end
