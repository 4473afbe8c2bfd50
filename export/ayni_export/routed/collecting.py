"""A federation's experts, checked and stacked as a routed bundle will hold them. E = experts, F = channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ayni.errors import IntegrityError
from ayni.learning.networks import Network, build_network, shapes_of
from ayni.tensors import safe
from ayni.tensors.safe import Array
from ayni_export.routed.answers import with_normalisation
from ayni_export.routed.mixing import stacked
from ayni_export.routed.record import ExpertNote, Form
from ayni_export.routed.source import Federation


def stack_of(federation: Federation, form: Form) -> tuple[Network, dict[str, Tensor]]:
    """The task's small network, and its experts' tensors [E, ...] by name in the form in which they are stored.

    Raises IntegrityError if an expert is not of this task and network, or too large for half precision.
    """
    task = federation.task
    network = build_network(task.small_network, task.image, len(task.classes)).eval()
    shapes, names = shapes_of(network), [expert.info.site for expert in federation.experts]
    if not names or names[0] != "global" or len(set(names)) < len(names):
        raise IntegrityError(f"experts are the global model and at most one of each site, not {names}")
    states = []
    for expert in federation.experts:
        if expert.info.task != task.name or len(expert.info.pixel_mean) != task.image.channels:
            raise IntegrityError(f"the expert of {expert.info.site!r} is not of the task {task.name!r}")
        safe.check_like(expert.weights, shapes)
        weights = {name: torch.from_numpy(np.array(expert.weights[name], np.float32)) for name in shapes}
        states.append(with_normalisation(weights, expert.info.pixel_mean, expert.info.pixel_std))
    stack = {name: tensor.half() if form == "fp16" else tensor for name, tensor in stacked(states).items()}
    for name, tensor in stack.items():
        safe.check_floats(name, tensor.numpy())
    return network, stack


def comparable(federation: Federation) -> dict[str, Array]:
    """By site the statistics [2, F] that can be compared: those made in the very global model that is packed."""
    digest = safe.digest(federation.experts[0].weights)
    return {
        expert.info.site: expert.statistics_2F
        for expert in federation.experts
        if expert.statistics_2F is not None and expert.info.reference_digest == digest
    }


def notes_of(federation: Federation) -> tuple[ExpertNote, ...]:
    """What the bundle says of each expert."""
    with_statistics, digest = comparable(federation), safe.digest(federation.experts[0].weights)
    return tuple(
        ExpertNote(
            site=expert.info.site,
            num_train=expert.info.num_train,
            rounds=expert.info.rounds,
            num_cases=expert.info.num_cases if expert.info.site in with_statistics else 0,
            num_held_out=expert.info.num_held_out if expert.info.reference_digest == digest else 0,
            home_gain=expert.info.home_gain if expert.info.reference_digest == digest else 0.0,
            home_spread=expert.info.home_spread if expert.info.reference_digest == digest else 0.0,
            weights_sha256=safe.digest(expert.weights),
        )
        for expert in federation.experts
    )
