"""The training process: `python -m ayni.learning.worker`, one job per line on stdin, events as lines on stdout.

It holds torch and no socket. It ends when stdin does, also in the middle of a step: nobody would hear the result, and
the agent's next training process takes up the checkpoint. A job that fails leaves the process ready for the next.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import msgspec
import torch

from ayni.artefacts.lock import folder_lock
from ayni.errors import MissingExtraError, UserError
from ayni.jobs import Done, Evaluate, Event, Failed, FinishTraining, Job, MakeExpert, TrainAlone, TrainRound
from ayni.learning.expert import make_expert
from ayni.learning.finish import finish_training, train_alone
from ayni.learning.models import evaluate
from ayni.learning.state import TrainingFolder
from ayni.learning.steps import Tell
from ayni.learning.training import train_round

LOCK_PATIENCE_S = 10.0  # for the training process of an agent that was killed a moment ago


def run_job(job: Job, tell: Tell) -> Done:
    """Do one job; raises what went wrong. Two processes never train in one site's folder."""
    torch.set_num_threads(job.context.num_threads)
    torch.use_deterministic_algorithms(True)
    if isinstance(job, Evaluate):  # writes nothing
        return evaluate(job)
    folder = TrainingFolder(Path(job.context.home)).path
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, "another training process works for this site", patience_s=LOCK_PATIENCE_S):
        match job:
            case TrainRound():
                return train_round(job, tell)
            case FinishTraining():
                return finish_training(job)
            case TrainAlone():
                return train_alone(job, tell)
            case MakeExpert():
                return make_expert(job)


def answer_line(line: bytes, tell: Callable[[Event], None]) -> None:
    """One job: its progress, then Done or Failed. Raises BrokenPipeError when nobody listens any more."""
    try:
        tell(run_job(msgspec.json.decode(line, type=Job), tell))
    except (UserError, MissingExtraError) as error:
        tell(Failed(message=str(error), user_error=True))
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, mostly: the same job again would fail again
        where = f"{error.filename}: " if error.filename else "the site's folder: "
        tell(
            Failed(
                message=f"{where}{error.strerror or error}. Make room there and try again; nothing is lost.",
                user_error=True,
            )
        )
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        tell(Failed(message=f"{type(error).__name__}: {error}", user_error=False))


def serve(jobs: BinaryIO, events: BinaryIO) -> None:
    """Until `jobs` ends; then the process ends at once."""
    lines: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        for line in jobs:
            lines.put(line)
        os._exit(0)

    def tell(event: Event) -> None:
        events.write(msgspec.json.encode(event) + b"\n")
        events.flush()

    threading.Thread(target=read, name="jobs", daemon=True).start()
    while True:
        answer_line(lines.get(), tell)


def main() -> None:
    """Events go to the real stdout; whatever else prints there (libraries) goes to stderr."""
    # when the agent ends, so does its training
    with suppress(KeyboardInterrupt, BrokenPipeError), os.fdopen(os.dup(1), "wb") as events:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, events)
    os._exit(0)  # the thread that reads holds stdin, and an orderly end would wait for it


if __name__ == "__main__":
    main()
