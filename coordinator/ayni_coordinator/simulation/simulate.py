"""One `ayni simulate`: takes up what is finished, runs the rest, and keeps results.json and its page up to date."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ayni.artefacts.lock import folder_lock
from ayni.errors import MissingExtraError
from ayni_coordinator.simulation.board import Board
from ayni_coordinator.simulation.engine import Engine, Limits, run_jobs
from ayni_coordinator.simulation.experiment import Experiment, check_data
from ayni_coordinator.simulation.jobs import Event, Failed, Finished, Job, jobs_of, selected, trials_of
from ayni_coordinator.simulation.memory import MemoryPlan, default_budget_mb, num_cores
from ayni_coordinator.simulation.page import write_page
from ayni_coordinator.simulation.processes import processes
from ayni_coordinator.simulation.records import Record, Records
from ayni_coordinator.simulation.results import Row, write_rows
from ayni_coordinator.simulation.table import Screen, standing
from ayni_coordinator.simulation.tuning import TUNED_FILE, figures_of, write_tuned
from ayni_coordinator.simulation.worker import RUN

RESULTS_FILE = "results.json"
PAGE_FILE = "results.md"
PAGE_EVERY_S = 60.0  # while runs end; at the end in any case


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. Empty `tasks`, `methods` or `seeds`: all of them; None: what suits this machine."""

    out: Path
    data: Path
    tasks: Collection[str] = ()
    methods: Collection[str] = ()
    seeds: Collection[int] = ()
    num_workers: int | None = None
    memory_mb: int | None = None
    memory_per_run_mb: int | None = None
    tune: bool = False  # the trials of the experiment's [tuning], in place of its runs
    run: str = RUN  # the dotted name of the function that does one job


class FailedRun(msgspec.Struct, frozen=True, kw_only=True):
    task: str
    method: str
    seed: int
    message: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`kept` runs were finished before, `redone` of the `ran` were outdated; `num_rows` are in `results`."""

    ran: int
    kept: int
    redone: int
    failed: list[FailedRun]
    num_rows: int
    results: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class _Plan:
    """`jobs` are those asked for, `todo` what is left of them, `all_jobs` the whole experiment's."""

    all_jobs: list[Job]
    jobs: list[Job]
    todo: list[Job]
    outdated: list[Job]


