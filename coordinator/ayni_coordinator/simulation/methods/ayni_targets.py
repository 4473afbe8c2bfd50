"""Participation by targets alone (`ayni join --participation distill`): no weights travel.

Hospitals answer the public images with their large networks; clinics learn the mean answer, and the foundation
model's. A clinic sends nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ayni.learning.learners import Clinic, Hospital
from ayni_coordinator.simulation.averaging import GlobalModel, SiteModel
from ayni_coordinator.simulation.method import Broadcast, Candidate, Message, Setup, SimulatedSite
from ayni_coordinator.simulation.methods import fedhelp


def open(setup: Setup) -> tuple[GlobalModel, Broadcast]:
    """As in FedHelp, but for the model."""
    model, broadcast = fedhelp.open(setup)
    return model, dataclasses.replace(broadcast, to_all={"public-set": setup.public.artefact})


def init(setup: Setup, site: SimulatedSite) -> fedhelp.State:
    learner = fedhelp.make_learner(setup, site, setup.public.images, distill=True)
    return fedhelp.State(site, learner, SiteModel())


def site_step(setup: Setup, state: fedhelp.State, received: Message, round_number: int) -> Message:
    learner = state.learner
    if isinstance(learner, Clinic):
        fedhelp.take_up_consensus(setup, learner, received)
    fedhelp.train(setup, learner, round_number)
    if isinstance(learner, Hospital):
        return {"soft-labels": fedhelp.soft_labels(setup, state, learner, round_number)}
    return {}


def candidates(setup: Setup, state: fedhelp.State, received: Message) -> Sequence[Candidate]:
    if isinstance(state.learner, Hospital):
        return fedhelp.candidates(setup, state, received)
    return [Candidate(state.learner.small, setup.normalise)]


METHOD = dataclasses.replace(
    fedhelp.variant(),
    open=open,
    init=init,
    site_step=site_step,
    candidates=candidates,
)
