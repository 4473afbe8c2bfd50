"""Three ONNX graphs of one small network, none of which holds a weight that a site trained: these come as external
initialisers by name.

    plain     pixels                                  -> logits, probabilities, statistics
    routed    pixels, routing                         -> logits, probabilities, statistics
    gradient  pixels, routing_logits, term_weights    -> loss, terms, gradient

The plain graph takes one network's weights (`fold.folded`), the others all experts', stacked. So a bundle has its
experts in it once, in half precision if wanted, and a folded one runs as any other model.
B = images, E = experts (0 is the global model), L = layers, T = terms of the loss, K = channels, H x W = pixels. Of
volumes H x W is D x H x W, the part of a volume that the network sees at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ayni.errors import IntegrityError
from ayni.learning.networks import Network
from ayni.task import ImageSettings
from ayni_export.graph import quiet_exporter, strip, write_out_norms
from ayni_export.routed.answers import answering, answers, normalised, probabilities_of
from ayni_export.routed.constants import fold_constants
from ayni_export.routed.gradient import gradient_function, traced
from ayni_export.routed.layers import layers_of
from ayni_export.routed.losses import WEIGHTS
from ayni_export.routed.mixing import mixed
from ayni_export.routed.views import View

OPSET = 20  # onnxruntime 1.17 and later
OUTPUTS, STATISTICS = ("logits", "probabilities"), "statistics"
GRADIENT_OUTPUTS = ("loss", "terms", "gradient")
Weights = Mapping[str, Tensor]


def plain_graph(
    network: Network, weights: Weights, image: ImageSettings, *, temperature: float, statistics: bool = True
) -> bytes:
    """One network. `weights`: examples of them by name, with the normalisation (`answers.with_normalisation`);
    `temperature` divides the logits of the probabilities. Without `statistics` the graph costs what a model costs.

    The number of images is free. Raises IntegrityError if torch makes no graph of the network.
    """
    asked, names = write_out_norms(answering(network)), list(weights)

    class Plain(nn.Module):
        def forward(self, pixels_BKHW: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
            given = dict(zip(names, tensors, strict=True))
            logits, seen_B2F = answers(asked, given, normalised(pixels_BKHW, given))  # type: ignore[arg-type]
            outputs = (logits, probabilities_of(logits, temperature))
            return (*outputs, seen_B2F) if statistics else outputs

    outputs = (*OUTPUTS, STATISTICS) if statistics else OUTPUTS
    return _exported(Plain(), {"pixels": _pixels(image, 2)}, weights, outputs)


def routed_graph(network: Network, stack: Weights, image: ImageSettings, *, temperature: float) -> bytes:
    """Experts, mixed inside by `routing` [L, E] (rows on the simplex; layers as `layers_of(stack)`). `stack`: examples
    [E, ...] by name, with the normalisation, in the precision in which the graph will be given them. Else as
    `plain_graph`.
    """
    asked, names = write_out_norms(answering(network)), list(stack)
    layers = layers_of(names)

    class Routed(nn.Module):
        def forward(self, pixels_BKHW: Tensor, routing_LE: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
            given = mixed(dict(zip(names, tensors, strict=True)), routing_LE, layers)
            logits, seen_B2F = answers(asked, given, normalised(pixels_BKHW, given))  # type: ignore[arg-type]
            return logits, probabilities_of(logits, temperature), seen_B2F

    inputs = {"pixels": _pixels(image, 2), "routing": torch.softmax(torch.zeros(_size(stack)), dim=1)}
    return _exported(Routed(), inputs, stack, (*OUTPUTS, STATISTICS))


def gradient_graph(network: Network, stack: Weights, image: ImageSettings, *, view: View) -> bytes:
    """For one image, [1, K, H, W], and routing logits [L, E] (a softmax of each row is the routing): the loss, its
    terms [T] in the order of `losses.WEIGHTS`, and the exact gradient [L, E] of the loss, which is their sum times
    `term_weights` [T]. `view` is the second view, made and mapped back inside. Other arguments as `routed_graph`.

    Raises IntegrityError if this network's backward steps have no form in ONNX.
    """
    function = gradient_function(answering(network), list(stack), view)
    num_terms = len(WEIGHTS["segmentation" if network.dense else "classification"])
    inputs = {
        "pixels": _pixels(image, 1),
        "routing_logits": torch.zeros(_size(stack)),
        "term_weights": torch.ones(num_terms),
    }
    try:
        module = traced(function, (*inputs.values(), *stack.values()))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise IntegrityError(f"this network's exact gradient has no graph: {error}") from None
    return _exported(module, inputs, stack, GRADIENT_OUTPUTS, fixed=True)


def _pixels(image: ImageSettings, num_images: int) -> Tensor:
    return torch.zeros(num_images, image.channels, *image.seen, dtype=torch.uint8)


def _size(stack: Weights) -> tuple[int, int]:
    return len(layers_of(stack)), len(next(iter(stack.values())))


def _exported(
    module: nn.Module, inputs: Weights, weights: Weights, outputs: Sequence[str], *, fixed: bool = False
) -> bytes:
    """`fixed`: one image; an exact gradient, over which torch's optimiser would take minutes."""
    tensors = list(weights.values())
    arguments = (*inputs.values(), *tensors) if fixed else (*inputs.values(), tensors)
    images = torch.export.Dim("images", min=1, max=4096)
    shapes = None if fixed else ({0: images}, *[None] * (len(inputs) - 1), [None] * len(tensors))
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                optimize=not fixed,
                input_names=[*inputs, *weights],
                output_names=list(outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise IntegrityError(f"torch makes no ONNX graph of this network: {str(error).splitlines()[0]}") from None
    if program is None:
        raise IntegrityError("torch made no ONNX graph of this network. Report it with the task file.")
    proto = program.model_proto
    strip(proto)
    if fixed:
        fold_constants(proto)
    onnx.checker.check_model(proto, full_check=True)
    _take_weights_out(proto, set(weights))
    return bytes(proto.SerializeToString(deterministic=True))


def _take_weights_out(proto: Any, names: set[str]) -> None:
    """Turn the weights from inputs into initialisers whose bytes lie elsewhere; whoever runs the graph gives them."""
    inputs = list(proto.graph.input)
    del proto.graph.input[:]
    proto.graph.input.extend(value for value in inputs if value.name not in names)
    for value in inputs:
        if value.name not in names:
            continue
        kind = value.type.tensor_type
        tensor = proto.graph.initializer.add(
            name=value.name,
            data_type=kind.elem_type,
            dims=[axis.dim_value for axis in kind.shape.dim],
            data_location=onnx.TensorProto.EXTERNAL,
        )
        tensor.external_data.add(key="location", value="weights")