def require_parts() -> None:
    """Raises MissingExtraError where torch or MONAI are not installed, without importing them."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("monai") is None:
        raise MissingExtraError("Simulating", "coordinator")


def simulate(experiment: Experiment, request: Request, engine: Engine = processes) -> Summary:
    """Raises UserError for what cannot be run. `engine` gives what starts one job: a process of its own, by default."""
    all_jobs = (trials_of if request.tune else jobs_of)(experiment, request.data)
    jobs = selected(all_jobs, tasks=request.tasks, methods=request.methods, seeds=request.seeds)
    names = {job.task.name for job in jobs}
    check_data(request.data, [part for part in experiment.parts if part.task.name in names])
    request.out.mkdir(parents=True, exist_ok=True)
    with folder_lock(request.out, "another `ayni simulate` works in this folder"):
        return _run(experiment, request, _plan(all_jobs, jobs, Records(request.out)), engine)


def _plan(all_jobs: list[Job], jobs: list[Job], records: Records) -> _Plan:
    stands = {job.name: records.stand(job) for job in jobs}
    todo = [job for job in jobs if stands[job.name] != "finished"]
    return _Plan(all_jobs, jobs, todo, [job for job in jobs if stands[job.name] == "outdated"])


def _run(experiment: Experiment, request: Request, plan: _Plan, engine: Engine) -> Summary:
    began_s = time.monotonic()
    records = Records(request.out)
    limits = Limits(request.num_workers or num_cores(), request.memory_mb or default_budget_mb())
    board, memory = _start_state(plan, records, limits, request)
    pages = (_Tuned if request.tune else _Pages)(experiment, plan.all_jobs, records)

    with Screen(board) as screen:
        for text in _first_words(plan, records, limits):
            screen.note(text)

        def on_event(job: Job, event: Event) -> None:
            wall_s = board.tell(job, event, time.monotonic())
            if isinstance(event, Finished | Failed):
                records.write(job, _record(job, event, wall_s))
                pages.write_now_and_then()
            screen.tell(job, event, wall_s)

        try:
            if plan.todo:
                with engine(request.run, records.log, limits) as start:
                    run_jobs(plan.todo, start, limits, memory, on_event=on_event, on_tick=screen.draw)
        except KeyboardInterrupt:
            screen.note(f"stopped: {standing(board)}; the same command goes on from there")
            raise
        finally:
            num_rows = pages.write()
    results = request.out / (TUNED_FILE if request.tune else RESULTS_FILE)
    return _summary(plan, board, num_rows, results, time.monotonic() - began_s)


def _start_state(plan: _Plan, records: Records, limits: Limits, request: Request) -> tuple[Board, MemoryPlan]:
    """With what is known from the runs that are finished."""
    board, memory = Board(plan.jobs, limits.num_workers), MemoryPlan(request.memory_per_run_mb)
    for job in plan.jobs:
        record = records.read(job)
        if record is not None and job not in plan.todo:
            board.keep(job, record)
            memory.learn((job.task.name, job.method), record.peak_rss_mb)
    return board, memory


def _first_words(plan: _Plan, records: Records, limits: Limits) -> list[str]:
    kept = len(plan.jobs) - len(plan.todo)
    words = [
        f"{len(plan.todo)} runs to do, {kept} are finished already; at most {limits.num_workers} at once "
        f"in {limits.memory_mb} MB"
    ]
    if plan.outdated:
        names = ", ".join(job.name for job in plan.outdated[:3]) + (", ..." if len(plan.outdated) > 3 else "")
        words.append(
            f"{len(plan.outdated)} runs were done with another task, setting or version, and are done again: {names}"
        )
    if foreign := records.foreign(plan.all_jobs):
        words.append(f"{len(foreign)} runs below {records.out} are not of this experiment, and are left out")
    return words


def _record(job: Job, event: Finished | Failed, wall_s: float) -> Record:
    if isinstance(event, Failed):
        return Record(fingerprint=job.fingerprint, failed=event.message, wall_s=wall_s)
    return Record(fingerprint=job.fingerprint, rows=event.rows, wall_s=wall_s, peak_rss_mb=event.peak_rss_mb)


def _summary(plan: _Plan, board: Board, num_rows: int, results: Path, wall_s: float) -> Summary:
    failed = [
        FailedRun(task=job.task.name, method=job.method, seed=job.seed, message=board.failed[job.name])
        for job in plan.jobs
        if job.name in board.failed
    ]
    return Summary(
        ran=len(plan.todo), kept=len(plan.jobs) - len(plan.todo), redone=len(plan.outdated), failed=failed,
        num_rows=num_rows, results=str(results), wall_s=round(wall_s, 1),
    )  # fmt: skip


class _Pages:
    """results.json after every run; its page, which takes longer to draw, now and then and at the end."""

    def __init__(self, experiment: Experiment, jobs: list[Job], records: Records) -> None:
        self._experiment, self._jobs, self._records = experiment, jobs, records
        self._drawn_s = time.monotonic()

    def write_rows(self) -> list[Row]:
        """All that there are now."""
        rows = self._records.rows(self._experiment, self._jobs)
        write_rows(self._records.out / RESULTS_FILE, rows)
        return rows

    def write_now_and_then(self) -> None:
        rows = self.write_rows()
        if rows and time.monotonic() - self._drawn_s >= PAGE_EVERY_S:
            with suppress(Exception):  # a slip in a page of half the rows costs no run; at the end it is said
                write_page(rows, self._records.out / PAGE_FILE)
            self._drawn_s = time.monotonic()

    def write(self) -> int:
        """Returns how many rows there are."""
        rows = self.write_rows()
        if rows:
            write_page(rows, self._records.out / PAGE_FILE)
        return len(rows)


class _Tuned:
    """tuned.toml, once trials have ended; a setting of which some value is not tried yet, or failed, is not in it."""

    def __init__(self, experiment: Experiment, jobs: list[Job], records: Records) -> None:
        self._jobs, self._records = jobs, records

    def write_now_and_then(self) -> None:
        """At the end alone."""

    def write(self) -> int:
        """Returns how many rows of trials there are."""
        done = {job.name: self._records.read(job) for job in self._jobs if self._records.stand(job) == "finished"}
        cells = {(job.task.name, job.method) for job in self._jobs if job.name not in done}
        whole = [job for job in self._jobs if (job.task.name, job.method) not in cells]
        trials = [(job, record.rows) for job in whole if (record := done[job.name]) is not None]
        if trials:
            write_tuned(self._records.out / TUNED_FILE, figures_of(trials))
        return sum(len(record.rows) for record in done.values() if record is not None)
