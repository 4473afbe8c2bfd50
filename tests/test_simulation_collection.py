"""Dealing images out to sites: whole patients, no image twice, the same for the same seed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ayni.errors import UserError
from ayni.task import ImageSettings, NetworkSettings, Task, TrainingSettings
from ayni_coordinator.simulation.collection import (
    Collection,
    Dealt,
    Plans,
    PublicPlan,
    RepositoryPlan,
    SitePlan,
    deal,
    public_indices,
    read_plans,
)
from ayni_coordinator.simulation.experiment import TaskEntry
from ayni_coordinator.simulation.loading import load_collection

NUM, PATIENTS = 60, 30


def numbered(*, groups: Sequence[str] = ("north",), labelled: bool = True) -> Collection:
    """Image i is one pixel of value i; two images per patient, a quarter of class 1."""
    truth = (np.arange(NUM) % 8 >= 6).astype(np.int64) if labelled else np.zeros((NUM, 1, 1, 1), np.uint8)
    return Collection(
        np.arange(NUM, dtype=np.uint8).reshape(NUM, 1, 1, 1),
        truth,
        tuple(groups[i // 2 % len(groups)] for i in range(NUM)),
        tuple(str(i // 2) for i in range(NUM)),
        ("",) * NUM,
    )


def ids(*pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[int]:
    return [int(value) for part in pixels for value in part.ravel()]


def all_of(one: Dealt) -> list[int]:
    return ids(one.pixels_NHWK, one.test_pixels_NHWK)


def dealt_to(collection: Collection, public: PublicPlan, sites: dict[str, SitePlan], seed: int) -> list[Dealt]:
    return deal(collection, Plans(public, sites, None), seed=seed)[0]


SITES = {
    "large": SitePlan(role="hospital", share=0.6, train_share=0.7),
    "small": SitePlan(role="clinic", share=0.4, num_train=6),
}


@pytest.mark.parametrize("labelled", [True, False])
def test_no_image_and_no_patient_is_in_two_places(labelled: bool) -> None:
    collection, public = numbered(labelled=labelled), PublicPlan(share=0.2)
    dealt = dealt_to(collection, public, SITES, seed=1)
    places = [public_indices(collection, public).tolist()]
    for one in dealt:
        places += [ids(one.pixels_NHWK), ids(one.test_pixels_NHWK)]
    assert sorted(chain(*places)) == list(range(NUM))
    patients = [{i // 2 for i in place} for place in places]
    assert sum(map(len, patients)) == PATIENTS


def test_sizes_are_as_planned_and_classes_are_spread_evenly() -> None:
    large, small = dealt_to(numbered(), PublicPlan(share=0.2), SITES, seed=1)
    assert (len(all_of(large)), len(all_of(small))) == (30, 18)  # 28.8 of 48 private images, and their patients whole
    assert len(small.truth) == 6
    assert len(large.truth) == 22  # .7 of 30
    assert abs(large.truth.mean() - 0.25) < 0.06
    assert abs(large.test_truth.mean() - 0.25) < 0.13
    assert all(int(label) == (i % 8 >= 6) for i, label in zip(ids(small.pixels_NHWK), small.truth, strict=True))


def test_the_seed_deals_anew_but_the_public_images_are_always_the_same() -> None:
    collection, public = numbered(), PublicPlan(share=0.2)
    first, again, other = (dealt_to(collection, public, SITES, seed=seed) for seed in (1, 1, 2))
    assert [all_of(one) for one in first] == [all_of(one) for one in again]
    assert [all_of(one) for one in first] != [all_of(one) for one in other]
    assert set(chain(*map(all_of, first))) == set(chain(*map(all_of, other)))


def test_natural_groups_stay_together() -> None:
    collection = numbered(groups=("north", "south", "east"))
    sites = {name: SitePlan(role="clinic", group=name, num_train=4) for name in ("north", "south")}
    dealt = dealt_to(collection, PublicPlan(group="east"), sites, seed=0)
    for number, one in enumerate(dealt):
        assert {i // 2 % 3 for i in all_of(one)} == {number}
    assert {i // 2 % 3 for i in public_indices(collection, PublicPlan(group="east")).tolist()} == {2}
    with pytest.raises(UserError, match="'west'"):
        dealt_to(collection, PublicPlan(group="east"), {"west": SitePlan(role="clinic", group="west")}, seed=0)


def test_what_is_tested_on_was_trained_on_nowhere_also_not_by_the_teacher() -> None:
    """Volumes of the test part in the training part are a fault of the published code."""
    collection, public = numbered(), PublicPlan(share=0.2)
    sites = {
        "one": SitePlan(role="clinic", share=0.4, num_train=10, num_labelled=4),
        "two": SitePlan(role="clinic", share=0.2, num_train=6, num_labelled=6),
    }
    dealt, repository = deal(collection, Plans(public, sites, RepositoryPlan(share=0.4)), seed=3)
    places = [public_indices(collection, public).tolist(), repository.tolist()]
    for one in dealt:
        places += [ids(one.pixels_NHWK), ids(one.unlabelled_NHWK), ids(one.test_pixels_NHWK)]
    assert sorted(chain(*places)) == list(range(NUM))
    assert [len(one.truth) for one in dealt] == [4, 6]
    assert [len(one.unlabelled_NHWK) for one in dealt] == [6, 0]
    assert all(
        int(label) == (i % 8 >= 6)
        for i, label in zip(ids(dealt[0].unlabelled_NHWK), dealt[0].hidden_truth, strict=True)
    )
    tested = {i // 2 for one in dealt for i in ids(one.test_pixels_NHWK)}
    trained = {i // 2 for one in dealt for i in ids(one.pixels_NHWK, one.unlabelled_NHWK)} | {
        i // 2 for i in repository
    }
    assert not tested & trained


def test_more_labels_than_images_and_a_repository_that_leaves_too_little_are_refused() -> None:
    sites = {"one": SitePlan(role="clinic", share=0.5, num_train=10, num_labelled=11)}
    with pytest.raises(UserError, match="11 of them cannot be labelled"):
        deal(numbered(), Plans(PublicPlan(share=0.2), sites, None), seed=0)
    with pytest.raises(UserError, match=r"shares of 1\.2"):
        deal(numbered(), Plans(PublicPlan(share=0.2), sites, RepositoryPlan(share=0.7)), seed=0)


def test_a_folder_with_masks_is_read_at_the_task_s_size(tmp_path: Path) -> None:
    folder = tmp_path / "dots"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    with (folder / "sites.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "site", "patientid"], ["one", "north", "7"]])
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[18:22, 20:40] = 255
    Image.fromarray(pixels).save(folder / "images" / "one.png")
    Image.fromarray((pixels[:, :, 0] > 0).astype(np.uint8) * 9).save(folder / "masks" / "one.png")
    task = Task(
        name="dots", title="Dots", kind="segmentation", classes=("dot",), training=TrainingSettings(rounds=1),
        image=ImageSettings(height=16, width=16), networks=NetworkSettings(),
    )  # fmt: skip
    collection = load_collection(tmp_path, "dots", task, crop=32)  # the middle 32 x 32: rows 4 to 36, columns 14 to 46
    assert collection.pixels_NHWK.shape == (1, 16, 16, 1)
    assert isinstance(collection.truth, np.ndarray)
    expected = np.zeros((16, 16), np.uint8)
    expected[7:9, 3:13] = 1  # rows 14 to 18 of 32, columns 6 to 26, halved
    assert collection.truth[0, 0].tolist() == expected.tolist()
    assert (collection.group_N, collection.patient_N) == (("north",), ("7",))


def test_a_mistyped_plan_says_what_is_wrong() -> None:
    entry = TaskEntry(task="t.toml", data="d", sites={"a": {"role": "clinic", "shares": 1.0}})
    with pytest.raises(UserError, match="shares"):
        read_plans(entry)
    with pytest.raises(UserError, match="names no sites"):
        read_plans(TaskEntry(task="t.toml", data="d"))
