"""The loop over the steps of one round: progress, checkpoints, the memory limit. Knows nothing of what is learned."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ayni.errors import UserError
from ayni.jobs import Progress
from ayni.learning.batches import Normaliser
from ayni.learning.learners import Learner
from ayni.learning.parts import load_parts, tensors_of
from ayni.learning.state import State, StateInfo, read_state, write_state
from ayni.task import Task

CHECKPOINT_EVERY_S = 5.0
PROGRESS_EVERY_S = 0.25

Tell = Callable[[Progress], None]


def peak_rss_mb() -> int:
    """The most memory this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # Linux counts in KiB


def check_memory(limit_mb: int) -> None:
    """Raises UserError if the process went over its limit (0: no limit)."""
    if 0 < limit_mb < peak_rss_mb():
        raise UserError(
            f"training took {peak_rss_mb()} MB of memory; this site allows {limit_mb}. "
            "Ask the coordinator for a smaller batch_size or network in the task, or allow more (memory_mb)."
        )


def resume(learner: Learner, checkpoint: Path, job: str) -> StateInfo | None:
    """Take up a checkpoint of this very job; None if there is none."""
    state = read_state(checkpoint)
    if state is None or state.info.job != job:
        return None
    load_parts(learner.parts, state.tensors)
    return state.info


def run_steps(
    learner: Learner,
    info: StateInfo,
    *,
    first_number: int,
    num_steps: int,
    checkpoint: Path | None,
    memory_mb: int,
    what: str,
    tell: Tell,
) -> StateInfo:
    """From `info.step` to `num_steps`; `first_number` is the number of step 0 over all rounds.

    A checkpoint is written every few seconds, if there is a place for it. Returns the info after the last step.
    """
    sums, began_s, saved_s, told_s = dict(info.loss_sums), time.monotonic(), time.monotonic(), 0.0
    before_s = info.train_s
    for step in range(info.step, num_steps):
        losses = learner.step(first_number + step)
        check_memory(memory_mb)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
        now_s = time.monotonic()
        info = msgspec.structs.replace(info, step=step + 1, loss_sums=dict(sums), train_s=before_s + now_s - began_s)
        if now_s - told_s >= PROGRESS_EVERY_S or step + 1 == num_steps:
            tell(Progress(step=step + 1, num_steps=num_steps, what=what, loss=next(iter(losses.values()))))
            told_s = now_s
        if checkpoint and now_s - saved_s >= CHECKPOINT_EVERY_S:
            write_state(checkpoint, State(info, tensors_of(learner.parts)))
            saved_s = time.monotonic()
    return info


def mean_losses(info: StateInfo) -> dict[str, float]:
    return {name: round(total / max(1, info.step), 6) for name, total in info.loss_sums.items()}


def run_at_centre(
    learner: Learner,
    task: Task,
    decides: Sequence[object],
    normalise: Normaliser,
    num_steps: int,
    *,
    checkpoint: Path | None,
    tell: Tell,
) -> None:
    """All steps that teach first weights, before there are rounds. What `decides` them, besides the task, names the
    checkpoint: what was killed goes on to the same bits."""
    name = hashlib.sha256("/".join(map(str, [num_steps, *decides])).encode() + task.to_json()).hexdigest()
    info = resume(learner, checkpoint, name) if checkpoint else None
    if info is None:
        info = StateInfo(job=name, round_number=0, pixel_mean=normalise.mean, pixel_std=normalise.std)
    run_steps(
        learner, info, first_number=0, num_steps=num_steps, checkpoint=checkpoint, memory_mb=0,
        what="training first weights", tell=tell,
    )  # fmt: skip
