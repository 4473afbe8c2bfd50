"""Runs jobs side by side: as many as there are workers, and as fit into the memory. Knows nothing of how one is run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from ayni_coordinator.simulation.jobs import Event, Failed, Finished, Job, Retried, Started
from ayni_coordinator.simulation.memory import MemoryPlan

NUM_TRIES = 2  # of a job whose process dies
POLL_S = 0.5

Stop = Callable[[], None]
Start = Callable[[Job, Callable[[Event], None]], Stop]  # says events, from any thread; last a Finished or Failed


@dataclass(frozen=True, slots=True)
class Limits:
    num_workers: int
    memory_mb: int


# What a run's dotted name, a job's log and the limits make; leaving it ends whatever it started.
Engine = Callable[[str, Callable[[Job], Path], Limits], AbstractContextManager[Start]]


@dataclass(frozen=True, slots=True)
class _Waiting:
    job: Job
    num_tries: int = 0


@dataclass(frozen=True, slots=True)
class _Running:
    waiting: _Waiting
    need_mb: int
    stop: Stop


def run_jobs(
    jobs: Sequence[Job],
    start: Start,
    limits: Limits,
    memory: MemoryPlan,
    *,
    on_event: Callable[[Job, Event], None],
    on_tick: Callable[[], None],
) -> None:
    """Until all have ended. A job's last event is Finished or Failed; a job that died is tried once more, at the end.

    Whatever ends this early (Ctrl-C), no job goes on after it.
    """
    waiting = deque(_Waiting(job) for job in jobs)
    running: dict[int, _Running] = {}
    events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
    number = 0
    try:
        while waiting or running:
            while waiting and _fits(need_mb := _need_mb(waiting[0], memory), running, limits):
                number += 1
                on_event(waiting[0].job, Started())
                running[number] = _begin(waiting.popleft(), need_mb, start, events, number)
            for which, event in _heard(events):
                if isinstance(event, Finished | Failed):
                    done = running.pop(which).waiting
                    if again := _ended(done, event, memory, on_event):
                        waiting.append(again)
                else:
                    on_event(running[which].waiting.job, event)
            on_tick()
    finally:
        for left in running.values():
            left.stop()


def _need_mb(waiting: _Waiting, memory: MemoryPlan) -> int:
    """Twice as much for a job that died: it may have been for lack of memory."""
    return memory.estimate_mb((waiting.job.task.name, waiting.job.method)) * (1 + waiting.num_tries)


def _fits(need_mb: int, running: dict[int, _Running], limits: Limits) -> bool:
    """One always does, however large."""
    used_mb = sum(each.need_mb for each in running.values())
    return not running or (len(running) < limits.num_workers and used_mb + need_mb <= limits.memory_mb)


def _begin(
    waiting: _Waiting, need_mb: int, start: Start, events: SimpleQueue[tuple[int, Event]], number: int
) -> _Running:
    return _Running(waiting, need_mb, start(waiting.job, lambda event: events.put((number, event))))


def _heard(events: SimpleQueue[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """What has been said since; waits a moment for the first word."""
    heard: list[tuple[int, Event]] = []
    until_s = time.monotonic() + POLL_S
    while (left_s := until_s - time.monotonic()) > 0 and not any(isinstance(e, Finished | Failed) for _, e in heard):
        try:
            heard.append(events.get(timeout=left_s))
        except Empty:
            break
    return heard


def _ended(
    done: _Waiting, event: Finished | Failed, memory: MemoryPlan, on_event: Callable[[Job, Event], None]
) -> _Waiting | None:
    """Passes the end on, or returns the second try."""
    if isinstance(event, Failed) and event.died and done.num_tries + 1 < NUM_TRIES:
        on_event(done.job, Retried(event.message))
        return _Waiting(done.job, done.num_tries + 1)
    if isinstance(event, Finished):
        memory.learn((done.job.task.name, done.job.method), event.peak_rss_mb)
    on_event(done.job, event)
    return None
