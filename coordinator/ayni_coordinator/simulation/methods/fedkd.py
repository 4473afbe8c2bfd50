"""FedKD: a small network travels as low-rank changes, and distils both ways with each site's own.

Wu et al. 2022, arXiv 2108.13323. Each term is divided by the sum of both networks' own losses, so that unsure
teachers teach less. Of every change the singular values are sent that hold a share of its energy, which grows from
`first_energy` to `last_energy`. The paper's loss between hidden layers is left out: our networks have hidden layers
of other shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ayni.learning.batches import Batch
from ayni.learning.networks import Network, initial_weights, weights_of
from ayni.tensors import safe
from ayni.tensors.safe import Array, Floats
from ayni.tensors.update import assemble, encode_whole
from ayni_coordinator.simulation.averaging import SiteModel
from ayni_coordinator.simulation.method import Broadcast, Candidate, Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.training import Trainer, own_network, small_network


@dataclass(slots=True)
class State:
    site: SimulatedSite
    mentor: Network  # the site's own
    mentee: Network  # the one that travels
    model: SiteModel
    trainer: Trainer


def open(setup: Setup) -> tuple[dict[str, Floats], Broadcast]:
    weights = initial_weights(setup.task)
    return weights, Broadcast({"model": encode_whole(weights, "fp16")})


def init(setup: Setup, site: SimulatedSite) -> State:
    mentor, mentee = own_network(setup, site, beside_small=True), small_network(setup)
    return State(site, mentor, mentee, SiteModel(), Trainer(setup, site, [mentor, mentee]))


def energy_at(setup: Setup, round_number: int) -> float:
    first, last = setup.number("first_energy"), setup.number("last_energy")
    return first + (last - first) * round_number / setup.num_rounds


def encode_low_rank(change: Mapping[str, Floats], energy: float) -> bytes:
    """Matrices as two thin ones wherever that is smaller; float32, as in the paper."""
    tensors: dict[str, Array] = {}
    for name, tensor in change.items():
        matrix = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        held = np.cumsum(values**2) / max(float((values**2).sum()), 1e-30)
        rank = min(len(values), int(np.searchsorted(held, energy)) + 1)
        if rank * sum(matrix.shape) < matrix.size:
            tensors[f"{name}|left"] = (left[:, :rank] * values[:rank]).astype(np.float32)
            tensors[f"{name}|right"] = np.ascontiguousarray(right[:rank], np.float32)
        else:
            tensors[name] = tensor
    return safe.encode(tensors)


def decode_low_rank(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    tensors = {name: np.asarray(tensor, np.float32) for name, tensor in safe.decode(data).items()}
    return {
        name: tensors[name] if name in tensors else (tensors[f"{name}|left"] @ tensors[f"{name}|right"]).reshape(shape)
        for name, shape in shapes.items()
    }


def _receive(state: State, received: Message) -> None:
    model = state.model
    if "model" in received:
        model.weights = assemble([received["model"]])
    elif "change" in received:
        change = decode_low_rank(received["change"], _shapes(model.weights))
        model.weights = {name: tensor + change[name] for name, tensor in model.weights.items()}
    model.load_into(state.mentee)


def _shapes(weights: Mapping[str, Floats]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in weights.items()}


def site_step(setup: Setup, state: State, received: Message, round_number: int) -> Message:
    _receive(state, received)

    def loss(batch: Batch, truth: Tensor) -> Tensor:
        return adaptive_loss(state.mentor(batch.x_BCHW), state.mentee(batch.x_BCHW), truth, setup)

    state.trainer.own(setup.steps_per_round(state.site.role), loss)
    trained = weights_of(state.mentee)
    change = {name: trained[name] - tensor for name, tensor in state.model.weights.items()}
    return {"change": encode_low_rank(change, energy_at(setup, round_number))}


def adaptive_loss(mentor: Tensor, mentee: Tensor, truth: Tensor, setup: Setup) -> Tensor:
    """Of two networks' logits: their own losses, and the mutual distillation divided by the sum of these."""
    objective, temperature = setup.objective, setup.task.fedhelp.temperature
    own = objective.supervised(mentor, truth) + objective.supervised(mentee, truth)
    forth = objective.distil(mentor, mentee, temperature=temperature)
    back = objective.distil(mentee, mentor, temperature=temperature)
    return own + (forth + back) / (own.detach() + 1e-8)


def aggregate(
    setup: Setup, state: dict[str, Floats], messages: Mapping[str, Message], round_number: int
) -> tuple[dict[str, Floats], Broadcast]:
    shapes = _shapes(state)
    changes = [decode_low_rank(message["change"], shapes) for message in messages.values()]
    mean = {name: np.asarray(np.mean([change[name] for change in changes], axis=0), np.float32) for name in state}
    data = encode_low_rank(mean, energy_at(setup, round_number))
    seen = decode_low_rank(data, shapes)
    return {name: tensor + seen[name] for name, tensor in state.items()}, Broadcast({"change": data})


def candidates(setup: Setup, state: State, received: Message) -> Sequence[Candidate]:
    """The mentor diagnoses; at a clinic, where both are of one size, perhaps the mentee."""
    _receive(state, received)
    networks = [state.trainer.average.module, state.mentor]
    if state.site.role == "clinic":
        networks.append(state.mentee)
    return [Candidate(network, setup.normalise) for network in networks]


METHOD = Method(
    open=open,
    init=init,
    site_step=site_step,
    aggregate=aggregate,
    candidates=candidates,
    settings={"first_energy": 0.95, "last_energy": 0.98},
)
