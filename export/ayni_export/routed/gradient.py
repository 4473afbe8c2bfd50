"""The exact gradient of the loss for one image with respect to the routing's logits, as one traced function.

torch cannot export `torch.func.grad`, nor the joint graph of autograd: its backward convolution has no ONNX form. What
works is to trace the gradient's own computation with `make_fx`, and to write those steps ourselves (backward.py).
E = experts (0 is the global model), L = layers, T = terms of the loss, K = channels, H x W = pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ayni_export.routed.answers import Answering, answers, normalised
from ayni_export.routed.backward import decompositions
from ayni_export.routed.layers import layers_of
from ayni_export.routed.losses import terms_of
from ayni_export.routed.mixing import mixed
from ayni_export.routed.views import View

Function = Callable[..., tuple[Tensor, Tensor, Tensor]]


def loss_of(
    asked: Answering,
    stack: Mapping[str, Tensor],
    view: View,
    pixels_BKHW: Tensor,
    routing_logits_LE: Tensor,
    term_weights_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the terms, and the terms [T]. Both views go through the network as one batch."""
    weights = mixed(stack, torch.softmax(routing_logits_LE, dim=1), layers_of(stack))
    images_BKHW = normalised(pixels_BKHW, weights)
    logits, _ = answers(asked, weights, torch.cat([images_BKHW, view.of(images_BKHW)]))
    one, other = logits.chunk(2)
    terms_T = torch.stack(list(terms_of(one, view.back(other)).values()))
    return (terms_T * term_weights_T).sum(), terms_T


def gradient_function(asked: Answering, names: Sequence[str], view: View) -> Function:
    """(pixels, routing logits, term weights, *stacked tensors in the order of `names`) -> loss, terms, gradient."""

    def function(
        pixels_BKHW: Tensor, routing_logits_LE: Tensor, term_weights_T: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        stack = dict(zip(names, tensors, strict=True))

        def loss(logits_LE: Tensor) -> tuple[Tensor, Tensor]:
            return loss_of(asked, stack, view, pixels_BKHW, logits_LE, term_weights_T)

        gradient_LE, (value, terms_T) = torch.func.grad_and_value(loss, has_aux=True)(routing_logits_LE)
        return value, terms_T, gradient_LE

    return function


def traced(function: Function, arguments: Sequence[Tensor]) -> nn.Module:
    """The same function as a graph of forward operators. Raises ValueError where a backward step is not written."""
    trace: Any = make_fx(function, decomposition_table=decompositions())
    graph: nn.Module = trace(*arguments)
    return graph
