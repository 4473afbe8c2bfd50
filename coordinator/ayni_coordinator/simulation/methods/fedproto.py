"""FedProto: only each class's mean feature travels; a site's features are pulled towards the global means.

Tan et al. 2022, arXiv 2105.00243. The diagnosis is the head's. The large and the small network need features of one
width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ayni.errors import UserError
from ayni.learning.batches import Batch
from ayni.learning.networks import Network
from ayni_coordinator.simulation.method import (
    Broadcast,
    Candidate,
    Message,
    Method,
    Setup,
    SimulatedSite,
    no_message,
)
from ayni_coordinator.simulation.prototypes import Prototypes, mean_prototypes, pull, site_prototypes
from ayni_coordinator.simulation.training import Trainer, own_network, small_network


@dataclass(slots=True)
class State:
    site: SimulatedSite
    network: Network
    trainer: Trainer


def init(setup: Setup, site: SimulatedSite) -> State:
    network = own_network(setup, site)
    if network.num_features != small_network(setup).num_features:
        raise UserError(
            "prototypes need features of one width: give both networks the same number in their last stage."
        )
    return State(site, network, Trainer(setup, site, [network]))


def site_step(setup: Setup, state: State, received: Message, round_number: int) -> Message:
    prototypes = Prototypes.decode(received["prototypes"]) if "prototypes" in received else None

    def loss(batch: Batch, truth: Tensor) -> Tensor:
        features = state.network.features(batch.x_BCHW)
        own = setup.objective.supervised(state.network.head(features), truth)
        if prototypes is None:
            return own
        return own + setup.number("pull") * pull(features, truth, prototypes, setup.task)

    state.trainer.own(setup.steps_per_round(state.site.role), loss)
    return {"prototypes": site_prototypes(setup, state.site, state.network).encode()}


def aggregate(setup: Setup, state: None, messages: Mapping[str, Message], round_number: int) -> tuple[None, Broadcast]:
    several = [Prototypes.decode(message["prototypes"]) for message in messages.values()]
    return None, Broadcast({"prototypes": mean_prototypes(several).encode()})


def candidates(setup: Setup, state: State, received: Message) -> Sequence[Candidate]:
    return [Candidate(network, setup.normalise) for network in (state.trainer.average.module, state.network)]


METHOD = Method(
    open=no_message,
    init=init,
    site_step=site_step,
    aggregate=aggregate,
    candidates=candidates,
    settings={"pull": 1.0},
)
