"""Personal models in the simulation: what is kept, by hand, and that keeping it changes nothing in the federation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from ayni.learning.networks import Network, weights_of
from ayni.tensors import safe
from ayni_coordinator.simulation.experiment import PersonalSweep
from ayni_coordinator.simulation.method import Message, Setup
from ayni_coordinator.simulation.personal import Kept, keeping, makers
from ayni_coordinator.simulation.run import method_named, run_rounds
from small_setups import small_setup, small_task

DECAYS = (0.0, 0.25, 1.0)
BASE = "fedhelp_no_guidance"


def test_the_mean_of_two_rounds_by_hand_and_a_federation_that_does_not_notice() -> None:
    method, kept = method_named(BASE), Kept()
    setup = small_setup(small_task("classification"), method)
    trained: dict[str, list[dict[str, Any]]] = {}

    def watching(setup: Setup, state: Any, received: Message, round_number: int) -> Message:
        sent = method.site_step(setup, state, received, round_number)
        trained.setdefault(state.site.name, []).append(weights_of(state.learner.small))
        return sent

    plain = run_rounds(method, setup, lambda *done: None)
    watched = dataclasses.replace(method, site_step=watching)
    outcomes = run_rounds(keeping(watched, DECAYS, kept), setup, lambda *done: None)
    for site, (first, second) in trained.items():
        for name, tensor in kept[site, 0.25].items():
            np.testing.assert_allclose(
                np.asarray(tensor, np.float32), 0.25 * first[name] + 0.75 * second[name], rtol=1e-6, atol=1e-7
            )
        assert safe.digest(kept[site, 0.0]) == safe.digest(second)
        assert safe.digest(kept[site, 1.0]) == safe.digest(first)
    for site, outcome in plain.items():
        ends = [weights_of(each.candidates[0].network) for each in (outcome, outcomes[site])]
        assert safe.digest(ends[0]) == safe.digest(ends[1])


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_every_kind_is_made_without_touching_the_global_network(kind: Any) -> None:
    method, kept = method_named(BASE), Kept()
    setup = small_setup(small_task(kind), method)
    sweep = PersonalSweep(decays=DECAYS, steps=2)
    outcomes = run_rounds(keeping(method, DECAYS, kept), setup, lambda *done: None)
    network = outcomes["a-clinic"].candidates[0].network
    assert isinstance(network, Network)
    before = safe.digest(weights_of(network))
    made = {name: make(network, setup.sites[0], setup) for name, make in makers(sweep, kept).items()}
    kinds = {"personal_0", "personal_25", "personal_100", "personal_one_epoch", "personal_fine_tune"}
    assert set(made) == kinds
    digests = {safe.digest(weights_of(each)) for each in made.values()}
    # 8 images in batches of 4 are two steps an epoch, as many as the fine-tuning's
    assert len(digests) == len(kinds) - 1
    assert safe.digest(weights_of(network)) == before
    with torch.no_grad():
        assert all(bool(torch.isfinite(each(torch.zeros(1, 1, 16, 16))).all()) for each in made.values())
