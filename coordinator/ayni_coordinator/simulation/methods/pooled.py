"""All images in one place, as no hospital network may have them: the upper bound.

One small network (for the clinics) and one large one (for the hospitals) learn at the centre from all sites' training
images, for as many steps as a site's own would; no site works, and what goes up are the images. Where sites have
unlabelled images, their truth counts too; where the centre has a labelled repository, its images do.
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
    Broadcast,
    Candidate,
    Message,
    Method,
    Setup,
    SimulatedSite,
    nothing_to_average,
)


def open(setup: Setup) -> tuple[None, Broadcast]:
    for role in dict.fromkeys(site.role for site in setup.sites):
        setup.memory[role] = _trained(setup, role)
    return None, Broadcast()


def init(setup: Setup, site: SimulatedSite) -> SimulatedSite:
    return site


def site_step(setup: Setup, state: SimulatedSite, received: Message, round_number: int) -> Message:
    if round_number > 1:
        return {}
    pixels = torch.cat([state.own.train_NCHW, state.own.holdout_MCHW, state.own.unlabelled_UCHW]).numpy()
    return {"images": zlib.compress(pixels.tobytes(), 9)}


def _trained(setup: Setup, role: Role) -> Alone:
    parts = [site.own for site in setup.sites]
    centre = [setup.centre.repository] if setup.centre else []
    revealed = [(site.own.unlabelled_UCHW, site.hidden_truth) for site in setup.sites if site.hidden_truth is not None]
    pixels_NCHW = torch.cat([*(part.train_NCHW for part in [*parts, *centre]), *(pixels for pixels, _ in revealed)])
    everything = OwnImages(
        train_NCHW=pixels_NCHW,
        train_truth=torch.cat([*(part.train_truth for part in [*parts, *centre]), *(truth for _, truth in revealed)]),
        holdout_MCHW=torch.cat([part.holdout_MCHW for part in parts]),
        holdout_truth=torch.cat([part.holdout_truth for part in parts]),
        unlabelled_UCHW=pixels_NCHW[:0],
        normalise=Normaliser.of(np.moveaxis(pixels_NCHW.numpy(), 1, -1)),
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
    open=open,
    init=init,
    site_step=site_step,
    aggregate=nothing_to_average,
    candidates=candidates,
)
