"""One run in a process of its own: `python -m ayni_coordinator.simulation.worker MODULE:FUNCTION`.

The job is one line of JSON on stdin, what happens are lines on stdout. It ends when stdin does, also in the middle of
a step: nobody would hear the result.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import threading
import traceback
from contextlib import suppress
from typing import BinaryIO

import msgspec

from ayni.errors import AyniError
from ayni_coordinator.simulation.jobs import PERSONAL, Event, Failed, Finished, Job, Outcome, Progress, RunJob, Tell
from ayni_coordinator.simulation.results import Row

RUN = "ayni_coordinator.simulation.run:run_job"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ENVIRONMENT = {**ONE_THREAD, "PYTHONHASHSEED": "0"}  # the same order of every set, in every run


def outcome_of(job: Job, run: str, tell: Tell) -> Outcome:
    """Do one job by the function with this dotted name; what goes wrong becomes words, its traceback goes to stderr."""
    try:
        rows = _function(run)(job, tell)
        return Finished(rows=_checked(rows, job), peak_rss_mb=peak_rss_mb())
    except AyniError as error:
        return Failed(message=str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return Failed(message=f"{type(error).__name__}: {error}")


def _checked(rows: list[Row], job: Job) -> list[Row]:
    """As they would be read from results.json, where a figure that is not finite has no place."""
    try:
        rows = msgspec.json.decode(msgspec.json.encode(rows), type=list[Row])
    except msgspec.ValidationError as error:
        raise AyniError(f"the run gave a row that is none: {error}") from None
    foreign = [row for row in rows if (row.task, row.seed) != (job.task.name, job.seed) or not _is_of(row, job)]
    if foreign or not rows:
        raise AyniError(f"the run gave {len(rows)} rows, and {len(foreign)} of them are of another run")
    return rows


def _is_of(row: Row, job: Job) -> bool:
    if job.method == PERSONAL:
        return row.method.startswith("personal_")
    return row.role == "unseen" and row.site == job.left_out if job.left_out else row.method == job.method


def peak_rss_mb() -> int:
    """The most memory that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)  # Linux counts in KiB


def _function(dotted: str) -> RunJob:
    module, _, name = dotted.partition(":")
    function: RunJob = getattr(importlib.import_module(module), name)
    return function


def _end_with(stdin: BinaryIO) -> None:
    stdin.read()
    os._exit(1)


def main(run: str) -> None:
    """Events go to the real stdout; whatever else prints there (libraries) goes to stderr."""
    with suppress(KeyboardInterrupt, BrokenPipeError), os.fdopen(os.dup(1), "wb") as events:
        os.dup2(2, 1)

        def say(event: Event) -> None:
            events.write(msgspec.json.encode(event) + b"\n")
            events.flush()

        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        threading.Thread(target=_end_with, args=(sys.stdin.buffer,), name="stdin", daemon=True).start()
        say(outcome_of(job, run, lambda done, num_steps: say(Progress(done, num_steps))))
    os._exit(0)  # the thread that reads holds stdin, and an orderly end would wait for it


if __name__ == "__main__":
    main(sys.argv[1])
