"""A network taken on from the global model by one site: some steps on its own images, at a falling rate."""

from __future__ import annotations

import copy
import math

from ayni.learning.batches import Normaliser
from ayni.learning.learners import adam, descend, own_batches
from ayni.learning.networks import Network
from ayni.learning.objective import objective_of
from ayni.learning.site_data import OwnImages
from ayni.task import Task

RATE = 1e-3  # at the first step


def fine_tuned(network: Network, own: OwnImages, normalise: Normaliser, task: Task, site: str, steps: int) -> Network:
    """A copy of `network` after `steps` on the site's training images; the network itself stays as it is."""
    tuned, objective = copy.deepcopy(network).train(), objective_of(task.kind)
    optimiser, batches = adam(tuned, task.training), own_batches(own, normalise, task, f"{site}/fine-tune")
    for number in range(steps):
        batch = batches.at(number)
        rate = RATE * 0.5 * (1 + math.cos(math.pi * number / steps))
        descend(objective.supervised(tuned(batch.x_BCHW), batch.of(own.train_truth)), rate, optimiser)
    return tuned.eval()
