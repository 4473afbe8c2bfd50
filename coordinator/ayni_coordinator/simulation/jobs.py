"""A job: one method on one task with one seed. It holds all that the run needs: the file it came from may change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

import ayni
from ayni.errors import UserError
from ayni.task import Task
from ayni_coordinator.simulation.experiment import Experiment, Setting, TaskEntry, TaskPart
from ayni_coordinator.simulation.results import Row

# what runs are called whose rows have names of their own: of ways at an unseen site, of personal models
UNSEEN, PERSONAL = "unseen", "personal"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`entry.settings` has this method's settings only. Paths are absolute; `data_folder` is where data sets are.

    `fingerprint` tells whether stored rows still belong to this job. A `trial` of a setting measures on held-out images
    and touches no test image.
    """

    task: Task
    method: str
    seed: int
    entry: TaskEntry
    experiment: str  # the file that it comes from
    data_folder: str
    fingerprint: str
    num_threads: int = 1
    trial: str = ""

    @property
    def settings(self) -> dict[str, Setting]:
        """Of this method on this task."""
        return self.entry.settings.get(self.method, {})

    @property
    def name(self) -> str:
        without = f" without {self.left_out}" if self.left_out else ""
        trial = f" with {self.trial}" if self.trial else ""
        return f"{self.method}{trial} on {self.task.name}{without}, seed {self.seed}"

    @property
    def left_out(self) -> str:
        """The group that an `unseen` run leaves out, or "" of any other run."""
        return self.entry.leave_out.groups[0] if self.entry.leave_out else ""


def jobs_of(experiment: Experiment, data_folder: Path) -> list[Job]:
    """All of them, seed by seed: whoever stops early has whole seeds."""
    entries = [part.entry for part in experiment.parts]
    of_tasks = [seed for entry in entries for seed in entry.seeds]
    of_studies = [seed for entry in entries if entry.leave_out for seed in entry.leave_out.seeds]
    seeds = dict.fromkeys([*experiment.seeds, *of_tasks, *of_studies])
    return [
        job
        for seed in seeds
        for part in experiment.parts
        for job in [
            *(_job(experiment, part, method, seed, data_folder) for method in _methods(experiment, part, seed)),
            *(
                _job(experiment, part, study, seed, data_folder, group)
                for study, group in _studies(experiment, part, seed)
            ),
        ]
    ]


def _methods(experiment: Experiment, part: TaskPart, seed: int) -> tuple[str, ...]:
    return part.methods if seed in (part.entry.seeds or experiment.seeds) else ()


def _studies(experiment: Experiment, part: TaskPart, seed: int) -> list[tuple[str, str]]:
    """Personal models with the experiment's seeds, and each group that is left out with the study's or else these."""
    personal, plan = part.entry.personal is not None and seed in experiment.seeds, part.entry.leave_out
    groups = plan.groups if plan and seed in (plan.seeds or experiment.seeds) else ()
    return [(PERSONAL, "")] * personal + [(UNSEEN, group) for group in groups]


def trials_of(experiment: Experiment, data_folder: Path) -> list[Job]:
    """One for each value that is tried. Raises UserError if the experiment tunes nothing."""
    tuning = experiment.tuning
    if tuning is None:
        raise UserError(f"{experiment.path} has no section [tuning], which says what --tune tries.")
    trials = []
    for part in experiment.parts:
        for method, settings in tuning.values.items():
            for name, values in settings.items():
                for value in values if method in part.methods else ():
                    tried = msgspec.structs.replace(part.entry, settings={method: {name: value}})
                    job = _job(experiment, replace(part, entry=tried), method, tuning.seed, data_folder)
                    trials.append(msgspec.structs.replace(job, trial=f"{name}={value}"))
    return trials


def selected(
    jobs: list[Job], *, tasks: Collection[str] = (), methods: Collection[str] = (), seeds: Collection[int] = ()
) -> list[Job]:
    """Those that are asked for; nothing asked is everything. Raises UserError for what no job has."""
    _check_there("task", tasks, list(dict.fromkeys(job.task.name for job in jobs)))
    _check_there("method", methods, list(dict.fromkeys(job.method for job in jobs)))
    _check_there("seed", seeds, list(dict.fromkeys(job.seed for job in jobs)))
    return [
        job
        for job in jobs
        if (not tasks or job.task.name in tasks)
        and (not methods or job.method in methods)
        and (not seeds or job.seed in seeds)
    ]


def _check_there(what: str, wanted: Collection[str] | Collection[int], there: Sequence[str | int]) -> None:
    for value in wanted:
        if value not in there:
            raise UserError(
                f"--{what} {value}: the experiment has no such {what}; it has {', '.join(map(str, there))}."
            )


def _job(experiment: Experiment, part: TaskPart, method: str, seed: int, data_folder: Path, left_out: str = "") -> Job:
    settings = {method: part.entry.settings[method]} if method in part.entry.settings else {}
    plan = part.entry.leave_out
    leave_out = msgspec.structs.replace(plan, groups=(left_out,), seeds=()) if plan and left_out else None
    personal = part.entry.personal if method == PERSONAL else None
    entry = msgspec.structs.replace(
        part.entry, settings=settings, leave_out=leave_out, personal=personal, methods=(), seeds=()
    )
    return Job(
        task=part.task, method=method, seed=seed, entry=entry, experiment=str(experiment.path.resolve()),
        data_folder=str(data_folder.resolve()), fingerprint=_fingerprint(part, entry, method, seed),
    )  # fmt: skip


def _fingerprint(part: TaskPart, entry: TaskEntry, method: str, seed: int) -> str:
    """SHA-256 of what decides the rows: version, task, entry, method, seed; neither comments nor where the data lie."""
    decides = [ayni.__version__, part.told, entry, method, seed]
    return hashlib.sha256(msgspec.json.encode(decides, order="deterministic")).hexdigest()


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Steps done and in all."""

    done: int
    num_steps: int


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    rows: list[Row]
    peak_rss_mb: int = 0


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """`died`: the process ended without a word, so the same job may do better another time."""

    message: str
    died: bool = False


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Told by the engine, the next one too."""


class Retried(msgspec.Struct, frozen=True, tag="retried"):
    """It died, and waits for its second try."""

    message: str


Outcome = Finished | Failed
Event = Progress | Finished | Failed | Started | Retried
Tell = Callable[[int, int], None]  # steps done, steps in all
RunJob = Callable[[Job, Tell], list[Row]]
