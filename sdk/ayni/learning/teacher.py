"""The teacher of dual distillation, trained at the centre on its labelled images, by one process or by several."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, nn

from ayni.errors import UserError
from ayni.learning.dual_kd import Student, TeacherModel
from ayni.learning.learners import adam, averaged, descend, learning_rate_at, own_batches
from ayni.learning.networks import initial_weights, load_weights, rounded_to_half, seeded_network, weights_of
from ayni.learning.objective import objective_of
from ayni.learning.site_data import OwnImages
from ayni.learning.steps import Tell, run_at_centre
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.tensors.teacher import TeacherInfo

SITE = "teacher"  # in place of a site's name, in seeds


class Teacher:
    """The task's teacher network and the running mean of its weights, which teaches.

    Process `rank` of `world` takes every `world`-th image of each batch; their gradients are averaged, so that all
    hold the same weights. `torch.distributed` must have been started. Raises UserError for a batch that cannot be
    shared equally.
    """

    def __init__(self, own: OwnImages, task: Task, *, rank: int = 0, world: int = 1) -> None:
        if task.dual_kd is None:
            raise UserError(f"the task {task.name} has no section [dual_kd], so it needs no teacher.")
        if task.training.batch_size % world:
            raise UserError(f"{world} processes cannot share batches of {task.training.batch_size} images equally.")
        self.task, self.own, self.objective, self.rank, self.world = task, own, objective_of(task.kind), rank, world
        self.num_steps = task.dual_kd.teacher_steps
        self.network = seeded_network(task.teacher_network, task, task.seed)
        self.average = averaged(self.network, self.num_steps)
        self.optimiser = adam(self.network, task.training)
        self.batches = own_batches(own, own.normalise, task, SITE)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "network": self.network,
            "network_adam": self.optimiser,
            "average": self.average,
        }

    def step(self, number: int) -> dict[str, float]:
        batch = self.batches.at(number)
        x_BCHW, truth = batch.x_BCHW[self.rank :: self.world], batch.of(self.own.train_truth)[self.rank :: self.world]
        loss = self.objective.supervised(self.network(x_BCHW), truth)
        rate = learning_rate_at(number, self.num_steps, self.task.training)
        value = descend(loss, rate, self.optimiser, before_step=self._share_gradients if self.world > 1 else None)
        self.average.update_parameters(self.network)
        return {"private": value}

    def _share_gradients(self) -> None:
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world


def teacher_info(own: OwnImages, task: Task) -> TeacherInfo:
    """Of a teacher that was trained on these images at the centre."""
    return TeacherInfo(
        task=task.name,
        kind=task.kind,
        network=task.teacher_network,
        classes=task.classes,
        image=task.image,
        pixel_mean=own.normalise.mean,
        pixel_std=own.normalise.std,
        name=f"{task.name}-teacher",
        trained_on=f"{len(own.train_truth)} labelled images of the centre",
        num_images=len(own.train_truth),
    )


def first_weights(
    own: OwnImages,
    teacher: TeacherModel,
    task: Task,
    num_steps: int,
    *,
    checkpoint: Path | None = None,
    tell: Tell = lambda progress: None,
) -> dict[str, Floats]:
    """The small network that round 1 starts from, after `num_steps` as a student on the centre's images: their truth,
    and the teacher's answers to them. Half precision holds its values exactly, as those of `initial_weights`.

    With a place for a `checkpoint`, what was killed goes on to the same bits.
    """
    student = Student(own, teacher, task, SITE)
    load_weights(student.small, initial_weights(task))
    student.num_steps = num_steps
    decides = ["start", own.sha256, teacher.normalise, safe.digest(weights_of(teacher.network))]
    run_at_centre(student, task, decides, teacher.normalise, num_steps, checkpoint=checkpoint, tell=tell)
    return rounded_to_half(weights_of(student.small))
