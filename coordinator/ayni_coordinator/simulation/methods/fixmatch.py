"""FedAvg + FixMatch: what the network is sure of on an image must hold on a strongly changed copy of it.

Sohn et al. 2020, arXiv 2001.07685, with changes of grey only, which leave masks where they are: contrast, brightness,
noise, and a box that is hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ayni.learning.batches import Batch
from ayni_coordinator.simulation.method import Setup
from ayni_coordinator.simulation.methods._semi_supervised import State, hard_loss, semi_supervised

MOST_GAIN, NOISE, BOX = 0.5, 0.3, 0.4  # of contrast; in units of the normalised image; of each side


def strongly_changed(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    per_image = (len(x_BCHW), *(1,) * (x_BCHW.ndim - 1))

    def draw(limit: float) -> Tensor:
        return (torch.rand(per_image, generator=generator) * 2 - 1) * limit

    noise = torch.randn(x_BCHW.shape, generator=generator) * NOISE
    changed = x_BCHW * (1 + draw(MOST_GAIN)) + draw(MOST_GAIN) + noise
    sides = x_BCHW.shape[2:]
    for image in changed:
        starts = [int(torch.randint(0, side - int(BOX * side) + 1, (1,), generator=generator)) for side in sides]
        box = tuple(slice(start, start + int(BOX * side)) for start, side in zip(starts, sides, strict=True))
        image[(slice(None), *box)] = 0
    return changed


def agreement(setup: Setup, state: State, batch: Batch) -> Tensor:
    with torch.no_grad():
        probabilities = setup.objective.probabilities(state.network(batch.x_BCHW))
    logits = state.network(strongly_changed(batch.x_BCHW, state.generator(setup)))
    return setup.number("weight") * hard_loss(setup, logits, probabilities, setup.number("sure"))


METHOD = semi_supervised(agreement, weight=1.0, sure=0.95)
