"""A routing folded into one network's weights: after that, an image costs one plain inference.

E = experts (0 is the global model), L = layers. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ayni_export.routed.layers import Layer, check_cover

Floats = np.ndarray[Any, np.dtype[np.float32]]
Array = np.ndarray[Any, np.dtype[Any]]
SUM_TOLERANCE = 1e-5


def routing_of(logits_LE: Floats) -> Floats:
    """Softmax of each row: on the simplex, whatever the logits.

    >>> routing_of(np.array([[0.0, 0.0]], np.float32)).tolist()
    [[0.5, 0.5]]
    """
    powers_LE = np.exp(logits_LE - logits_LE.max(axis=1, keepdims=True), dtype=np.float32)
    routing_LE: Floats = powers_LE / powers_LE.sum(axis=1, keepdims=True, dtype=np.float32)
    return routing_LE


def check_routing(routing_LE: Floats, num_layers: int, num_experts: int) -> None:
    """Raises ValueError unless there is one row per layer, each of weights that are not negative and sum to 1."""
    if routing_LE.shape != (num_layers, num_experts):
        raise ValueError(f"a routing of {list(routing_LE.shape)} for {num_layers} layers and {num_experts} experts")
    # also refuses what is not a number
    if not (routing_LE.min() >= 0 and np.abs(routing_LE.sum(axis=1, dtype=np.float64) - 1).max() <= SUM_TOLERANCE):
        raise ValueError("the weights of a layer's experts must not be negative, and sum to 1")


def folded(stack: Mapping[str, Array], routing_LE: Floats, layers: Sequence[Layer]) -> dict[str, Floats]:
    """The weights of one network, 32-bit: in each layer the experts' tensors times the layer's row of `routing_LE`.

    `stack`: [E, ...] by the names of the state, 16 or 32 bits (integers are expert 0's). The experts are added up one
    after the other, each product rounded: the same bits on every machine. Raises ValueError as `check_routing`, and if
    a tensor is in no layer.
    """
    check_cover(layers, stack)
    routing_LE = routing_LE.astype(np.float32)
    check_routing(routing_LE, len(layers), len(next(iter(stack.values()))))
    return {name: _sum(stack[name], routing_LE[i]) for i, layer in enumerate(layers) for name in layer.tensors}


def _sum(tensors: Array, weights_E: Floats) -> Floats:
    if tensors.dtype.kind != "f":
        return np.asarray(tensors[0], np.float32)
    total: Floats = np.zeros(tensors.shape[1:], np.float32)
    for weight, tensor in zip(weights_E, tensors, strict=True):
        total += weight * tensor.astype(np.float32)
    return total
