"""The same exchange with Ayni: what `ayni coordinator serve` runs on one side, and `ayni train` on the other.

What stands in for training hands over a file that was made before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from ayni.task import (
    ImageSettings,
    NetworkSettings,
    ResNetSettings,
    RoundSettings,
    Task,
    TrafficSettings,
    TrainingSettings,
)


def wire_task(num_sites: int, num_rounds: int) -> Task:
    """A small network of 6.55 million weights: 25.0 MiB of float32, sent whole."""
    return Task(
        name="wire",
        title="Wire benchmark",
        classes=tuple(f"class {number}" for number in range(64)),
        image=ImageSettings(height=28, width=28),
        training=TrainingSettings(rounds=num_rounds),
        networks=NetworkSettings(small=ResNetSettings(layers=(3, 2, 2, 1), planes=(64, 128, 256, 512))),
        traffic=TrafficSettings(form="fp32"),
        round=RoundSettings(deadline_s=10, quorum=num_sites, wait_for_sites=num_sites),
    )


def make_updates(folder: Path, task: Task, num_sites: int) -> int:
    """One file per site and round: the first weights plus noise, no two the same. Returns the bytes of one."""
    import numpy as np

    from ayni.artefacts.files import write_atomic
    from ayni.learning.networks import initial_weights
    from ayni.tensors.update import encode_whole

    first = initial_weights(task)
    for site in range(num_sites):
        for number in range(1, task.training.rounds + 1):
            noise = np.random.default_rng([site, number])
            update = {name: w + noise.standard_normal(w.shape, np.float32) * 0.01 for name, w in first.items()}
            write_atomic(folder / update_name(site, number), encode_whole(update, "fp32"))
    return sum(w.nbytes for w in first.values())


def update_name(site: int, round_number: int) -> str:
    return f"site-{site}-round-{round_number}"


def make_home(folder: Path, task: Task, endpoint: str, num_sites: int) -> list[str]:
    """A coordinator's home, and one invitation per site."""
    from ayni_coordinator.by_hand import new_invitation
    from ayni_coordinator.home import create_home

    create_home(folder, task, endpoint=endpoint, bind=endpoint)
    return [new_invitation(folder, f"site-{site}", "clinic", 3600).to_string() for site in range(num_sites)]


def take_part(
    invitation: str, home: Path, updates: Path, number: int, start: Barrier, told: Queue[Any], done: Barrier
) -> None:
    """A site's process. Says when it had the last model, and its bytes up and down since the start."""
    from ayni.site.agent import Agent
    from ayni.site.site import Silent, Site
    from ayni.site.state import SiteState
    from ayni.wire.curve import curve_dial
    from ayni.wire.line import Line

    site = Site.join(invitation, home)
    dial = curve_dial(site.settings.endpoint, site.settings.coordinator_key, site.keys.curve)
    with SiteState(home) as state:
        before: dict[str, tuple[int, int]] = {}

        def begin() -> None:
            before.update(state.traffic())
            start.wait()

        agent = Agent(home, site.settings, state, lambda: Line(dial, state.meter), Silent())
        try:
            agent.take_part(_Trained(updates, number, begin))  # type: ignore[arg-type]
        except _FinishedError as finished:
            after = state.traffic().items()
            up, down = (sum(bytes_[way] - before.get(key, (0, 0))[way] for key, bytes_ in after) for way in (0, 1))
            told.put((finished.at_s, up, down))
    done.wait()


class _FinishedError(Exception):
    def __init__(self, at_s: float) -> None:
        super().__init__(at_s)
        self.at_s = at_s


class _Trained:
    """In place of the training process. The first round's job begins the measurement, the finishing job ends it."""

    def __init__(self, updates: Path, site: int, begin: Callable[[], None]) -> None:
        self._updates, self._site, self._begin = updates, site, begin

    def run(self, job: Any, on_progress: object) -> Any:
        from ayni.jobs import Done, TrainRound

        if not isinstance(job, TrainRound):
            raise _FinishedError(time.monotonic())
        if job.round_number == 1:
            self._begin()
        assert job.update_out is not None
        os.link(self._updates / update_name(self._site, job.round_number), job.update_out)
        return Done(num_examples=100)
