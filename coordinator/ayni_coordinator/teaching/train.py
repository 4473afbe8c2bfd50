"""The teacher learns from the centre's labelled images, in one process or several; goes on from a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from ayni.learning.batches import Batch, Batches, Normaliser
from ayni.learning.models import best_of
from ayni.learning.networks import load_weights, seeded_network, weights_of
from ayni.learning.objective import objective_of
from ayni.learning.parts import tensors_of
from ayni.learning.scores import answers
from ayni.learning.site_data import OwnImages
from ayni.learning.state import State, StateInfo, write_state
from ayni.learning.steps import Tell, resume, run_steps
from ayni.learning.teacher import Teacher
from ayni.task import Task
from ayni.tensors.safe import Floats
from ayni_coordinator.teaching.processes import Processes

Weights = dict[str, Floats]
OnProgress = Callable[[str, int, int], None]  # what, done, in all


class _OnDevice:
    """The same batches, at the place where the network is."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches, self._device = batches, device

    def at(self, number: int) -> _BatchOnDevice:
        batch = self._batches.at(number)
        return _BatchOnDevice(batch.x_BCHW.to(self._device), batch, self._device)


@dataclass(frozen=True)
class _BatchOnDevice:
    x_BCHW: Tensor
    batch: Batch
    device: torch.device

    def of(self, all_N: Tensor) -> Tensor:
        return self.batch.of(all_N).to(self.device)


def telling(on_progress: OnProgress) -> Tell:
    return lambda progress: on_progress(progress.what, progress.step, progress.num_steps)


def trained_teacher(
    own: OwnImages, task: Task, together: Processes, checkpoint: Path, on_progress: OnProgress
) -> list[Weights]:
    """The weights of the averaged network and of the last one, the same in all processes.

    The first process writes the checkpoint, and all begin from it: a run that was killed goes on to the same bits.
    """
    teacher = Teacher(own, task, rank=together.rank, world=together.world)
    if together.device.type != "cpu":
        teacher.network.to(together.device)
        teacher.average.to(together.device)
        teacher.batches = _OnDevice(teacher.batches, together.device)  # type: ignore[assignment]
    name = hashlib.sha256(f"teach/{own.sha256}/".encode() + task.to_json()).hexdigest()
    info = resume(teacher, checkpoint, name)
    together.wait_for_all()  # nobody writes a checkpoint while another reads
    if info is None:
        info = StateInfo(job=name, round_number=0, pixel_mean=own.normalise.mean, pixel_std=own.normalise.std)
    if together.is_first:
        info = run_steps(
            teacher,
            info,
            first_number=0,
            num_steps=teacher.num_steps,
            checkpoint=checkpoint,
            memory_mb=0,
            what="training the teacher",
            tell=telling(on_progress),
        )
        write_state(checkpoint, State(info, tensors_of(teacher.parts)))
    else:
        for number in range(info.step, teacher.num_steps):
            teacher.step(number)
    together.wait_for_all()
    networks: list[nn.Module] = [teacher.average.module.cpu(), teacher.network.cpu()]
    return [weights_of(network) for network in networks]


def chosen(candidates: list[Weights], own: OwnImages, task: Task) -> Weights:
    """The averaged network, unless the last one is better on held-out images by more than chance."""
    if not len(own.holdout_truth):
        return candidates[0]
    objective = objective_of(task.kind)
    logits = [answers_of(weights, own.holdout_MCHW, own.normalise, task) for weights in candidates]
    figures = [objective.score(some, own.holdout_truth).main for some in logits]
    return candidates[best_of(figures, objective.chance(logits[0], own.holdout_truth))]


def answers_of(weights: Weights, pixels_NCHW: Tensor, normalise: Normaliser, task: Task) -> Tensor:
    """Logits of the teacher's network with these weights."""
    network = seeded_network(task.teacher_network, task, 0).eval()
    load_weights(network, weights)
    return answers(network, pixels_NCHW, normalise)


def with_steps(task: Task, steps: int | None) -> Task:
    """The task with another budget for its teacher."""
    if task.dual_kd is None or steps is None:
        return task
    return msgspec.structs.replace(task, dual_kd=msgspec.structs.replace(task.dual_kd, teacher_steps=steps))
