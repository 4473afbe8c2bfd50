"""What is measured before a routed bundle is written: does ONNX Runtime answer as torch does, and how long it takes.

E = experts, L = layers, B = images, K = channels, H x W = pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ayni.learning.networks import Network
from ayni.task import ImageSettings
from ayni.tensors.safe import Array, Floats
from ayni_export.bundle import Parity
from ayni_export.graph import TOLERANCE, parity_images
from ayni_export.routed.answers import answering, answers, normalised, probabilities_of
from ayni_export.routed.fold import folded, routing_of
from ayni_export.routed.gradient import gradient_function
from ayni_export.routed.layers import Layer
from ayni_export.routed.mixing import mixed
from ayni_export.routed.record import Latency
from ayni_export.routed.views import View
from ayni_export.runtime import open_session

NUM_IMAGES, NUM_RUNS = 4, 9  # each image by itself, as in a diagnosis


@dataclass(frozen=True, slots=True)
class Model:
    """The network of the federation and its experts' tensors, [E, ...] by name, as the bundle will hold them."""

    network: Network
    stack: Mapping[str, Array]
    layers: tuple[Layer, ...]
    image: ImageSettings
    temperature: float

    @property
    def num_experts(self) -> int:
        return len(next(iter(self.stack.values())))

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.array(tensor)) for name, tensor in self.stack.items()}

    def pixels(self) -> list[Any]:
        """Images [1, K, H, W], some dark, some noise, some smooth."""
        pixels_BKHW = parity_images(self.image.channels, self.image.height, self.image.width)
        return list(np.split(pixels_BKHW, len(pixels_BKHW)))[1 : 1 + NUM_IMAGES]

    def logits(self) -> Floats:
        """Routing logits [L, E] of no particular meaning, the same in every run."""
        shape = (len(self.layers), self.num_experts)
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def answer(self, pixels_BKHW: Any, routing_LE: Floats) -> tuple[Tensor, Tensor]:
        """torch's logits and probabilities, of a mixture."""
        with torch.no_grad():
            weights = mixed(self.tensors(), torch.from_numpy(routing_LE), self.layers)
            images_BKHW = normalised(torch.from_numpy(pixels_BKHW), weights)
            logits, _ = answers(answering(self.network), weights, images_BKHW)
            return logits, probabilities_of(logits, self.temperature)


def plain_parity(model: Model, plain: bytes) -> Parity:
    """Of the folded network: torch mixes in its own way, so the folding is measured too."""
    routing_LE = routing_of(model.logits())
    session, _ = open_session(plain, folded(model.stack, routing_LE, model.layers), device="cpu")
    worst = [0.0, 0.0]
    for pixels_BKHW in model.pixels():
        here = session.run(["logits", "probabilities"], {"pixels": pixels_BKHW})
        there = model.answer(pixels_BKHW, routing_LE)
        worst = [max(w, _apart(h, t)) for w, h, t in zip(worst, here, there, strict=True)]
    return Parity(
        num_images=NUM_IMAGES,
        logits=worst[0],
        probabilities=worst[1],
        tolerance=TOLERANCE,
        pytorch_version=str(torch.__version__),
        onnxruntime_version=onnxruntime.__version__,
    )


def routed_parity(model: Model, routed: bytes) -> float:
    """Largest difference of the logits, with the mixing inside the graph."""
    routing_LE = routing_of(model.logits())
    session, _ = open_session(routed, model.stack, device="cpu")
    return max(
        _apart(
            session.run(["logits"], {"pixels": pixels_BKHW, "routing": routing_LE})[0],
            model.answer(pixels_BKHW, routing_LE)[0],
        )
        for pixels_BKHW in model.pixels()
    )


def gradient_parity(model: Model, gradient: bytes, view: View, term_weights: Mapping[str, float]) -> float:
    """Largest difference of the gradient [L, E] from torch's own."""
    function = gradient_function(answering(model.network), list(model.stack), view)
    session, _ = open_session(gradient, model.stack, device="cpu")
    worst = 0.0
    for pixels_BKHW in model.pixels():
        given = gradient_inputs(pixels_BKHW, model.logits(), term_weights)
        tensors = [torch.from_numpy(value) for value in given.values()]
        there = function(*tensors, *model.tensors().values())[2]
        worst = max(worst, _apart(session.run(["gradient"], given)[0], there))
    return worst


def gradient_inputs(pixels_BKHW: Any, logits_LE: Floats, term_weights: Mapping[str, float]) -> dict[str, Any]:
    weights_T = np.array(list(term_weights.values()), np.float32)
    return {"pixels": pixels_BKHW, "routing_logits": logits_LE, "term_weights": weights_T}


def latency(model: Model, plain: bytes, routed: bytes, gradient: bytes | None, terms: Mapping[str, float]) -> Latency:
    """Medians, one image and one thread."""
    pixels_BKHW, routing_LE = model.pixels()[2], routing_of(model.logits())
    alone, _ = open_session(plain, folded(model.stack, routing_LE, model.layers), device="cpu")
    mixing, _ = open_session(routed, model.stack, device="cpu")
    gradient_ms = None
    if gradient is not None:
        sloping, _ = open_session(gradient, model.stack, device="cpu")
        given = gradient_inputs(pixels_BKHW, model.logits(), terms)
        gradient_ms = _median_ms(lambda: sloping.run(["gradient"], given))
    return Latency(
        plain_ms=_median_ms(lambda: alone.run(["logits"], {"pixels": pixels_BKHW})),
        routed_ms=_median_ms(lambda: mixing.run(["logits"], {"pixels": pixels_BKHW, "routing": routing_LE})),
        gradient_ms=gradient_ms,
        num_runs=NUM_RUNS,
    )


def _median_ms(run: Callable[[], object]) -> float:
    run()
    times_ms = []
    for _ in range(NUM_RUNS):
        start_s = time.perf_counter()
        run()
        times_ms.append(1000 * (time.perf_counter() - start_s))
    return round(statistics.median(times_ms), 3)


def _apart(here: Floats, there: Tensor) -> float:
    """Also what is not a number is apart."""
    apart = float(np.abs(here - there.detach().numpy()).max())
    return apart if np.isfinite(apart) else 1e9
