"""FedHelp in which the federation's own running mean teaches, besides the foundation model.

A clinic keeps the mean of the global models that it received, the newest weighing most: steadier than any of them, and
free, for it moved already. It answers the public images, and every step of the clinic is a batch of its own images and
one of public images, on which it learns that answer: as many steps as with the other methods, of twice the images. The
mean is also the first candidate to diagnose.
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
from ayni_coordinator.simulation.training import Trainer, seeded_head, small_network


@dataclass(slots=True)
class Clinic:
    site: SimulatedSite
    network: Network
    mean: Network
    public_head: nn.Module | None
    model: SiteModel
    trainer: Trainer


def init(setup: Setup, site: SimulatedSite) -> fedhelp.State | Clinic:
    if site.role == "hospital":
        return fedhelp.init(setup, site)
    network, head = small_network(setup), None
    guidance = setup.public.images.guidance
    if guidance is not None and setup.task.fedhelp.guidance_weight > 0:
        head = seeded_head(setup, site, network, guidance.shape[1])
    together = Trainer(setup, site, [network] if head is None else [network, head])
    return Clinic(site, network, copy.deepcopy(network), head, SiteModel(), together)


def site_step(setup: Setup, state: fedhelp.State | Clinic, received: Message, round_number: int) -> Message:
    if isinstance(state, fedhelp.State):
        return fedhelp.site_step(setup, state, received, round_number)
    state.model.receive(received, state.network)
    move_mean(state.mean, state.network, setup.number("memory") if round_number > 1 else 0.0)
    public, objective, settings = setup.public.images, setup.objective, setup.task.fedhelp
    weight = setup.number("teaching") * (round_number - 1) / setup.num_rounds  # the first means know nothing
    taught = answers(state.mean, public.pixels_PCHW, setup.normalise) if weight > 0 else None
    guidance, head = public.guidance, state.public_head

    def loss(batch: Batch, truth: Tensor) -> Tensor:
        total = objective.supervised(state.network(batch.x_BCHW), truth)
        others = state.trainer.public_batch()
        features = state.network.features(others.x_BCHW)
        if taught is not None:
            answer = state.network.head(features)
            total = total + weight * objective.distil(answer, others.of(taught), temperature=settings.temperature)
        if head is not None and guidance is not None:
            told = objective.distil(head(features), others.of(guidance), temperature=settings.temperature)
            total = total + settings.guidance_weight * told
        return total

    state.trainer.own(setup.steps_per_round("clinic"), loss)
    return {"model": state.model.update(state.network, setup.task)}


def move_mean(mean: nn.Module, newest: nn.Module, memory: float) -> None:
    """mean <- memory * mean + (1 - memory) * newest, in place.

    >>> old, new = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = [nn.init.constant_(old.weight, 2.0), nn.init.constant_(new.weight, 4.0)]
    >>> move_mean(old, new, 0.25)
    >>> old.weight.item()
    3.5
    """
    with torch.no_grad():
        for kept, came in zip(mean.parameters(), newest.parameters(), strict=True):
            kept.lerp_(came, 1 - memory)


def candidates(setup: Setup, state: fedhelp.State | Clinic, received: Message) -> Sequence[Candidate]:
    if isinstance(state, fedhelp.State):
        return fedhelp.candidates(setup, state, received)
    last = copy.deepcopy(state.network)
    state.model.receive(received, state.network)
    move_mean(state.mean, state.network, setup.number("memory"))
    return [Candidate(network, setup.normalise) for network in (state.mean, state.network, last)]


METHOD = dataclasses.replace(
    fedhelp.variant(consensus_weight=0.0),
    init=init,
    site_step=site_step,
    candidates=candidates,
    settings={"memory": 0.7, "teaching": 1.0},
)
