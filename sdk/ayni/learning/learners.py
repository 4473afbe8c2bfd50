"""Who learns what in one step: a clinic, a hospital, or a site alone.

Each holds its networks and their optimisers in `parts`. What a step does is a function of the parts and the step's
number alone, so that a cut run goes on to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ayni.errors import UserError
from ayni.learning.batches import Batches, Normaliser, seed_of
from ayni.learning.fedhelp import clinic_public_loss, hospital_losses
from ayni.learning.networks import initial_weights, load_weights, seeded_network
from ayni.learning.objective import objective_of
from ayni.learning.parts import Parts
from ayni.learning.site_data import OwnImages, PublicImages
from ayni.task import Task, TrainingSettings

WARM_UP = 0.03  # of all steps, with a rising learning rate
AVERAGED = 0.1  # of all steps: how far back the averaged network remembers


class Learner(Protocol):
    @property
    def parts(self) -> Parts:
        """All that the next step depends on."""

    def step(self, number: int) -> dict[str, float]:
        """Learn from the batches of this step (0 is the first of the first round); returns the losses."""


def learning_rate_at(number: int, num_steps: int, training: TrainingSettings) -> float:
    """A short linear warm-up, then half a cosine down to zero at the end of the whole budget."""
    warm_up = max(1.0, WARM_UP * num_steps)
    rise = min(1.0, (number + 1) / warm_up)
    done = min(1.0, max(0.0, (number - warm_up) / max(1.0, num_steps - warm_up)))
    return training.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * done))


def own_batches(own: OwnImages, normalise: Normaliser, task: Task, site: str) -> Batches:
    """The same order whether a site learns alone or with others."""
    seed = seed_of(task.seed, site, "own")
    return Batches(own.train_NCHW, normalise, task.training, seed=seed, patch=task.image.patch)


def adam(module: nn.Module, training: TrainingSettings) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), weight_decay=training.weight_decay, fused=True)


def averaged(network: nn.Module, num_steps: int) -> AveragedModel:
    """A running mean of the weights, steadier than the last ones."""
    decay = 1 - 1 / max(2.0, AVERAGED * num_steps)
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


def descend(
    loss: Tensor, rate: float, *optimisers: torch.optim.Optimizer, before_step: Callable[[], None] | None = None
) -> float:
    """One step of each optimiser; returns the loss. `before_step` may change the gradients."""
    value = loss.item()
    if not math.isfinite(value):
        raise UserError("training diverged: the loss is not finite. Lower training.learning_rate in the task.")
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
        for group in optimiser.param_groups:
            group["lr"] = rate
    loss.backward()  # type: ignore[no-untyped-call]
    if before_step:
        before_step()
    for optimiser in optimisers:
        optimiser.step()
    return value


class Clinic:
    """The small network with two heads: private images for the diagnosis, public ones for what teachers know.

    The public head stays here and is kept from round to round.
    """

    def __init__(self, own: OwnImages, public: PublicImages | None, task: Task, site: str, *, distill: bool) -> None:
        self.task, self.own, self.public, self.objective = task, own, public, objective_of(task.kind)
        self.num_steps = task.training.rounds * task.training.steps_of("clinic")
        normalise = public.normalise if public else own.normalise
        self.small = seeded_network(task.small_network, task, seed_of(task.seed, site, "small"))
        self.optimiser = adam(self.small, task.training)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {"small": self.small, "small_adam": self.optimiser}
        self.private_batches = own_batches(own, normalise, task, site)
        self.optimisers: list[torch.optim.Optimizer] = [self.optimiser]
        # without weights from others the consensus is what a clinic learns from them
        weight = task.fedhelp.consensus_weight
        self.consensus_weight = max(weight, 1.0) if distill else weight
        self.guidance = public.guidance if public and task.fedhelp.guidance_weight > 0 else None
        self.consensus = public.consensus if public and self.consensus_weight > 0 else None
        self.labels = public.truth if public and task.fedhelp.label_weight > 0 else None
        self.public_head: nn.Module | None = None
        num_answers = 0 if self.guidance is None else self.guidance.shape[1]
        num_outputs = num_answers + (0 if self.labels is None else len(task.classes))
        if num_outputs:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(task.seed, site, "public head"))
                self.public_head = self.small.new_head(num_outputs)
            self.optimisers.append(adam(self.public_head, task.training))
            self.parts |= {"public_head": self.public_head, "public_head_adam": self.optimisers[-1]}
        if public:
            seed = seed_of(task.seed, site, "public")
            patch, pixels_PCHW = task.image.patch, public.pixels_PCHW
            if self.labels is not None and self.guidance is None and self.consensus_weight == 0:
                pixels_PCHW = pixels_PCHW[: len(self.labels)]  # of the others there is nothing to learn
            self.public_batches = Batches(pixels_PCHW, normalise, task.training, seed=seed, patch=patch)

    def step(self, number: int) -> dict[str, float]:
        rate = learning_rate_at(number, self.num_steps, self.task.training)
        batch = self.private_batches.at(number)
        loss = self.objective.supervised(self.small(batch.x_BCHW), batch.of(self.own.train_truth))
        losses = {"private": descend(loss, rate, self.optimiser)}
        if self.has_public_steps:
            losses["public"] = self._public_step(number, rate)
        return losses

    @property
    def has_public_steps(self) -> bool:
        """Whether there is anything to learn from public images."""
        return any(one is not None for one in (self.guidance, self.labels, self.consensus))

    def _public_step(self, number: int, rate: float) -> float:
        batch, truth, is_labelled_B = self.public_batches.at(number), None, None
        if self.labels is not None and (batch.chosen_B < len(self.labels)).any():
            is_labelled_B = batch.chosen_B < len(self.labels)
            truth = batch.where(is_labelled_B).of(self.labels)
        if self.guidance is None and self.consensus is None and truth is None:
            return 0.0  # hospitals have not answered yet, and none of these images has a label
        loss = clinic_public_loss(
            self.small,
            self.public_head,
            batch.x_BCHW,
            guidance=None if self.guidance is None else batch.of(self.guidance),
            consensus=None if self.consensus is None else batch.of(self.consensus),
            consensus_weight=self.consensus_weight,
            truth=truth,
            is_labelled_B=is_labelled_B,
            settings=self.task.fedhelp,
            objective=self.objective,
        )
        return descend(loss, rate, *self.optimisers)


class Hospital:
    """The large network, which stays, and its small proxy, which travels; both see the same private images, varied
    alike. `large_normalise`: how the large one is given them."""

    def __init__(self, own: OwnImages, normalise: Normaliser, task: Task, site: str) -> None:
        self.task, self.own, self.objective = task, own, objective_of(task.kind)
        self.num_steps = task.training.rounds * task.training.steps_of("hospital")
        self.small = seeded_network(task.small_network, task, seed_of(task.seed, site, "small"))
        self.large = seeded_network(task.large_network, task, seed_of(task.seed, site, "large"))
        self.average = averaged(self.large, self.num_steps)
        self.optimisers = (adam(self.small, task.training), adam(self.large, task.training))
        self.batches = own_batches(own, normalise, task, site)
        self.large_normalise = large_normalise_of(own, normalise, task)
        alike = self.large_normalise == normalise
        self.large_batches = self.batches if alike else own_batches(own, self.large_normalise, task, site)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "small": self.small,
            "small_adam": self.optimisers[0],
            "large": self.large,
            "large_adam": self.optimisers[1],
            "average": self.average,
        }

    def step(self, number: int) -> dict[str, float]:
        batch = self.batches.at(number)
        truth = batch.of(self.own.train_truth)
        seen_BCHW = batch.x_BCHW if self.large_batches is self.batches else self.large_batches.at(number).x_BCHW
        proxy_logits, large_logits = self.small(batch.x_BCHW), self.large(seen_BCHW)
        losses = hospital_losses(proxy_logits, large_logits, truth, self.task.fedhelp, self.objective)
        rate = learning_rate_at(number, self.num_steps, self.task.training)
        descend(losses.proxy + losses.large, rate, *self.optimisers)  # the teachers are detached: no gradient crosses
        self.average.update_parameters(self.large)
        return {"proxy": losses.proxy.item(), "large": losses.large.item()}


def large_normalise_of(own: OwnImages, common: Normaliser, task: Task) -> Normaliser:
    """How a hospital's large network is given images."""
    return own.normalise if task.fedhelp.large_normalise == "own" else common


class Alone:
    """The network that diagnoses (small at a clinic, large at a hospital), trained on the site's own images only."""

    def __init__(self, own: OwnImages, task: Task, site: str, *, large: bool, num_steps: int) -> None:
        self.task, self.own, self.num_steps, self.objective = task, own, num_steps, objective_of(task.kind)
        if large:
            self.network = seeded_network(task.large_network, task, seed_of(task.seed, site, "large"))
        else:
            self.network = seeded_network(task.small_network, task, task.seed)
            load_weights(self.network, initial_weights(task))
        self.average = averaged(self.network, num_steps)
        self.optimiser = adam(self.network, task.training)
        self.batches = own_batches(own, own.normalise, task, site)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "network": self.network,
            "network_adam": self.optimiser,
            "average": self.average,
        }

    def step(self, number: int) -> dict[str, float]:
        batch = self.batches.at(number)
        loss = self.objective.supervised(self.network(batch.x_BCHW), batch.of(self.own.train_truth))
        value = descend(loss, learning_rate_at(number, self.num_steps, self.task.training), self.optimiser)
        self.average.update_parameters(self.network)
        return {"private": value}
