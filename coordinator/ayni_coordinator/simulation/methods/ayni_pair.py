"""Two small networks at a clinic, one of the federation and one of its own; both answer, and their mean diagnoses.

Where sites are alike the common network is the better one, where they are unlike the clinic's own: the mean of both
answers is never far from the better one. The common network is that of `ayni_mean`, without the foundation model. The
own one starts apart, never travels, and learns the clinic's images and the running mean's answer to them; nothing
teaches the other way. Each step trains both, as in FML and FedKD.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ayni.learning.batches import Batch
from ayni.learning.networks import Network
from ayni.learning.scores import answers
from ayni_coordinator.simulation.averaging import SiteModel
from ayni_coordinator.simulation.method import Candidate, Message, Setup, SimulatedSite
from ayni_coordinator.simulation.methods import fedhelp
from ayni_coordinator.simulation.methods.ayni_mean import move_mean
from ayni_coordinator.simulation.training import Trainer, own_network, small_network


class Pair(nn.Module):
    """The mean of two networks' logits."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mean: Tensor = (self.one(x_BCHW) + self.other(x_BCHW)) / 2
        return mean


@dataclass(slots=True)
class Clinic:
    site: SimulatedSite
    network: Network  # the federation's
    mean: Network
    own: Network
    model: SiteModel
    trainer: Trainer


def init(setup: Setup, site: SimulatedSite) -> fedhelp.State | Clinic:
    if site.role == "hospital":
        return fedhelp.init(setup, site)
    network, own = small_network(setup), own_network(setup, site, beside_small=True)
    return Clinic(site, network, copy.deepcopy(network), own, SiteModel(), Trainer(setup, site, [own, network]))


def site_step(setup: Setup, state: fedhelp.State | Clinic, received: Message, round_number: int) -> Message:
    if isinstance(state, fedhelp.State):
        return fedhelp.site_step(setup, state, received, round_number)
    state.model.receive(received, state.network)
    move_mean(state.mean, state.network, setup.number("memory") if round_number > 1 else 0.0)
    public, objective, temperature = setup.public.images, setup.objective, setup.task.fedhelp.temperature
    passed = (round_number - 1) / setup.num_rounds  # the first means know nothing
    of_public, of_own = setup.number("teaching") * passed, setup.number("own_teaching") * passed
    taught = answers(state.mean, public.pixels_PCHW, setup.normalise) if of_public > 0 else None

    def loss(batch: Batch, truth: Tensor) -> Tensor:
        own = state.own(batch.x_BCHW)
        total = objective.supervised(state.network(batch.x_BCHW), truth) + objective.supervised(own, truth)
        if of_own > 0:
            with torch.no_grad():
                told = state.mean(batch.x_BCHW)
            total = total + of_own * objective.distil(own, told, temperature=temperature)
        if taught is not None:
            others = state.trainer.public_batch()
            answer = state.network(others.x_BCHW)
            total = total + of_public * objective.distil(answer, others.of(taught), temperature=temperature)
        return total

    state.trainer.own(setup.steps_per_round("clinic"), loss)
    return {"model": state.model.update(state.network, setup.task)}


def candidates(setup: Setup, state: fedhelp.State | Clinic, received: Message) -> Sequence[Candidate]:
    """Both together, or one of them."""
    if isinstance(state, fedhelp.State):
        return fedhelp.candidates(setup, state, received)
    state.model.receive(received, state.network)
    move_mean(state.mean, state.network, setup.number("memory"))
    own = state.trainer.average.module
    networks = [Pair(state.mean, own), state.mean, own, state.own]
    return [Candidate(network, setup.normalise) for network in networks]


METHOD = dataclasses.replace(
    fedhelp.variant(consensus_weight=0.0, guidance_weight=0.0),
    guided=False,
    init=init,
    site_step=site_step,
    candidates=candidates,
    settings={"memory": 0.7, "teaching": 1.0, "own_teaching": 3.0},
)
