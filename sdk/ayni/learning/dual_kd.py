"""Few labels: a site's small network learns from its labelled images, and from a teacher on its unlabelled ones.

Dual knowledge distillation (arXiv 2303.14357, ISBI 2023). The teacher was trained at the centre and is sent once; the
students are averaged. B = images, C = classes or structures, F = channels of the deepest features, P = their places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ayni.learning.batches import Batches, Normaliser, seed_of
from ayni.learning.learners import adam, descend, learning_rate_at, own_batches
from ayni.learning.networks import Network, seeded_network
from ayni.learning.objective import Objective, objective_of
from ayni.learning.site_data import OwnImages
from ayni.task import DualKdSettings, Task

SUPERVISED_WEIGHT = 0.5  # the paper's: half of Dice and cross-entropy


@dataclass(frozen=True)
class TeacherModel:
    """The centre's network, which never learns here, and the normalisation that it was trained with."""

    network: Network
    normalise: Normaliser

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)


@contextmanager
def deepest_features(network: Network) -> Iterator[list[Tensor]]:
    """Collects the bottleneck's output [B, F, ...] of every forward pass inside the block."""
    found: list[Tensor] = []
    handle = network.bottleneck.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def response_loss(student: Tensor, teacher: Tensor, sure: Tensor) -> Tensor:
    """The mean squared difference of two probabilities [B, C, ...] where `sure` (0 or 1, broadcast) is 1; 0 if it is
    nowhere.

    >>> import torch
    >>> response_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0, 0.0]])).item()
    0.25
    """
    weights = sure.expand_as(student)
    squares = (student - teacher.detach()) ** 2
    return (weights * squares).sum() / weights.sum().clamp_min(1.0)


def feature_loss(student_BFP: Tensor, teacher_BFP: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax over channels at each place of the deepest features: nats per place.

    >>> import torch
    >>> round(feature_loss(torch.zeros(1, 2, 1), torch.tensor([[[20.0], [0.0]]])).item(), 3)  # log 2
    0.693
    """
    if student_BFP.shape != teacher_BFP.shape:
        raise ValueError(f"deepest features of two shapes: {list(student_BFP.shape)}, {list(teacher_BFP.shape)}")
    student_BPF = student_BFP.flatten(2).movedim(1, 2).log_softmax(dim=2).flatten(0, 1)
    teacher_BPF = teacher_BFP.detach().flatten(2).movedim(1, 2).log_softmax(dim=2).flatten(0, 1)
    return functional.kl_div(student_BPF, teacher_BPF, reduction="batchmean", log_target=True)


def ramp(number: int, num_steps: int, ramp_up: float) -> float:
    """The share of the distillation's weight at a step: rises like a Gaussian's flank to 1 (Laine and Aila 2017).

    >>> [round(ramp(step, 100, 0.5), 3) for step in (0, 25, 50, 99)]
    [0.007, 0.287, 1.0, 1.0]
    """
    if ramp_up <= 0:
        return 1.0
    done = min(1.0, number / (ramp_up * num_steps))
    return math.exp(-5 * (1 - done) ** 2)


@dataclass(frozen=True)
class Taught:
    """What the teacher says of a batch: mean probabilities [B, C, ...] over noisy copies, where it is sure (0 or 1),
    and its deepest features."""

    probabilities: Tensor
    sure: Tensor
    features_BFP: Tensor


def ask_teacher(
    teacher: TeacherModel, x_BCHW: Tensor, settings: DualKdSettings, objective: Objective, *, seed: int
) -> Taught:
    """Every pass sees a copy with other noise; sure is where the entropy of the mean is below the share of the most
    that these outcomes allow (two for a structure in a pixel, all classes of an image)."""
    generator = torch.Generator().manual_seed(seed)
    answers: list[Tensor] = []
    with torch.no_grad(), deepest_features(teacher.network) as features:
        for _ in range(settings.passes):
            noise_BCHW = torch.randn(x_BCHW.shape, generator=generator) * settings.noise
            answers.append(objective.probabilities(teacher.network(x_BCHW + noise_BCHW)))
    mean = torch.stack(answers).mean(dim=0)
    sure = (objective.doubt(mean) < settings.max_entropy).to(mean.dtype)
    return Taught(mean, sure, features[0].flatten(2))


class Student:
    """The small network: supervised on labelled images, taught on unlabelled ones (on the labelled ones without their
    truth, if a site has no others). Every site trains one, whatever its size."""

    def __init__(self, own: OwnImages, teacher: TeacherModel, task: Task, site: str) -> None:
        if task.dual_kd is None:
            raise ValueError(f"the task {task.name} has no settings for dual distillation")
        self.task, self.own, self.teacher, self.settings = task, own, teacher, task.dual_kd
        self.objective = objective_of(task.kind)
        self.num_steps = task.training.rounds * task.training.steps_per_round
        self.small = seeded_network(task.small_network, task, seed_of(task.seed, site, "small"))
        self.optimiser = adam(self.small, task.training)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {"small": self.small, "small_adam": self.optimiser}
        self._seed = seed_of(task.seed, site, "unlabelled")
        self.labelled = own_batches(own, teacher.normalise, task, site)
        self.unlabelled = unlabelled_batches(own, teacher.normalise, task, site)

    def step(self, number: int) -> dict[str, float]:
        batch = self.labelled.at(number)
        private = self.objective.supervised(self.small(batch.x_BCHW), batch.of(self.own.train_truth))
        taught = self._taught_loss(number) if self._is_taught else private.new_zeros(())
        loss = SUPERVISED_WEIGHT * private + ramp(number, self.num_steps, self.settings.ramp_up) * taught
        descend(loss, learning_rate_at(number, self.num_steps, self.task.training), self.optimiser)
        return {"private": private.item(), "taught": taught.item()}

    @property
    def _is_taught(self) -> bool:
        return self.settings.response_weight > 0 or self.settings.feature_weight > 0

    def _taught_loss(self, number: int) -> Tensor:
        settings = self.settings
        x_BCHW = self.unlabelled.at(number).x_BCHW
        seed = seed_of(self._seed, "noise", number)
        taught = ask_teacher(self.teacher, x_BCHW, settings, self.objective, seed=seed)
        with deepest_features(self.small) as features:
            logits = self.small(x_BCHW)
        if settings.response == "soft-labels":
            response = self.objective.supervised(logits, taught.probabilities)
        else:
            response = response_loss(self.objective.probabilities(logits), taught.probabilities, taught.sure)
        loss = settings.response_weight * response
        if settings.feature_weight > 0:
            loss = loss + settings.feature_weight * feature_loss(features[0].flatten(2), taught.features_BFP)
        return loss


def unlabelled_batches(own: OwnImages, normalise: Normaliser, task: Task, site: str) -> Batches:
    """Of the images without truth; of the training images if there are none."""
    pixels = own.unlabelled_UCHW if len(own.unlabelled_UCHW) else own.train_NCHW
    return Batches(
        pixels, normalise, task.training, seed=seed_of(task.seed, site, "unlabelled"), patch=task.image.patch
    )
