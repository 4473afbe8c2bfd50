"""Each job in a process of its own, which ends when this one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ayni_coordinator.simulation.engine import Limits, Start, Stop
from ayni_coordinator.simulation.jobs import Event, Failed, Finished, Job
from ayni_coordinator.simulation.worker import ENVIRONMENT

_EVENTS = msgspec.json.Decoder(Event)


@contextmanager
def processes(run: str, log: Callable[[Job], Path], limits: Limits) -> Iterator[Start]:
    """The engine that needs nothing else."""
    yield lambda job, say: _start_process(job, say, run, log(job))


def _start_process(job: Job, say: Callable[[Event], None], run: str, log: Path) -> Stop:
    """Returns how to stop it. `say` hears, from another thread, what happens; last a Finished or Failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {name: str(job.num_threads) for name in ENVIRONMENT if name.endswith("_NUM_THREADS")}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "ayni_coordinator.simulation.worker", run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **ENVIRONMENT, **threads},
            start_new_session=True,  # Ctrl-C is for the engine, which then ends its workers
        )
    threading.Thread(target=_listen, args=(process, job, say, log), name=job.name, daemon=True).start()

    def stop() -> None:
        process.kill()
        process.wait()

    return stop


def _listen(process: subprocess.Popen[bytes], job: Job, say: Callable[[Event], None], log: Path) -> None:
    """Holds the process's stdin open until its stdout ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    last: Event | None = None
    with process.stdin, process.stdout, suppress(BrokenPipeError):
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            if not line.endswith(b"\n"):
                break  # killed while it said this
            last = _EVENTS.decode(line)
            if not isinstance(last, Finished | Failed):
                say(last)
    code = process.wait()
    if isinstance(last, Finished | Failed):
        say(last)
        if log.stat().st_size == 0:
            log.unlink()
    else:
        say(Failed(message=f"its process {_ended(code)} ({log} may say more)", died=True))


def _ended(code: int) -> str:
    """
    >>> _ended(-9)
    'was killed by SIGKILL, perhaps for lack of memory'
    >>> _ended(1)
    'ended with exit code 1'
    """
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", perhaps for lack of memory" if code == -signal.SIGKILL else "")
