"""Small networks that travel and are averaged, as the federation does it: the same functions, in memory.

A change of the weights is encoded as the task's `traffic` says, with error feedback on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from ayni.learning.networks import load_weights, weights_of
from ayni.learning.site_data import public_images
from ayni.learning.training import encode_update
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.safe import Array, Bytes, Floats
from ayni.tensors.targets import decode_targets
from ayni.tensors.update import assemble, decode_update, encode_whole
from ayni_coordinator.aggregation import RoundInputs, SiteInput, aggregate
from ayni_coordinator.simulation.method import Broadcast, Message, Setup

Keep = Callable[[str], bool]  # of a tensor's name: whether it travels


class Store:
    """Artefacts by their SHA-256, in memory."""

    def __init__(self) -> None:
        self._bytes: dict[str, Bytes] = {}

    def put(self, data: Bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self._bytes[name] = data
        return name

    def read(self, sha256: str) -> Bytes:
        return self._bytes[sha256]


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """The coordinator's: hashes of the model and of what was left out of its last change."""

    store: Store
    whole: str
    residual: str = ""


def first_model(task: Task, weights: Mapping[str, Floats]) -> tuple[GlobalModel, bytes]:
    """As `ayni coordinator init`: the first weights travel whole, in half precision unless the task says fp32."""
    store = Store()
    first = encode_whole(weights, "fp32" if task.traffic.form == "fp32" else "fp16")
    return GlobalModel(store, store.put(encode_whole(weights, "fp32"))), first


def average_models(
    task: Task,
    model: GlobalModel,
    updates: Mapping[str, bytes],
    soft_labels: Mapping[str, bytes],
    num_examples: Mapping[str, int],
    image_set: str,
    round_number: int,
) -> tuple[GlobalModel, Broadcast]:
    """One round's result, by the federation's own function. "model" goes to all, "consensus" to the clinics."""
    store = Store()
    store.put(model.store.read(model.whole))
    if model.residual:
        store.put(model.store.read(model.residual))
    inputs = RoundInputs(
        round_number=round_number,
        global_sha256=model.whole,
        residual_sha256=model.residual,
        image_set=image_set,
        sites=tuple(
            SiteInput(
                site=name,
                update=store.put(updates[name]) if name in updates else "",
                soft_labels=store.put(soft_labels[name]) if name in soft_labels else "",
                num_examples=num_examples[name],
            )
            for name in sorted({*updates, *soft_labels})
        ),
    )
    result = aggregate(inputs, task, store.read)
    after = Store()
    stored = GlobalModel(after, after.put(result.whole), after.put(result.residual) if result.residual else "")
    to_clinics = {"consensus": result.consensus} if result.consensus else {}
    return stored, Broadcast({"model": bytes(result.published)} if result.published else {}, to_clinics)


@dataclass(slots=True)
class SiteModel:
    """A site's copy of the global model, and what its last update left out."""

    keep: Keep = lambda name: True
    weights: dict[str, Floats] = field(default_factory=dict)
    owed: Mapping[str, Array] = field(default_factory=dict)

    def receive(self, message: Message, network: nn.Module) -> None:
        """Take up what came down, if anything did; the network then has the global weights (of those that travel)."""
        data = message.get("model")
        if data:
            shapes = {name: tensor.shape for name, tensor in self.weights.items()}
            self.weights = decode_update(data, shapes, self.weights) if shapes else assemble([data])
        self.load_into(network)

    def load_into(self, network: nn.Module) -> None:
        load_weights(network, {**weights_of(network), **self.weights})

    def update(self, network: nn.Module, task: Task) -> bytes:
        """What goes up after training."""
        trained = {name: tensor for name, tensor in weights_of(network).items() if self.keep(name)}
        data, self.owed = encode_update(trained, self.weights, self.owed, task.traffic)
        return data


def consensus_in(received: Message, setup: Setup) -> Tensor | None:
    """What the others answered to the public images, if it came: logits [P, C], or maps [P, S, H, W]."""
    if "consensus" not in received:
        return None
    public, targets = setup.public.images, decode_targets(received["consensus"])
    pixels_PHWC = public.pixels_PCHW.permute(0, 2, 3, 1).numpy()
    return public_images(pixels_PHWC, public.sha256, setup.task, None, targets).consensus


def norm_names(network: nn.Module) -> set[str]:
    """Of the tensors of normalisation layers."""
    return {
        f"{layer}.{name}"
        for layer, module in network.named_modules()
        if isinstance(module, nn.GroupNorm)
        for name, _ in module.named_parameters()
    }


def digest(model: GlobalModel) -> str:
    """What two ways to the same model are compared by."""
    tensors = safe.decode(model.store.read(model.whole))
    return safe.digest({name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()})
