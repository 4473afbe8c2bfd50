"""Does ONNX Runtime answer as torch does? Asked at every export of a routed bundle, of its own experts.

E = experts (0 is the global model), L = layers, T = terms of the loss. torch runs the network as it was trained, with
its own normalisations and its own backward steps: nothing of what was written for the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ayni.errors import IntegrityError
from ayni.learning.networks import Network
from ayni.task import ImageSettings
from ayni_export.bundle import Parity
from ayni_export.graph import ROUNDING, TOLERANCE, Pixels, parity_images
from ayni_export.routed.answers import answering, answers, normalised, probabilities_of
from ayni_export.routed.fold import folded
from ayni_export.routed.gradient import gradient_function
from ayni_export.routed.layers import layers_of
from ayni_export.routed.losses import WEIGHTS
from ayni_export.routed.mixing import mixed
from ayni_export.routed.views import View
from ayni_export.runtime import open_session

NUM_GRADIENT_IMAGES = 8  # of the parity images: flat ones, noise, and drawn ones
Stack = Mapping[str, Tensor]


def check_forward(
    network: Network,
    stack: Stack,
    image: ImageSettings,
    *,
    temperature: float,
    plain: bytes,
    routed: bytes | None = None,
) -> Parity:
    """The plain graph with folded weights and, if given, the routed graph, image by image, each with another routing.

    Raises IntegrityError if logits, probabilities or statistics differ from torch's by more than 1e-4; of logits above
    10 and statistics above 1, which 32 bits round in proportion, that is a share (1e-5 of the largest, and 1e-4).
    """
    asked, layers = answering(network), layers_of(stack)
    arrays = {name: tensor.numpy() for name, tensor in stack.items()}
    mixing = None if routed is None else open_session(routed, arrays, device="cpu")[0]
    worst = dict.fromkeys(("logits", "probabilities", "statistics"), 0.0)
    images = _images(image)
    for routing_LE, pixels_BKHW in zip(_routings(stack, len(images)), images, strict=True):
        with torch.no_grad():
            weights = mixed(stack, routing_LE, layers)
            logits, statistics_B2F = answers(asked, weights, normalised(torch.from_numpy(pixels_BKHW), weights))
            expected = [logits.numpy(), probabilities_of(logits, temperature).numpy(), statistics_B2F.numpy()]
        session = open_session(plain, folded(arrays, routing_LE.numpy(), layers), device="cpu")[0]
        found = [session.run(None, {"pixels": pixels_BKHW})]
        if mixing is not None:
            found.append(mixing.run(None, {"pixels": pixels_BKHW, "routing": routing_LE.numpy()}))
        largest = [float(np.abs(one).max()) for one in expected]
        scales = (max(1.0, largest[0] * ROUNDING / TOLERANCE), 1.0, max(1.0, largest[2]))
        for outputs in found:
            for name, there, here, scale in zip(worst, expected, outputs, scales, strict=False):
                worst[name] = max(worst[name], _apart(there, here) / scale)
    for name, difference in worst.items():
        _check(difference, f"ONNX Runtime's {name} of mixed experts")
    return Parity(
        num_images=len(images),
        logits=worst["logits"],
        probabilities=worst["probabilities"],
        tolerance=TOLERANCE,
        pytorch_version=str(torch.__version__),
        onnxruntime_version=onnxruntime.__version__,
    )


def check_gradient(network: Network, stack: Stack, image: ImageSettings, *, view: View, gradient: bytes) -> float:
    """The gradient graph against torch's autograd in double precision (single is no more exact than the graph is).

    Returns the largest difference as a share of the largest gradient of these images. Raises IntegrityError if it, or
    a difference of the loss or of a term, is above 1e-4.
    """
    function = gradient_function(answering(network).double(), list(stack), view)
    exact_stack = [tensor.double() if tensor.is_floating_point() else tensor for tensor in stack.values()]
    session = open_session(gradient, {name: tensor.numpy() for name, tensor in stack.items()}, device="cpu")[0]
    weights_T = torch.tensor(list(WEIGHTS["segmentation" if network.dense else "classification"].values()))
    worst = worst_loss = largest = 0.0
    images = _images(image)[:NUM_GRADIENT_IMAGES]
    for routing_LE, pixels_BKHW in zip(_routings(stack, len(images)), images, strict=True):
        logits_LE = torch.log(routing_LE)
        exact = function(torch.from_numpy(pixels_BKHW), logits_LE.double(), weights_T.double(), *exact_stack)
        inputs = {"pixels": pixels_BKHW, "routing_logits": logits_LE.numpy(), "term_weights": weights_T.numpy()}
        loss, terms_T, gradient_LE = session.run(None, inputs)
        worst_loss = max(worst_loss, _apart(exact[0], loss), _apart(exact[1], terms_T))
        worst, largest = max(worst, _apart(exact[2], gradient_LE)), max(largest, float(exact[2].abs().max()))
    _check(worst_loss, "ONNX Runtime's losses of mixed experts")
    _check(worst / max(largest, TOLERANCE), "ONNX Runtime's gradients of mixed experts")
    return worst / max(largest, TOLERANCE)


def _images(image: ImageSettings) -> list[Pixels]:
    images_BKHW = parity_images(image.channels, *image.seen)
    return np.split(images_BKHW, len(images_BKHW))


def _routings(stack: Stack, num: int) -> list[Tensor]:
    """Random ones with every weight above zero, the same in every run: [L, E] each."""
    random, num_experts = np.random.default_rng(0), len(next(iter(stack.values())))
    rows = random.dirichlet(np.full(num_experts, 2.0), (num, len(layers_of(stack)))).astype(np.float32)
    return list(torch.from_numpy(np.maximum(rows, 1e-6)))


def _apart(one: object, other: object) -> float:
    """The largest difference; infinite if one is not a number, which `max` would lose."""
    difference = float(np.abs(np.asarray(one) - np.asarray(other)).max())
    return difference if np.isfinite(difference) else np.inf


def _check(difference: float, what: str) -> None:
    if difference > TOLERANCE:
        raise IntegrityError(f"{what} differ from torch's by {difference:.2g} (at most {TOLERANCE:g} is allowed).")
