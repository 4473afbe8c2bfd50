"""How an experiment stands: what is done, what runs, what the figures are so far, and how long it may still take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from ayni_coordinator.simulation.jobs import Failed, Finished, Job, Progress, Retried, Started
from ayni_coordinator.simulation.records import Record
from ayni_coordinator.simulation.results import Row, main_metric

Cell = tuple[str, str]  # task and method


def cell_of(job: Job) -> Cell:
    return job.task.name, job.method


@dataclass(slots=True)
class _Run:
    started_s: float
    share: float = 0.0  # of its steps


@dataclass(slots=True)
class Board:
    """Told of everything that happens; `now_s` is any clock that only goes forward."""

    jobs: list[Job]
    num_workers: int
    running: dict[str, _Run] = field(default_factory=dict)  # by the job's name
    rows: dict[str, list[Row]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    walls_s: dict[Cell, list[float]] = field(default_factory=dict)

    def keep(self, job: Job, record: Record) -> None:
        """It was finished before."""
        self.rows[job.name] = record.rows
        self.walls_s.setdefault(cell_of(job), []).append(record.wall_s)

    def tell(self, job: Job, event: Started | Retried | Progress | Finished | Failed, now_s: float) -> float:
        """Returns the seconds that the job has run."""
        if isinstance(event, Started):
            self.running[job.name] = _Run(now_s)
            return 0.0
        run = self.running[job.name]
        if isinstance(event, Progress):
            run.share = event.done / max(event.num_steps, 1)
            return now_s - run.started_s
        del self.running[job.name]
        if isinstance(event, Finished):
            self.rows[job.name] = event.rows
            self.walls_s.setdefault(cell_of(job), []).append(now_s - run.started_s)
        elif isinstance(event, Failed):
            self.failed[job.name] = event.message
        return now_s - run.started_s

    @property
    def num_ended(self) -> int:
        return len(self.rows) + len(self.failed)

    def in_cell(self, cell: Cell) -> list[Job]:
        return [job for job in self.jobs if cell_of(job) == cell]

    def left_s(self, now_s: float) -> float | None:
        """Until all is done, by what runs of the same kind took; None as long as nothing is known."""
        if not self.walls_s:
            return None
        left_s = 0.0
        for job in self.jobs:
            if job.name in self.rows or job.name in self.failed:
                continue
            whole_s = self._expected_s(cell_of(job))
            run = self.running.get(job.name)
            gone_s = max(now_s - run.started_s, run.share * whole_s) if run else 0.0
            left_s += max(whole_s - gone_s, 0.0)
        return left_s / max(min(self.num_workers, len(self.jobs) - self.num_ended), 1)

    def _expected_s(self, cell: Cell) -> float:
        """As runs of this kind took, or else of this task, or else any."""
        of_task = [wall_s for (task, _), walls_s in self.walls_s.items() if task == cell[0] for wall_s in walls_s]
        everything = [wall_s for walls_s in self.walls_s.values() for wall_s in walls_s]
        return fmean(self.walls_s.get(cell) or of_task or everything)


def figure(rows: Iterable[Row]) -> tuple[str, float] | None:
    """The main metric, and its mean over the clinics (over all sites if there is none); None without rows.

    >>> row = Row(task="t", method="local", seed=0, site="a", role="clinic", num_train=9, bytes_up=0, bytes_down=0,
    ...           metrics={"auc": 0.5}, seconds=1.0, rounds=1)
    >>> figure([row])
    ('auc', 0.5)
    """
    rows = list(rows)
    small = [row for row in rows if row.role == "clinic"] or rows
    if not small:
        return None
    return main_metric(small[0])[0], fmean(main_metric(row)[1] for row in small)


def time_text(seconds: float) -> str:
    """
    >>> time_text(59.4), time_text(3599), time_text(7300)
    ('59 s', '60 min', '2 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
