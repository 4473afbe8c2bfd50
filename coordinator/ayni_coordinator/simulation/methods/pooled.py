"""All images in one place, as no hospital network may have them: the upper bound.

One small network (for the clinics) and one large one (for the hospitals) learn from the training images of all sites.
What goes up is what the images would cost. A site's seconds are those of its network's whole training.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from ayni.learning.batches import Normaliser
from ayni.learning.learners import Alone
from ayni.learning.site_data import OwnImages
from ayni.task import Role
from ayni_coordinator.simulation.method import (
    Candidate,
    Message,
    Method,
    Setup,
    SimulatedSite,
    no_message,
    nothing_to_average,
)


def init(setup: Setup, site: SimulatedSite) -> SimulatedSite:
    return site


def site_step(setup: Setup, state: SimulatedSite, received: Message, round_number: int) -> Message:
    """In round 1 the images go up, and the centre trains once for each part."""
    if round_number > 1:
        return {}
    if state.role not in setup.memory:
        setup.memory[state.role] = _trained(setup, state.role)
    own = state.own
    pixels = torch.cat([own.train_NCHW, own.holdout_MCHW]).numpy()
    return {"images": zlib.compress(pixels.tobytes(), 9)}


def _trained(setup: Setup, role: Role) -> Alone:
    parts = [site.own for site in setup.sites]
    pixels_NCHW = torch.cat([part.train_NCHW for part in parts])
    everything = OwnImages(
        train_NCHW=pixels_NCHW,
        train_truth=torch.cat([part.train_truth for part in parts]),
        holdout_MCHW=torch.cat([part.holdout_MCHW for part in parts]),
        holdout_truth=torch.cat([part.holdout_truth for part in parts]),
        normalise=Normaliser.of(np.moveaxis(pixels_NCHW.numpy(), 1, 3)),
        sha256=hashlib.sha256(pixels_NCHW.numpy().tobytes()).hexdigest(),
    )
    num_steps = setup.num_rounds * setup.steps_per_round(role)
    learner = Alone(everything, setup.task, "pooled", large=role == "hospital", num_steps=num_steps)
    for number in range(num_steps):
        learner.step(number)
    return learner


def candidates(setup: Setup, state: SimulatedSite, received: Message) -> Sequence[Candidate]:
    learner: Alone = setup.memory[state.role]
    return [Candidate(network, learner.own.normalise) for network in (learner.average.module, learner.network)]


METHOD = Method(
    title="all images in one place (upper bound)",
    source="",
    open=no_message,
    init=init,
    site_step=site_step,
    aggregate=nothing_to_average,
    candidates=candidates,
)
