"""The task as a file: settings are closed, can be changed one by one, and sites get no place of the coordinator."""

from __future__ import annotations

import pytest

from ayni.errors import UserError
from ayni.task_file import read_task
from ayni_coordinator.demo.split import TASK_FILE


def test_a_setting_is_changed_by_its_name_and_a_word_needs_no_quotes() -> None:
    task = read_task(TASK_FILE, ["traffic.form=fp32", "training.rounds=3", 'title="A b"', "image.resize=true"])
    assert (task.traffic.form, task.training.rounds, task.title, task.image.resize) == ("fp32", 3, "A b", True)
    assert read_task(TASK_FILE).training.rounds == 24


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.rouns=3", "rouns"),
        ("training.rounds=many", "rounds"),
        ("training.rounds", "looks like"),
        ("title.rounds=3", "no settings of its own"),
        ("fedhelp.ranking_top_k=2", "below 2"),
        ('public_set=""', "needs a public_set"),
    ],
)
def test_a_change_that_cannot_be_says_why(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_task(TASK_FILE, [change])


STEPS, NO_MODEL, LABELLED = "fedhelp.start_steps=9", "guidance.source=none", "public_set_labelled=true"


def test_first_weights_are_taught_by_a_foundation_model_or_by_labels() -> None:
    assert read_task(TASK_FILE, [STEPS]).fedhelp.start_steps == 9
    assert read_task(TASK_FILE, [STEPS, NO_MODEL, LABELLED]).public_set_labelled


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([STEPS, NO_MODEL], r"Set guidance\.source or public_set_labelled, or start_steps to 0"),
        ([LABELLED], r"Set fedhelp\.start_steps or fedhelp\.label_weight, or public_set_labelled to false"),
        (["fedhelp.label_weight=1.0"], r"label_weight needs labels\. Set public_set_labelled, or label_weight to 0"),
        ([STEPS, NO_MODEL, LABELLED, "public_set="], "needs a public_set"),
        ([STEPS, NO_MODEL, LABELLED, "dual_kd.feature_weight=0"], r"Set dual_kd\.start_steps"),
    ],
)
def test_first_weights_that_nobody_or_two_would_teach_are_refused(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_task(TASK_FILE, changes)


def test_what_sites_get_names_no_path_and_no_address_of_the_coordinator() -> None:
    changes = ["public_set=/data/secret.npz", "guidance.source=http", "guidance.model=https://inside.example.org"]
    sent = read_task(TASK_FILE, changes).for_sites()
    assert b"secret" not in sent.to_json()
    assert b"inside" not in sent.to_json()
