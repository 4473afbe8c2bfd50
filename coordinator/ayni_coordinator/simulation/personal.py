"""Personal models of one federation, all at once: IOP-FL's running mean with several decays, and cheap rivals.

The federation is the same whatever its sites keep for themselves (a personal model is never a start of training), so
it is run once, and each kind of personal model is a method of its own on the page. At a clinic the personal model
diagnoses, whatever its held-out images say; a hospital's large network is not touched by any of this.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from torch import nn

from ayni.learning.fine_tune import fine_tuned
from ayni.learning.networks import Network, load_weights, weights_of
from ayni.learning.personal import personal_after
from ayni.tensors.safe import Array
from ayni_coordinator.simulation.experiment import PersonalSweep
from ayni_coordinator.simulation.jobs import Job, Tell
from ayni_coordinator.simulation.method import Candidate, Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.results import Row
from ayni_coordinator.simulation.run import Outcome, method_named, rows_of, run_rounds, set_up

Kept = dict[tuple[str, float], dict[str, Array]]  # (site, decay) -> the running mean


def name_of(decay: float) -> str:
    """
    >>> name_of(0.1), name_of(0.0)
    ('personal_10', 'personal_0')
    """
    return f"personal_{round(100 * decay)}"


def rows_of_personal(job: Job, tell: Tell) -> list[Row]:
    """A row for each site and each kind of personal model."""
    sweep = job.entry.personal
    assert sweep is not None
    setup, dealt = set_up(job, method_named(sweep.method))
    kept: Kept = {}
    outcomes = run_rounds(keeping(method_named(sweep.method), sweep.decays, kept), setup, tell)
    rows = []
    for name, make in makers(sweep, kept).items():
        found = {site.name: _outcome(outcomes[site.name], site, setup, make) for site in setup.sites}
        rows += [msgspec.structs.replace(row, method=name) for row in rows_of(job, setup, dealt, found)]
    return rows


def keeping(method: Method, decays: Sequence[float], kept: Kept) -> Method:
    """The method, with every site's freshly trained small network taken up in `kept` after each round."""

    def site_step(setup: Setup, state: Any, received: Message, round_number: int) -> Message:
        sent = method.site_step(setup, state, received, round_number)
        trained = weights_of(state.learner.small)
        for decay in decays:
            key = (state.site.name, decay)
            kept[key] = personal_after(kept.get(key, {}), trained, decay)
        return sent

    return dataclasses.replace(method, site_step=site_step)


Make = Callable[[Network, SimulatedSite, Setup], nn.Module]  # of the global network


def makers(sweep: PersonalSweep, kept: Kept) -> Mapping[str, Make]:
    """By the names of their rows."""

    def mean_with(decay: float) -> Make:
        def make(network: Network, site: SimulatedSite, setup: Setup) -> nn.Module:
            personal = copy.deepcopy(network)
            weights = {name: np.asarray(array, np.float32) for name, array in kept[site.name, decay].items()}
            load_weights(personal, weights)
            return personal

        return make

    def tuned(steps: Callable[[SimulatedSite, Setup], int]) -> Make:
        def make(network: Network, site: SimulatedSite, setup: Setup) -> nn.Module:
            return fine_tuned(network, site.own, setup.normalise, setup.task, site.name, steps(site, setup))

        return make

    def one_epoch(site: SimulatedSite, setup: Setup) -> int:
        return max(1, round(site.num_examples / setup.task.training.batch_size))

    return {
        **{name_of(decay): mean_with(decay) for decay in sweep.decays},
        "personal_one_epoch": tuned(one_epoch),
        "personal_fine_tune": tuned(lambda site, setup: sweep.steps),
    }


def _outcome(outcome: Outcome, site: SimulatedSite, setup: Setup, make: Make) -> Outcome:
    """With the personal model as the only one that a clinic may diagnose with."""
    candidates, seconds = outcome.candidates, 0.0
    if site.role == "clinic":
        began_s = time.process_time()
        network: Any = candidates[0].network  # the global model
        candidates = [Candidate(make(network, site, setup), setup.normalise)]
        seconds = time.process_time() - began_s
    return Outcome(
        bytes_up=outcome.bytes_up,
        bytes_down=outcome.bytes_down,
        seconds=outcome.seconds + seconds,
        candidates=candidates,
    )
