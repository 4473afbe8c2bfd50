"""FedAvg whose sites also learn from their unlabelled images, each method by one more term of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ayni.learning.batches import Batch, Batches, seed_of
from ayni.learning.dual_kd import unlabelled_batches
from ayni_coordinator.simulation.averaging import SiteModel
from ayni_coordinator.simulation.method import Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.methods import fedavg
from ayni_coordinator.simulation.training import Trainer, small_network


@dataclass(slots=True)
class State(fedavg.State):
    """`kept` is what a method keeps at a site from round to round."""

    unlabelled: Batches
    kept: Any = None

    @property
    def done(self) -> float:
        """The share of all steps that are taken."""
        return self.trainer.taken / self.trainer.num_steps

    def generator(self, setup: Setup) -> torch.Generator:
        """Of this step's noise."""
        seed = seed_of(setup.task.seed, self.site.name, "semi-supervised", self.trainer.taken)
        return torch.Generator().manual_seed(seed)


Term = Callable[[Setup, State, Batch], Tensor]  # of a batch of unlabelled images
Prepare = Callable[[Setup, State], None]


def init(setup: Setup, site: SimulatedSite) -> State:
    network = small_network(setup)
    unlabelled = unlabelled_batches(site.own, setup.normalise, setup.task, site.name)
    return State(site, network, SiteModel(), Trainer(setup, site, [network]), unlabelled)


def semi_supervised(
    term: Term, *, before_round: Prepare = lambda setup, state: None, after_step: Prepare | None = None, **settings: Any
) -> Method:
    """`before_round` and `after_step` may change what a method keeps. First weights and averages are FedAvg's."""

    def site_step(setup: Setup, state: State, received: Message, round_number: int) -> Message:
        state.model.receive(received, state.network)
        before_round(setup, state)

        def loss(batch: Batch, truth: Tensor) -> Tensor:
            supervised = setup.objective.supervised(state.network(batch.x_BCHW), truth)
            return supervised + term(setup, state, state.unlabelled.at(state.trainer.taken))

        for _ in range(setup.steps_per_round(state.site.role)):
            state.trainer.own(1, loss)
            if after_step:
                after_step(setup, state)
        return {"model": state.model.update(state.network, setup.task)}

    return dataclasses.replace(fedavg.METHOD, init=init, site_step=site_step, settings=settings)


def hard_loss(setup: Setup, logits: Tensor, probabilities: Tensor, sure: float) -> Tensor:
    """Cross-entropy with what is more likely, where that has at least the probability `sure`; a mean over all places,
    so that few of them weigh little."""
    if setup.task.kind == "segmentation":
        believed = ((probabilities >= sure) | (probabilities <= 1 - sure)).to(logits.dtype)
        labels = (probabilities > 0.5).to(logits.dtype)
        surprise = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    else:
        confidence_B, labels_B = probabilities.max(dim=1)
        believed = (confidence_B >= sure).to(logits.dtype)
        surprise = torch.nn.functional.cross_entropy(logits, labels_B, reduction="none")
    return (believed * surprise).mean()
