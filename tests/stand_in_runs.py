"""`ayni simulate` with runs that take no time: `python tests/stand_in_runs.py FOLDER FUNCTION`.

The figures of a run are worked out from its settings, so that a test can say what must come out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from ayni import cli
from ayni.errors import DataError
from ayni_coordinator.simulation.cli import simulate_and_tell
from ayni_coordinator.simulation.experiment import Experiment, read_experiment
from ayni_coordinator.simulation.jobs import Job, Tell
from ayni_coordinator.simulation.results import Row
from ayni_coordinator.simulation.simulate import Request, Summary, simulate

METHODS = ("local", "fedavg", "fedprox")
TASK = """
name = "{name}"
title = "{name}"
classes = ["clear", "shadow"]
image = {{ height = 8, width = 8 }}
training = {{ rounds = {rounds} }}
"""
EXPERIMENT = """
methods = ["local", "fedavg"]
seeds = [0, 1]

[[tasks]]
task = "lungs.toml"
data = "x-rays"
sites = { north = 60, south = 40 }
settings = { fedavg = { bonus = 0.25 } }

[[tasks]]
task = "skin.toml"
data = "x-rays"
"""


def write_experiment(folder: Path, text: str = EXPERIMENT) -> Path:
    """Two tasks, two methods, two seeds: eight runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("lungs", "skin"):
        (folder / f"{name}.toml").write_text(TASK.format(name=name, rounds=3))
    (folder / "data" / "x-rays").mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(text)
    return folder / "experiment.toml"


def the_experiment(folder: Path, text: str = EXPERIMENT) -> Experiment:
    return read_experiment(write_experiment(folder, text), METHODS)


def rows_of(job: Job) -> list[Row]:
    """A hospital and a clinic: auc = 0.5 + seed / 8 + the setting `bonus`, and 0.125 less at the clinic."""
    auc = 0.5 + job.seed / 8 + float(job.settings.get("bonus", 0.0))
    sites = [("north", "hospital", 60, auc), ("south", "clinic", 40, auc - 0.125)]
    return [
        Row(
            task=job.task.name, method=job.method, seed=job.seed, site=site, role=role,  # type: ignore[arg-type]
            num_train=num_train, metrics={"auc": value, "balanced_accuracy": value}, bytes_up=10, bytes_down=20,
            seconds=1.5, rounds=job.task.training.rounds,
        )
        for site, role, num_train, value in sites
    ]  # fmt: skip


def quick(job: Job, tell: Tell) -> list[Row]:
    tell(1, 2)
    tell(2, 2)
    return rows_of(job)


def slow(job: Job, tell: Tell) -> list[Row]:
    """The first of all ends at once, the others hold on until somebody ends them. Says its process id in a file."""
    here = Path(job.experiment).parent / "running"
    here.mkdir(exist_ok=True)
    (here / f"{os.getpid()}").touch()
    if (job.task.name, job.method, job.seed) != ("lungs", "local", 0):
        time.sleep(600)
    return quick(job, tell)


def dies_once(job: Job, tell: Tell) -> list[Row]:
    """As if the system had no memory left: each run is killed at its first try."""
    mark = Path(job.experiment).parent / f"{job.name} died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(job, tell)


def one_always_dies(job: Job, tell: Tell) -> list[Row]:
    if (job.task.name, job.method, job.seed) == ("skin", "local", 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(job, tell)


def one_has_bad_data(job: Job, tell: Tell) -> list[Row]:
    if (job.task.name, job.method, job.seed) == ("skin", "local", 1):
        raise DataError("image 7 is no image; take it out.")
    if (job.task.name, job.method, job.seed) == ("skin", "local", 0):
        return [msgspec.structs.replace(row, metrics={"auc": float("nan")}) for row in rows_of(job)]
    return quick(job, tell)


def tells_its_surroundings(job: Job, tell: Tell) -> list[Row]:
    """Which process ran it, with how many threads, and what prints on standard output does no harm."""
    print("a library's greeting")
    here = Path(job.experiment).parent / "told"
    here.mkdir(exist_ok=True)
    (here / f"{job.name}.json").write_text(json.dumps([os.getpid(), os.environ.get("OMP_NUM_THREADS")]))
    return quick(job, tell)


def goes_wrong_in_every_way(job: Job, tell: Tell) -> list[Row]:
    """Of eight runs one is killed at every try, one has bad data, one raises something else, and five are well."""
    if job.name == "local on lungs, seed 1":
        raise ZeroDivisionError("a slip")
    if job.name == "fedavg on skin, seed 1":
        raise DataError("image 7 is no image; take it out.")
    if job.name == "local on skin, seed 1":
        os.kill(os.getpid(), signal.SIGKILL)
    return tells_its_surroundings(job, tell)


def request(folder: Path, run: str = "quick", **more: object) -> Request:
    fixed = Request(
        out=folder / "out", data=folder / "data", run=f"stand_in_runs:{run}", num_workers=2, memory_per_run_mb=100,
        memory_mb=10_000,
    )  # fmt: skip
    return msgspec.structs.replace(fixed, **more)


def simulated(folder: Path, run: str = "quick", text: str = EXPERIMENT, **more: object) -> Summary:
    return simulate(the_experiment(folder, text), request(folder, run, **more))


def stand_in(folder: Path, run: str, engine: str = "processes", json: bool = False) -> None:
    """The command, with these runs in place of real ones."""
    experiment = read_experiment(folder / "experiment.toml", METHODS)
    simulate_and_tell(experiment, request(folder, run), engine, json=json)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits that it is ignored
    cli.app.command("stand-in")(stand_in)
    sys.argv[1:1] = ["stand-in"]
    cli.main()
