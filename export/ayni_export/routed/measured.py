"""How long an image takes with a routed bundle: measured once, where the bundle is made.

E = experts, L = layers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from ayni.task import ImageSettings
from ayni.tensors.safe import Array
from ayni_export.graph import parity_images
from ayni_export.routed.fold import folded, routing_of
from ayni_export.routed.layers import layers_of
from ayni_export.routed.record import Latency
from ayni_export.runtime import open_session

NUM_RUNS = 9


def latency(
    stack: Mapping[str, Array],
    image: ImageSettings,
    *,
    plain: bytes,
    routed: bytes,
    gradient: bytes | None,
    term_weights: Mapping[str, float],
) -> Latency:
    """Medians, one image and one thread. `stack`: the experts' tensors, [E, ...] by name."""
    layers, num_experts = layers_of(stack), len(next(iter(stack.values())))
    pixels = {"pixels": parity_images(image.channels, *image.seen)[-1:]}
    logits_LE = np.zeros((len(layers), num_experts), np.float32)
    routing_LE = routing_of(logits_LE)
    alone, _ = open_session(plain, folded(stack, routing_LE, layers), device="cpu")
    mixing, _ = open_session(routed, stack, device="cpu")
    gradient_ms = None
    if gradient is not None:
        sloping, _ = open_session(gradient, stack, device="cpu")
        weights_T = np.array(list(term_weights.values()), np.float32)
        given = {**pixels, "routing_logits": logits_LE, "term_weights": weights_T}
        gradient_ms = _median_ms(lambda: sloping.run(["gradient"], given))
    return Latency(
        plain_ms=_median_ms(lambda: alone.run(["logits"], pixels)),
        routed_ms=_median_ms(lambda: mixing.run(["logits"], {**pixels, "routing": routing_LE})),
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
