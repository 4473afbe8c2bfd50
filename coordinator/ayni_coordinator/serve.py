"""The coordinator's process: one port, one loop, until it is told to stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable

from ayni.artefacts.lock import folder_lock
from ayni.wire.connection import Frames
from ayni.wire.curve import CurveServer
from ayni_coordinator.database import DatabaseError
from ayni_coordinator.home import CoordinatorHome
from ayni_coordinator.service import Coordinator

log = logging.getLogger(__name__)


def serve(home: CoordinatorHome, *, on_start: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; whatever was acknowledged is on the disk, also after kill -9."""
    stopping = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
    with folder_lock(home.folder, "another `ayni coordinator serve` runs on this folder"):
        coordinator = Coordinator(home, time.time())

        def handle(key: bytes, frames: Frames) -> Frames | None:
            return coordinator.handle(key, frames, time.time())

        def tick() -> None:
            try:
                coordinator.tick(time.time())
            except DatabaseError as error:  # it may pass: what is stored is whole, and is taken up again
                log.error("%s", error)

        try:
            with CurveServer(home.config.bind, home.keys.curve.secret, coordinator.admit, handle) as server:
                on_start(server.endpoint)
                server.serve(stopping.is_set, tick, tick_s=0.02)
        finally:
            coordinator.close(time.time())
