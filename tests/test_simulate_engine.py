"""Runs side by side: how many at once, in which order, what a dead process costs, what an interruption leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ayni_coordinator.simulation.engine import Limits, Stop, run_jobs
from ayni_coordinator.simulation.jobs import Event, Failed, Finished, Job, Progress, Retried, Started, jobs_of
from ayni_coordinator.simulation.memory import FIRST_GUESS_MB, MemoryPlan
from stand_in_runs import rows_of, the_experiment


class Machine:
    """Runs nothing: a job ends when `end` is called, and the machine remembers what was done with it."""

    def __init__(self, dies: Callable[[Job], bool] = lambda job: False, peak_mb: int = 0) -> None:
        self.dies, self.peak_mb = dies, peak_mb
        self.running: dict[str, Callable[[Event], None]] = {}
        self.most_at_once = 0
        self.stopped: list[str] = []
        self.events: list[tuple[str, Event]] = []
        self._jobs: dict[str, Job] = {}

    def start(self, job: Job, say: Callable[[Event], None]) -> Stop:
        self.running[job.name], self._jobs[job.name] = say, job
        self.most_at_once = max(self.most_at_once, len(self.running))
        return lambda: self.stopped.append(job.name)

    def end_the_oldest(self) -> None:
        name = next(iter(self.running), None)
        if name is not None:
            say, job = self.running.pop(name), self._jobs[name]
            if self.dies(job):
                say(Failed(message="killed", died=True))
            else:
                say(Progress(1, 1))
                say(Finished(rows=rows_of(job), peak_rss_mb=self.peak_mb))

    def heard(self, kind: type[Event]) -> list[str]:
        return [name for name, event in self.events if isinstance(event, kind)]


def run(jobs: list[Job], machine: Machine, *, workers: int, memory_mb: int, plan: MemoryPlan | None = None) -> None:
    run_jobs(
        jobs, machine.start, Limits(workers, memory_mb), plan or MemoryPlan(),
        on_event=lambda job, event: machine.events.append((job.name, event)), on_tick=machine.end_the_oldest,
    )  # fmt: skip


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return jobs_of(the_experiment(tmp_path), tmp_path / "data")


def test_as_many_run_at_once_as_there_are_workers(jobs: list[Job]) -> None:
    machine = Machine()
    run(jobs, machine, workers=3, memory_mb=10 * FIRST_GUESS_MB)
    assert machine.most_at_once == 3
    assert machine.heard(Started) == [job.name for job in jobs]
    assert sorted(machine.heard(Finished)) == sorted(job.name for job in jobs)
    assert machine.stopped == []


def test_no_more_run_at_once_than_fit_into_the_memory(jobs: list[Job]) -> None:
    machine = Machine()
    run(jobs, machine, workers=8, memory_mb=2 * FIRST_GUESS_MB)
    assert machine.most_at_once == 2


def test_a_run_that_is_larger_than_the_memory_runs_alone(jobs: list[Job]) -> None:
    machine = Machine()
    run(jobs, machine, workers=8, memory_mb=1)
    assert machine.most_at_once == 1
    assert len(machine.heard(Finished)) == 8


def test_what_finished_runs_needed_decides_how_many_more_fit(jobs: list[Job]) -> None:
    plan = MemoryPlan()
    assert plan.estimate_mb(("lungs", "local")) == FIRST_GUESS_MB
    plan.learn(("lungs", "fedavg"), 300)
    assert plan.estimate_mb(("lungs", "local")) == 330  # 300 and a tenth: the task is known, the method is not
    plan.learn(("lungs", "local"), 200)
    assert plan.estimate_mb(("lungs", "local")) == 220
    plan.learn(("lungs", "local"), 100)
    assert plan.estimate_mb(("lungs", "local")) == 220  # the most that it ever needed
    assert plan.estimate_mb(("skin", "local")) == FIRST_GUESS_MB
    assert MemoryPlan(700).estimate_mb(("lungs", "local")) == 700
    machine = Machine(peak_mb=FIRST_GUESS_MB // 10)
    run(jobs, machine, workers=8, memory_mb=FIRST_GUESS_MB)  # the first alone, then the learned ones together
    assert machine.most_at_once > 1


def test_a_run_whose_process_dies_is_tried_once_more_after_the_others(jobs: list[Job]) -> None:
    died: list[str] = []

    def dies_at_first(job: Job) -> bool:
        died.append(job.name)
        return job.name == jobs[0].name and died.count(job.name) == 1

    machine = Machine(dies_at_first)
    run(jobs, machine, workers=1, memory_mb=10 * FIRST_GUESS_MB)
    assert machine.heard(Retried) == [jobs[0].name]
    assert machine.heard(Started) == [*(job.name for job in jobs), jobs[0].name]
    assert machine.heard(Finished)[-1] == jobs[0].name
    assert machine.heard(Failed) == []


def test_a_run_that_dies_twice_has_failed_and_the_others_go_on(jobs: list[Job]) -> None:
    machine = Machine(lambda job: job.name == jobs[0].name)
    run(jobs, machine, workers=2, memory_mb=10 * FIRST_GUESS_MB)
    assert machine.heard(Failed) == [jobs[0].name]
    assert len(machine.heard(Finished)) == 7


def test_a_second_try_has_twice_the_memory(jobs: list[Job]) -> None:
    machine = Machine(lambda job: job.name == jobs[0].name)
    run(jobs, machine, workers=8, memory_mb=3 * FIRST_GUESS_MB)
    tries, beside, most_beside = 0, 0, {1: 0, 2: 0}
    for name, event in machine.events:
        if isinstance(event, Started):
            tries += name == jobs[0].name
            most_beside[tries] = max(most_beside[tries], beside)
        beside += isinstance(event, Started) - isinstance(event, Finished | Failed | Retried)
    assert most_beside == {1: 2, 2: 1}  # of three places, the second try takes two


def test_an_interruption_stops_every_run_and_passes_on(jobs: list[Job]) -> None:
    machine = Machine()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            jobs, machine.start, Limits(3, 10 * FIRST_GUESS_MB), MemoryPlan(),
            on_event=lambda job, event: None, on_tick=interrupt,
        )  # fmt: skip
    assert machine.stopped == [job.name for job in jobs[:3]]
