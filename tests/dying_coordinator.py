"""Serves a coordinator's folder until one point of a round's life, and there kills its own process with SIGKILL.

    python dying_coordinator.py HOME POINT

Nothing in the product knows of this: one function is replaced by one that does its work and dies, or only dies.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ayni.wire.messages import Submitted, parse_reply
from ayni_coordinator import federation
from ayni_coordinator.home import CoordinatorHome
from ayni_coordinator.serve import serve
from ayni_coordinator.service import Coordinator
from ayni_coordinator.store import ArtefactStore


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(work: Callable[..., Any]) -> Callable[..., Any]:
    def done(*args: Any, **kwargs: Any) -> Any:
        work(*args, **kwargs)
        die()

    return done


def die_after_an_acknowledgement() -> None:
    """The reply has been handed to the socket when the loop's next tick comes."""
    handle, tick, acknowledged = Coordinator.handle, Coordinator.tick, list[object]()

    def noticed(self: Coordinator, *args: Any) -> Any:
        reply = handle(self, *args)
        if reply is not None and isinstance(parse_reply(reply)[0].body, Submitted):
            acknowledged.append(reply)
        return reply

    def last_tick(self: Coordinator, now_s: float) -> None:
        if acknowledged:
            die()
        tick(self, now_s)

    setattr(Coordinator, "handle", noticed)  # noqa: B010
    setattr(Coordinator, "tick", last_tick)  # noqa: B010


POINTS: dict[str, Callable[[], None]] = {
    "an answer was acknowledged": die_after_an_acknowledgement,
    "closed, not averaged": lambda: setattr(federation, "average_round", die),
    "averaged, not published": lambda: setattr(federation, "average_round", then_die(federation.average_round)),
    "publishing, not committed": lambda: setattr(federation, "publish_round", then_die(federation.publish_round)),
    "published, not swept": lambda: setattr(ArtefactStore, "sweep", die),
}

if __name__ == "__main__":
    POINTS[sys.argv[2]]()
    serve(CoordinatorHome.open(Path(sys.argv[1])), on_start=print)
