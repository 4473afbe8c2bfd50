"""Every site alone: the network that diagnoses there, the same number of steps, no help."""

from __future__ import annotations

from collections.abc import Sequence

from ayni.learning.learners import Alone
from ayni_coordinator.simulation.method import (
    Candidate,
    Message,
    Method,
    Setup,
    SimulatedSite,
    no_message,
    nothing_to_average,
)


def init(setup: Setup, site: SimulatedSite) -> Alone:
    num_steps = setup.num_rounds * setup.steps_per_round(site.role)
    return Alone(site.own, setup.task, site.name, large=site.role == "hospital", num_steps=num_steps)


def site_step(setup: Setup, state: Alone, received: Message, round_number: int) -> Message:
    num_steps = state.num_steps // setup.num_rounds
    for number in range((round_number - 1) * num_steps, round_number * num_steps):
        state.step(number)
    return {}


def candidates(setup: Setup, state: Alone, received: Message) -> Sequence[Candidate]:
    """As `ayni train --alone` chooses."""
    networks = (state.average.module, state.network)
    return [Candidate(network, state.own.normalise) for network in networks]


METHOD = Method(
    open=no_message,
    init=init,
    site_step=site_step,
    aggregate=nothing_to_average,
    candidates=candidates,
)
