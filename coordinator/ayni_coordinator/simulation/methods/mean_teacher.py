"""FedAvg + mean teacher: at each site a running mean of the student answers unlabelled images, and the student follows.

Tarvainen and Valpola 2017, arXiv 1703.01780. The running mean stays at its site from round to round.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ayni.learning.batches import Batch
from ayni.learning.dual_kd import ramp
from ayni_coordinator.simulation.method import Setup
from ayni_coordinator.simulation.methods._semi_supervised import State, semi_supervised


def before_round(setup: Setup, state: State) -> None:
    if state.kept is None:
        state.kept = copy.deepcopy(state.network).requires_grad_(False)


def follow(setup: Setup, state: State) -> None:
    """The teacher keeps `decay` of itself and takes the rest from the student; a younger one keeps less."""
    keeps = min(setup.number("decay"), 1 - 1 / (state.trainer.taken + 1))
    with torch.no_grad():
        for mean, now in zip(state.kept.parameters(), state.network.parameters(), strict=True):
            mean.mul_(keeps).add_(now, alpha=1 - keeps)


def consistency(setup: Setup, state: State, batch: Batch) -> Tensor:
    """The mean squared difference of probabilities; the teacher sees the batch with other noise."""
    noise = torch.randn(batch.x_BCHW.shape, generator=state.generator(setup)) * setup.number("noise")
    with torch.no_grad():
        taught = setup.objective.probabilities(state.kept(batch.x_BCHW + noise))
    answered = setup.objective.probabilities(state.network(batch.x_BCHW))
    rising = ramp(state.trainer.taken, state.trainer.num_steps, 0.4)
    return setup.number("weight") * rising * ((answered - taught) ** 2).mean()


METHOD = semi_supervised(consistency, before_round=before_round, after_step=follow, decay=0.99, weight=1.0, noise=0.1)
