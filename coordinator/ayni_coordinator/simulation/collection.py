"""A data set dealt out to the sites of a simulation: a pure function of the files, the experiment's entry and the seed.

N = images, H x W = pixels (D x H x W of volumes), K = channels, S = structures. `sites.csv` of a data set says each
image's natural group (scanner, hospital), its patient if known, and the label of a classification; masks lie in
`masks/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ayni.errors import UserError
from ayni.learning.batches import seed_of
from ayni.task import Fraction, Role
from ayni_coordinator.simulation.experiment import TaskEntry

Pixels = npt.NDArray[np.uint8]
Truth = npt.NDArray[np.int64] | npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


class SitePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site gets `share` of the images of `group` ("": of all) that are not public, whole patients at a time; it
    learns from `num_train` of them (or from `train_share`), and the others are its test part. Of those that it learns
    from, only `num_labelled` have their truth, if that is given."""

    role: Role
    group: str = ""
    share: Fraction = 1.0
    num_train: Annotated[int, Meta(ge=4)] | None = None
    train_share: Fraction = 0.6
    num_labelled: Annotated[int, Meta(ge=1)] | None = None


class RepositoryPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Labelled images at the centre, on which a teacher is trained: a share of a group, dealt out before the sites'."""

    group: str = ""
    share: Fraction = 1.0


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
    unlabelled_NHWK: Pixels  # to learn from without their truth,
    hidden_truth: Truth  # which only an upper bound looks at


@dataclass(frozen=True, slots=True)
class Plans:
    """Who gets what; `repository` is None where no teacher is trained."""

    public: PublicPlan
    sites: dict[str, SitePlan]
    repository: RepositoryPlan | None


def read_plans(entry: TaskEntry) -> Plans:
    """Raises UserError for what an entry of the experiment says wrong."""
    try:
        public = msgspec.convert(entry.public, PublicPlan)
        repository = msgspec.convert(entry.repository, RepositoryPlan) if entry.repository else None
        sites: dict[str, SitePlan] = msgspec.convert(entry.sites, dict[str, SitePlan])
    except msgspec.ValidationError as error:
        raise UserError(f"the entry of {entry.task} in the experiment: {error}.") from None
    if not sites:
        raise UserError(f"the entry of {entry.task} in the experiment names no sites.")
    return Plans(public, sites, repository)


def public_indices(collection: Collection, plan: PublicPlan) -> Indices:
    """Which images are public: those that the publisher set aside, or a share of a group's patients."""
    chosen = np.flatnonzero(np.array(collection.part_N) == "public")
    if len(chosen):
        return chosen
    mine = _of_group(collection, plan.group)
    ordered = _in_order(collection, mine, seed=seed_of("public", plan.group))
    return np.sort(ordered[: _whole_patients(collection, ordered, plan.share * len(ordered))])


def deal(collection: Collection, plans: Plans, *, seed: int) -> tuple[list[Dealt], Indices]:
    """Each site's images in the order of the experiment, and those of the repository. No image, and no patient of a
    group, is at two sites, or public and private, or in the repository and elsewhere.

    Raises UserError if the plan would need that.
    """
    _check_plans(collection, plans)
    taken = set(public_indices(collection, plans.public).tolist())
    given_out: dict[str, int] = {}

    def next_of(plan: SitePlan | RepositoryPlan) -> Indices:
        mine = np.array([i for i in _of_group(collection, plan.group) if i not in taken], np.int64)
        ordered = _in_order(collection, mine, seed=seed_of(seed, "deal", plan.group))
        start = given_out.get(plan.group, 0)
        end = _whole_patients(collection, ordered, start + plan.share * len(ordered))
        given_out[plan.group] = end
        return ordered[start:end]

    repository = next_of(plans.repository) if plans.repository else np.array([], np.int64)
    return [_split(collection, next_of(plan), name, plan, seed) for name, plan in plans.sites.items()], repository


def _check_plans(collection: Collection, plans: Plans) -> None:
    shares: dict[str, float] = {}
    sites = plans.sites
    everyone: list[SitePlan | RepositoryPlan] = [*sites.values(), *([plans.repository] if plans.repository else [])]
    for plan in everyone:
        shares[plan.group] = shares.get(plan.group, 0.0) + plan.share
    if "" in shares and len(shares) > 1:
        raise UserError("sites with a group and sites without one would share images: give all a group, or none.")
    for group, share in shares.items():
        if share > 1 + 1e-9:
            raise UserError(f"the sites (and the repository) of group {group!r} have shares of {share:g}; 1 is all.")
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
    num_labelled = len(train) if plan.num_labelled is None else plan.num_labelled
    if num_labelled > len(train):
        raise UserError(f"site {name} learns from {len(train)} images; {num_labelled} of them cannot be labelled.")
    labelled, unlabelled = train[:num_labelled], train[num_labelled:]
    pixels, truth = collection.pixels_NHWK, collection.truth
    return Dealt(
        name,
        plan.role,
        pixels[labelled],
        truth[labelled],
        pixels[test],
        truth[test],
        pixels[unlabelled],
        truth[unlabelled],
    )


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
