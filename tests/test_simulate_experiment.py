"""Experiment files: what may stand in one, what is said about mistakes, and which runs come of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ayni.errors import UserError
from ayni_coordinator.simulation.experiment import Experiment, check_data, read_experiment
from ayni_coordinator.simulation.jobs import Job, jobs_of, selected
from stand_in_runs import EXPERIMENT, METHODS, TASK, the_experiment, write_experiment


def jobs(experiment: Experiment) -> list[Job]:
    return jobs_of(experiment, Path("data"))


def test_runs_go_seed_by_seed_so_that_who_stops_early_has_whole_seeds(tmp_path: Path) -> None:
    assert [job.name for job in jobs(the_experiment(tmp_path))] == [
        "local on lungs, seed 0", "fedavg on lungs, seed 0", "local on skin, seed 0", "fedavg on skin, seed 0",
        "local on lungs, seed 1", "fedavg on lungs, seed 1", "local on skin, seed 1", "fedavg on skin, seed 1",
    ]  # fmt: skip


def test_a_task_may_have_seeds_of_its_own_and_its_other_runs_stay_the_same(tmp_path: Path) -> None:
    before = fingerprints(tmp_path)
    more = EXPERIMENT.replace('task = "skin.toml"', 'task = "skin.toml"\nseeds = [1, 4]')
    after = fingerprints(tmp_path, more)
    assert [name for name in after if "skin" in name] == [
        "local on skin, seed 1", "fedavg on skin, seed 1", "local on skin, seed 4", "fedavg on skin, seed 4",
    ]  # fmt: skip
    assert {name for name in before if "skin" not in name} == {name for name in after if "skin" not in name}
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    with pytest.raises(UserError, match="seed 4 is there 2 times"):
        the_experiment(tmp_path, more.replace("[1, 4]", "[4, 4]"))


def test_a_run_knows_its_own_settings_and_no_others(tmp_path: Path) -> None:
    lungs_local, lungs_fedavg, _, skin_fedavg = jobs(the_experiment(tmp_path))[:4]
    assert (lungs_local.settings, lungs_fedavg.settings, skin_fedavg.settings) == ({}, {"bonus": 0.25}, {})
    assert lungs_local.entry.sites == {"north": 60, "south": 40}
    assert lungs_local.task.training.rounds == 3
    assert Path(lungs_local.data_folder).is_absolute()


def test_filters_choose_runs_and_say_what_there_is(tmp_path: Path) -> None:
    everything = jobs(the_experiment(tmp_path))
    assert [job.name for job in selected(everything, tasks=["skin"], seeds=[1])] == [
        "local on skin, seed 1", "fedavg on skin, seed 1",
    ]  # fmt: skip
    assert len(selected(everything, methods=["local", "fedavg"])) == 8
    with pytest.raises(UserError, match="no such method; it has local, fedavg"):
        selected(everything, methods=["fedprox"])
    with pytest.raises(UserError, match="no such task; it has lungs, skin"):
        selected(everything, tasks=["brain"])
    with pytest.raises(UserError, match="no such seed; it has 0, 1"):
        selected(everything, seeds=[2])


def fingerprints(folder: Path, text: str = EXPERIMENT) -> dict[str, str]:
    return {job.name: job.fingerprint for job in jobs(the_experiment(folder, text))}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_a_fingerprint_changes_with_what_decides_the_rows_and_with_nothing_else(tmp_path: Path) -> None:
    before = fingerprints(tmp_path)
    assert len(set(before.values())) == 8
    assert changed(before, fingerprints(tmp_path / "elsewhere")) == set()
    assert changed(before, fingerprints(tmp_path, "# by hand\n" + EXPERIMENT)) == set()
    assert changed(before, fingerprints(tmp_path, EXPERIMENT.replace("[0, 1]", "[1, 0]"))) == set()
    other_setting = fingerprints(tmp_path, EXPERIMENT.replace("0.25", "0.5"))
    assert changed(before, other_setting) == {"fedavg on lungs, seed 0", "fedavg on lungs, seed 1"}
    other_sites = fingerprints(tmp_path, EXPERIMENT.replace("north = 60", "north = 61"))
    assert changed(before, other_sites) == {name for name in before if "lungs" in name}


def test_a_fingerprint_changes_with_the_task_file_but_not_with_its_comments(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    before = {job.name: job.fingerprint for job in jobs(read_experiment(path, METHODS))}
    for rounds, expected in [(3, 0), (4, 4)]:
        (tmp_path / "skin.toml").write_text("# a comment\n" + TASK.format(name="skin", rounds=rounds))
        after = {job.name: job.fingerprint for job in jobs(read_experiment(path, METHODS))}
        assert len(changed(before, after)) == expected


WRONG = [
    ("methods", "there is no method 'fedavgg'. Methods are local, fedavg, fedprox", ('"fedavg"', '"fedavgg"')),
    ("settings", "there is no method 'fedprx'", ("fedavg = {", "fedprx = {")),
    ("key", "unknown field `seed`", ("seeds", "seed")),
    ("task key", "unknown field `site`", ("sites", "site")),
    ("seed", "Expected `int` >= 0", ("[0, 1]", "[-1]")),
    ("no seed", "length >= 1", ("[0, 1]", "[]")),
    ("seed twice", "seed 1 is there 2 times", ("[0, 1]", "[1, 1]")),
    ("method twice", "method 'local' is there 2 times", ('"fedavg"]', '"local"]')),
    ("task twice", "task named 'lungs' is there 2 times", ("skin.toml", "lungs.toml")),
    ("task file", "there is no task file", ("skin.toml", "brain.toml")),
    ("data name", "tasks", ('data = "x-rays"', 'data = "../x-rays"')),
    ("setting", "settings", ("0.25", "[1]")),
    ("no TOML", "is no experiment file", ("[[tasks]]", "[[tasks")),
]


@pytest.mark.parametrize(("told", "change"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_mistake_in_an_experiment_is_said_before_anything_runs(
    tmp_path: Path, told: str, change: tuple[str, str]
) -> None:
    with pytest.raises(UserError) as error:
        the_experiment(tmp_path, EXPERIMENT.replace(*change))
    assert told in str(error.value)
    assert len(str(error.value)) < 600


def test_a_mistake_in_a_task_file_names_the_file(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    (tmp_path / "skin.toml").write_text(TASK.format(name="skin", rounds=3) + "typo = 1\n")
    with pytest.raises(UserError, match=r"skin\.toml.*unknown field `typo`"):
        read_experiment(path, METHODS)


def test_an_experiment_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.toml is no experiment file"):
        read_experiment(tmp_path / "nothing.toml", METHODS)


def test_data_are_a_folder_or_an_npz_file_and_missing_ones_are_said_with_what_brings_them(tmp_path: Path) -> None:
    experiment = the_experiment(tmp_path)
    check_data(tmp_path / "data", experiment.parts)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"needs the data 'x-rays'.*`ayni data fetch x-rays --from"):
        check_data(tmp_path / "other", experiment.parts)
    (tmp_path / "other" / "x-rays.npz").touch()
    check_data(tmp_path / "other", experiment.parts)


UNSEEN = """
methods = ["local"]
seeds = [0]
[[tasks]]
task = "{task}"
data = "nuclei"
leave_out = {{ groups = ["{group}"]{more} }}
[tasks.sites]
here = {{ role = "clinic", group = "there" }}
"""


def left_out(folder: Path, group: str, more: str = "") -> Experiment:
    task = Path(__file__).parents[1] / "examples/evidence/nuclei.toml"
    (folder / "unseen.toml").write_text(UNSEEN.format(task=task, group=group, more=more))
    return read_experiment(folder / "unseen.toml")


@pytest.mark.parametrize("group", ["nowhere", "here"])
def test_a_group_to_leave_out_must_be_one_of_the_sites_and_that_is_said_before_anything_is_trained(
    tmp_path: Path, group: str
) -> None:
    with pytest.raises(UserError, match=f"leaves out the group '{group}'; it must be a group of its sites .*there"):
        left_out(tmp_path, group)


def test_a_task_that_teaches_first_weights_by_itself_is_refused(tmp_path: Path) -> None:
    """A method says who teaches them; the task file of a federation says what the experiment would not do."""
    task = Path(__file__).parents[1] / "examples/evidence/nuclei.toml"
    (tmp_path / "nuclei.toml").write_text(task.read_text() + "[fedhelp]\nstart_steps = 9\n")
    (tmp_path / "unseen.toml").write_text(UNSEEN.format(task="nuclei.toml", group="there", more=""))
    with pytest.raises(UserError, match=r"Leave fedhelp\.start_steps out"):
        read_experiment(tmp_path / "unseen.toml")


def test_what_is_left_out_may_have_seeds_of_its_own(tmp_path: Path) -> None:
    def names(more: str) -> list[str]:
        return [job.name for job in jobs(left_out(tmp_path, "there", more))]

    local = "local on nuclei, seed 0"
    assert names("") == [local, "unseen on nuclei without there, seed 0"]
    assert names(", seeds = [4, 5]") == [local, *(f"unseen on nuclei without there, seed {seed}" for seed in (4, 5))]
    with pytest.raises(UserError, match="seed 4 is there 2 times"):
        left_out(tmp_path, "there", ", seeds = [4, 4]")
