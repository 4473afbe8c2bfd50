"""Trains at a site until one point, and there kills its own process (or its training process) with SIGKILL.

python dying_site.py HOME DATA POINT
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from ayni.site import agent
from ayni.site.site import Site
from ayni.site.state import SiteState
from ayni.site.training_process import TrainingProcess


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_training() -> None:
    run = TrainingProcess.run

    def watched(self: TrainingProcess, job: Any, on_progress: Any) -> Any:
        def told(what: str, done: int, total: int) -> None:
            if done > 0:  # a step is done, the next one is under way
                die()

        return run(self, job, told)

    TrainingProcess.run = watched  # type: ignore[method-assign]


def kill_the_training_process_once() -> None:
    run, killed = TrainingProcess.run, list[int]()

    def watched(self: TrainingProcess, job: Any, on_progress: Any) -> Any:
        def told(what: str, done: int, total: int) -> None:
            if done > 0 and not killed and self._process:
                killed.append(self._process.pid)
                print("killed the training process", flush=True)
                os.kill(self._process.pid, signal.SIGKILL)

        return run(self, job, told)

    TrainingProcess.run = watched  # type: ignore[method-assign]


def die_after_the_acknowledgement() -> None:
    acknowledge = SiteState.acknowledge

    def last(self: SiteState, round_number: int, outcome: str) -> None:
        acknowledge(self, round_number, outcome)
        die()

    SiteState.acknowledge = last  # type: ignore[method-assign]


POINTS: dict[str, Callable[[], None]] = {
    "in training": die_in_training,
    "its training process": kill_the_training_process_once,
    "trained, not sent": lambda: setattr(agent, "upload", die),
    "acknowledged, not stored": lambda: setattr(SiteState, "acknowledge", die),
    "acknowledged and stored": die_after_the_acknowledgement,
}

if __name__ == "__main__":
    POINTS[sys.argv[3]]()
    Site(sys.argv[1]).train(sys.argv[2])
