"""Experts mixed layer by layer in the space of weights (IOP-FL, arXiv 2204.08467, "outside"), differentiable.

E = experts (0 is the global model), L = layers. A routing [L, E] has one row per layer, on the simplex:

    network = torch.func.functional_call(network, mixed(stack, routing_LE, layers), (images_BCHW,))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ayni_export.routed.layers import Layer, check_cover


def stacked(experts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The experts' states as one: each tensor gets a first axis [E, ...]. Copies, which no later training changes.

    Raises ValueError if the experts do not have the same names, shapes and types.
    """
    if not experts:
        raise ValueError("there is no expert")
    first = {name: (tensor.shape, tensor.dtype) for name, tensor in experts[0].items()}
    for i, expert in enumerate(experts):
        if {name: (tensor.shape, tensor.dtype) for name, tensor in expert.items()} != first:
            raise ValueError(f"expert {i} is not of the same network as expert 0")
    return {name: torch.stack([expert[name].detach() for expert in experts]) for name in first}


def mixed(stack: Mapping[str, Tensor], routing_LE: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The weights of one network: in each layer, the sum of the experts' tensors times the layer's row of `routing_LE`.

    `routing_LE`: float, rows on the simplex (not checked here: see `fold.check_routing`). A one-hot row gives that
    expert's bits, and equal weights the arithmetic mean. Weights come out in the routing's type, whatever theirs.
    Integers (a normalisation's count of batches) are expert 0's: a mean of counts would mean nothing.
    Raises ValueError if a tensor is in no layer, or the routing has not one row per layer and column per expert.
    """
    check_cover(layers, stack)
    num_experts = len(next(iter(stack.values())))
    if tuple(routing_LE.shape) != (len(layers), num_experts):
        raise ValueError(f"a routing of {list(routing_LE.shape)} for {len(layers)} layers and {num_experts} experts")
    rows_E = routing_LE.unbind()
    return {name: _mix(stack[name], rows_E[i]) for i, layer in enumerate(layers) for name in layer.tensors}


def _mix(tensors: Tensor, weights_E: Tensor) -> Tensor:
    """`tensors`: [E, ...]. A product of matrices: neither it nor its gradient makes E copies of the weights."""
    if not tensors.is_floating_point():
        return tensors[0]
    flat_EN = tensors.to(weights_E.dtype).reshape(tensors.shape[0], -1)
    return (weights_E[None] @ flat_EN).reshape(tensors.shape[1:])
