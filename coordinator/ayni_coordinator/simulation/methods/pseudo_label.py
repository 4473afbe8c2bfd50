"""FedAvg + pseudo-labels: the global model labels a site's unlabelled images where it is sure, and they count as truth.

Lee 2013 (ICML workshop). Each round's global model labels anew, from the second third of the rounds on.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ayni.learning.batches import Batch
from ayni_coordinator.simulation.method import Setup
from ayni_coordinator.simulation.methods._semi_supervised import State, hard_loss, semi_supervised

BEGIN = 1 / 3  # of all steps: earlier it knows too little


def before_round(setup: Setup, state: State) -> None:
    state.kept = copy.deepcopy(state.network).requires_grad_(False)  # the global model


def labelled_by_itself(setup: Setup, state: State, batch: Batch) -> Tensor:
    if state.done < BEGIN:
        return batch.x_BCHW.new_zeros(())
    with torch.no_grad():
        probabilities = setup.objective.probabilities(state.kept(batch.x_BCHW))
    return setup.number("weight") * hard_loss(setup, state.network(batch.x_BCHW), probabilities, setup.number("sure"))


METHOD = semi_supervised(labelled_by_itself, before_round=before_round, weight=1.0, sure=0.95)
