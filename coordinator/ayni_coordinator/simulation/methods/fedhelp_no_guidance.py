"""FedHelp without the foundation model: where its clinics take public steps, these take private ones."""

from __future__ import annotations

import dataclasses

from ayni.learning.learners import Clinic
from ayni_coordinator.simulation.method import Setup, SimulatedSite
from ayni_coordinator.simulation.methods import fedhelp


def init(setup: Setup, site: SimulatedSite) -> fedhelp.State:
    state = fedhelp.init(setup, site)
    if isinstance(state.learner, Clinic):
        state.learner.num_steps = setup.num_rounds * setup.steps_per_round("clinic")
    return state


METHOD = dataclasses.replace(fedhelp.variant(consensus_weight=0.0, guidance_weight=0.0), init=init, guided=False)
