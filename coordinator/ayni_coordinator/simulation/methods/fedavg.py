"""FedAvg on the small network: every site trains it on its own images, the mean by their number goes back.

McMahan et al. 2017, arXiv 1602.05629. `mu` (FedProx) holds a site near the global weights; `is_own` (FedBN) names
tensors that stay at the site.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from torch import Tensor

from ayni.learning.batches import Batch
from ayni.learning.networks import Network, weights_of
from ayni.task import Task
from ayni_coordinator.simulation.averaging import GlobalModel, SiteModel, average_models, first_model
from ayni_coordinator.simulation.method import Broadcast, Candidate, Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.training import Trainer, small_network

IsOwn = Callable[[Network], set[str]]


@dataclass(slots=True)
class State:
    site: SimulatedSite
    network: Network
    model: SiteModel
    trainer: Trainer


def open_with(is_own: IsOwn) -> Callable[[Setup], tuple[GlobalModel, Broadcast]]:
    def open(setup: Setup) -> tuple[GlobalModel, Broadcast]:
        network = small_network(setup)
        own = is_own(network)
        weights = {name: tensor for name, tensor in weights_of(network).items() if name not in own}
        model, first = first_model(setup.task, weights)
        return model, Broadcast({"model": first})

    return open


def init_with(is_own: IsOwn) -> Callable[[Setup, SimulatedSite], State]:
    def init(setup: Setup, site: SimulatedSite) -> State:
        network = small_network(setup)
        own = is_own(network)
        model = SiteModel(keep=lambda name: name not in own)
        return State(site, network, model, Trainer(setup, site, [network]))

    return init


def site_step(setup: Setup, state: State, received: Message, round_number: int) -> Message:
    state.model.receive(received, state.network)
    start = copy.deepcopy(state.network).requires_grad_(False) if setup.settings.get("mu") else None

    def loss(batch: Batch, truth: Tensor) -> Tensor:
        own = setup.objective.supervised(state.network(batch.x_BCHW), truth)
        return own if start is None else own + 0.5 * setup.number("mu") * _distance(state.network, start)

    state.trainer.own(setup.steps_per_round(state.site.role), loss)
    return {"model": state.model.update(state.network, setup.task)}


def _distance(network: Network, start: Network) -> Tensor:
    """The square of the distance between two networks' weights."""
    pairs = zip(network.parameters(), start.parameters(), strict=True)
    total: Tensor = sum(((now - then) ** 2).sum() for now, then in pairs)  # type: ignore[assignment]
    return total


def aggregate(
    setup: Setup, state: GlobalModel, messages: Mapping[str, Message], round_number: int
) -> tuple[GlobalModel, Broadcast]:
    updates = {name: message["model"] for name, message in messages.items()}
    num_examples = {site.name: site.num_examples for site in setup.sites}
    return average_models(setup.task, state, updates, {}, num_examples, "", round_number)


def candidates(setup: Setup, state: State, received: Message) -> Sequence[Candidate]:
    """The global model, or what the site's last round made of it."""
    last = copy.deepcopy(state.network)
    state.model.receive(received, state.network)
    return [Candidate(network, setup.normalise) for network in (state.network, last)]


def averaging_method(*, is_own: IsOwn = lambda network: set(), **settings: Any) -> Method:
    return Method(
        open=open_with(is_own),
        init=init_with(is_own),
        site_step=site_step,
        aggregate=aggregate,
        candidates=candidates,
        settings=settings,
        change_task=by_samples,
    )


def by_samples(task: Task) -> Task:
    """A site counts by the number of its images, as the paper has it."""
    return msgspec.structs.replace(task, fedhelp=msgspec.structs.replace(task.fedhelp, average="samples"))


METHOD = averaging_method()
