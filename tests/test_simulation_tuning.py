"""Settings are chosen on images that sites hold out: `ayni simulate --tune`, and the file that an experiment names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

from ayni.errors import DataError, UserError
from ayni.learning.batches import Normaliser
from ayni_coordinator.simulation.experiment import read_experiment
from ayni_coordinator.simulation.jobs import Job, Tell, jobs_of, trials_of
from ayni_coordinator.simulation.method import Candidate
from ayni_coordinator.simulation.results import Row
from ayni_coordinator.simulation.run import Outcome, held_out_rows, method_named, run_job, set_up
from ayni_coordinator.simulation.simulate import Summary, simulate
from stand_in_runs import EXPERIMENT, METHODS, request, rows_of, the_experiment, write_experiment
from test_simulation_run import jobs as discs_jobs

TUNING = "seed = 5\n[tuning.values]\nfedavg = { bonus = [0.0, 0.125, 0.0625] }\n"
TUNED = EXPERIMENT.replace("settings = { fedavg = { bonus = 0.25 } }\n", "") + f"\n[tuning]\n{TUNING}"


def trial_rows(job: Job, tell: Tell) -> list[Row]:
    """Held-out figures are those of `stand_in_runs.rows_of`: the higher the bonus, the better, but on skin."""
    assert job.trial
    sign = -1 if job.task.name == "skin" else 1
    return [
        msgspec.structs.replace(row, metrics={"held_out": 0.5 + sign * float(job.settings["bonus"])})
        for row in rows_of(job)
    ]


def one_fails(job: Job, tell: Tell) -> list[Row]:
    if job.name == "fedavg with bonus=0.125 on skin, seed 5":
        raise DataError("image 7 is no image; take it out.")
    return trial_rows(job, tell)


@pytest.fixture(autouse=True)
def _runs_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def tried(folder: Path, function: str) -> Summary:
    asked = msgspec.structs.replace(request(folder), tune=True, run=f"test_simulation_tuning:{function}")
    return simulate(the_experiment(folder, TUNED), asked)


def test_every_value_is_tried_on_every_task_and_nothing_else_is_run(tmp_path: Path) -> None:
    trials = trials_of(the_experiment(tmp_path, TUNED), tmp_path / "data")
    assert [job.name for job in trials] == [
        f"fedavg with bonus={value} on {task}, seed 5" for task in ("lungs", "skin") for value in (0.0, 0.125, 0.0625)
    ]
    assert [job.settings for job in trials[:2]] == [{"bonus": 0.0}, {"bonus": 0.125}]
    assert len({job.fingerprint for job in trials}) == 6


def test_the_best_on_held_out_images_is_written_and_the_experiment_takes_it_up(tmp_path: Path) -> None:
    summary = tried(tmp_path, "trial_rows")
    assert (summary.ran, summary.failed) == (6, [])
    text = Path(summary.results).read_text()
    assert "bonus = 0.125  # 0.0: 0.5000, 0.125: 0.6250, 0.0625: 0.5625" in text
    assert msgspec.toml.decode(text) == {"lungs": {"fedavg": {"bonus": 0.125}}, "skin": {"fedavg": {"bonus": 0.0}}}
    (tmp_path / "tuned.toml").write_text(text)
    own = "sites = { north = 60, south = 40 }\nsettings = { fedavg = { bonus = 0.5 } }\n"
    for change, bonus_on_lungs in ((("", ""), 0.125), (("sites = { north = 60, south = 40 }\n", own), 0.5)):
        experiment = the_experiment(tmp_path, 'tuned = "tuned.toml"\n' + TUNED.replace(*change))
        found = {job.name: job.settings for job in jobs_of(experiment, tmp_path / "data")}
        assert found["fedavg on lungs, seed 0"] == {"bonus": bonus_on_lungs}
        assert found["fedavg on skin, seed 1"] == {"bonus": 0.0}
        assert found["local on skin, seed 1"] == {}


def test_what_was_tried_is_kept_and_a_value_that_failed_leaves_its_setting_out(tmp_path: Path) -> None:
    first = tried(tmp_path, "one_fails")
    assert [failed.task for failed in first.failed] == ["skin"]
    assert set(msgspec.toml.decode(Path(first.results).read_bytes())) == {"lungs"}
    second = tried(tmp_path, "trial_rows")
    assert (second.ran, second.kept) == (1, 5)
    assert set(msgspec.toml.decode(Path(second.results).read_bytes())) == {"lungs", "skin"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (EXPERIMENT + "\n[tuning.values]\nfedprx = { mu = [1, 2] }\n", "no method 'fedprx'"),
        (EXPERIMENT + "\n[tuning.values]\nfedprox = { mu = [1] }\n", "length >= 2"),
        (EXPERIMENT + "\n[tuning.values]\nfedprox = { mu = [1, 2], nu = [1, 2] }\n", "tries one setting"),
        ('tuned = "tuned.toml"\n' + EXPERIMENT, "is not what `ayni simulate --tune` writes"),
    ],
)
def test_a_mistake_is_said_before_anything_runs(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        the_experiment(tmp_path, text)


def test_settings_of_a_task_that_is_not_there_and_tuning_of_nothing_are_said(tmp_path: Path) -> None:
    write_experiment(tmp_path, 'tuned = "tuned.toml"\n' + EXPERIMENT)
    (tmp_path / "tuned.toml").write_text("[brain.fedavg]\nbonus = 1\n")
    with pytest.raises(UserError, match="task 'brain', which the experiment has not"):
        read_experiment(tmp_path / "experiment.toml", METHODS)
    with pytest.raises(UserError, match=r"no section \[tuning\]"):
        trials_of(the_experiment(tmp_path / "other"), tmp_path)


class EverythingInside(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.ones(len(x_BCHW), 1, *x_BCHW.shape[2:])


def test_a_trial_measures_on_held_out_images_alone(tmp_path: Path) -> None:
    """Of 6 and 5 training images one each is held out."""
    job = msgspec.structs.replace(discs_jobs(tmp_path)["fedavg"], trial="mu=0.1")
    setup, _ = set_up(job, method_named("fedavg"))
    everything = [Candidate(EverythingInside(), Normaliser((0.0,), (1.0,)))]
    rows = held_out_rows(job, setup, {site.name: Outcome(candidates=everything) for site in setup.sites})
    assert [(row.site, row.num_train) for row in rows] == [("centre", 6), ("village", 5)]
    assert [set(row.metrics) for row in rows] == [{"held_out"}] * 2
    expected = [2 * 64 / (256 + 64), 2 * 16 / (256 + 16)]  # squares of 8 x 8, and of 4 x 4, in 16 x 16
    assert [row.metrics["held_out"] for row in rows] == pytest.approx(expected, abs=1e-6)
    assert [row.metrics.keys() for row in run_job(job, lambda done, num_turns: None)] == [{"held_out"}] * 2
