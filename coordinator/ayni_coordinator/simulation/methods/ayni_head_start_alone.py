"""Every site alone, small ones from the first weights of `ayni_head_start`: what federating brings besides."""

from __future__ import annotations

import dataclasses

from ayni.learning.learners import Alone
from ayni.learning.networks import load_weights
from ayni_coordinator.simulation.averaging import first_model
from ayni_coordinator.simulation.method import Broadcast, Setup, SimulatedSite
from ayni_coordinator.simulation.methods import fedhelp, local
from ayni_coordinator.simulation.methods.ayni_head_start import START_STEPS
from ayni_coordinator.simulation.training import first_weights


def open(setup: Setup) -> tuple[None, Broadcast]:
    """The first weights come, and nothing else ever."""
    _, first = first_model(setup.task, first_weights(setup))
    return None, Broadcast({"model": first})


def init(setup: Setup, site: SimulatedSite) -> Alone:
    """A clinic's images are normalised as those that the weights were taught on."""
    if site.role == "hospital":
        return local.init(setup, site)
    own = dataclasses.replace(site.own, normalise=setup.normalise)
    state = local.init(setup, dataclasses.replace(site, own=own))
    load_weights(state.network, first_weights(setup))
    return state


METHOD = dataclasses.replace(
    local.METHOD, open=open, init=init, guided=True, change_task=fedhelp.with_settings(start_steps=START_STEPS)
)
