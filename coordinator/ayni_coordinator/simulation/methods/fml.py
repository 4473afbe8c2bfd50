"""FML: each site's own network and a small one that travels ("meme") teach each other by full soft labels.

Shen et al. 2020, arXiv 2006.16765. The mutual distillation is symmetric: that is what FedHelp changes. Each step
trains both networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ayni.learning.batches import Batch
from ayni.learning.networks import Network, initial_weights
from ayni_coordinator.simulation.averaging import GlobalModel, SiteModel, first_model
from ayni_coordinator.simulation.method import Broadcast, Candidate, Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.methods.fedavg import aggregate, by_samples
from ayni_coordinator.simulation.training import Trainer, own_network, small_network


@dataclass(slots=True)
class State:
    site: SimulatedSite
    own: Network
    meme: Network
    model: SiteModel
    trainer: Trainer


def open(setup: Setup) -> tuple[GlobalModel, Broadcast]:
    model, first = first_model(setup.task, initial_weights(setup.task))
    return model, Broadcast({"model": first})


def init(setup: Setup, site: SimulatedSite) -> State:
    own, meme = own_network(setup, site, beside_small=True), small_network(setup)
    return State(site, own, meme, SiteModel(), Trainer(setup, site, [own, meme]))


def site_step(setup: Setup, state: State, received: Message, round_number: int) -> Message:
    state.model.receive(received, state.meme)

    def loss(batch: Batch, truth: Tensor) -> Tensor:
        weight = setup.number("distillation")
        return mutual_loss(state.own(batch.x_BCHW), state.meme(batch.x_BCHW), truth, weight, setup)

    state.trainer.own(setup.steps_per_round(state.site.role), loss)
    return {"model": state.model.update(state.meme, setup.task)}


def mutual_loss(own: Tensor, meme: Tensor, truth: Tensor, weight: float, setup: Setup) -> Tensor:
    """Of two networks' logits; each learns the labels and, by `weight`, the other's answer as it stands."""
    objective, temperature = setup.objective, setup.task.fedhelp.temperature
    labels = objective.supervised(own, truth) + objective.supervised(meme, truth)
    forth = objective.distil(own, meme, temperature=temperature)
    back = objective.distil(meme, own, temperature=temperature)
    return (1 - weight) * labels + weight * (forth + back)


def candidates(setup: Setup, state: State, received: Message) -> Sequence[Candidate]:
    """The site's own network; at a clinic, where both are of one size, also the global one."""
    state.model.receive(received, state.meme)
    networks = [state.trainer.average.module, state.own]
    if state.site.role == "clinic":
        networks.append(state.meme)
    return [Candidate(network, setup.normalise) for network in networks]


METHOD = Method(
    open=open,
    init=init,
    site_step=site_step,
    aggregate=aggregate,
    candidates=candidates,
    settings={"distillation": 0.5},
    change_task=by_samples,
)
