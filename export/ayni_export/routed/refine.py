"""A start refined by exact gradients: one row of E numbers, shared by all layers, a few steps over the worklist. A long
worklist supports more: as many steps again, in which every layer has a row of its own.

A falling loss is no proof of better answers, so this is asked for (`--refine`) and the guard weighs it up. E = experts,
L = layers, h x w = pixels, K = channels. numpy only: the gradient is a graph in the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ayni.tensors.safe import Floats
from ayni_export.routed.record import Refinement

NUM_STEPS = 4
OWN_ROWS_FROM = 32  # images
EVERY = 3  # of so many images one is asked for a gradient, which costs as much as 9 to 17 plain answers
LEARNING_RATE = 0.2
LEAST_WEIGHT = 1e-3  # an expert that starts with nothing could not be found again
BETA, BETA_OF_SQUARES, EPSILON = 0.9, 0.999, 1e-3  # Adam; a smaller epsilon amplifies rounding

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Gradient = Callable[[Pixels, Floats], tuple[float, Floats]]  # image [h, w, K], logits [L, E] -> loss, gradient [L, E]


def refined(
    seen: Sequence[Pixels], start_E: Floats, gradient: Gradient, num_layers: int, *, num_steps: int = NUM_STEPS
) -> tuple[Floats, Refinement]:
    """[L, E] after `num_steps` of Adam (of a long worklist, twice as many), each on its share of every third image; no
    steps give `start_E` in every layer, bit for bit.

    The images are taken one by one in their order; what was refined before leaves no trace.
    """
    start_LE = shared(start_E, num_layers)
    is_long, seen = len(seen) >= OWN_ROWS_FROM, seen[::EVERY]
    num_shared = min(num_steps, len(seen))
    num_own = min(num_steps, len(seen) - num_shared) if is_long else 0
    if not num_shared:
        return start_LE, Refinement(num_steps=0, loss_first=0.0, loss_last=0.0)
    num_steps = num_shared + num_own
    logits_LE, losses = np.log(np.maximum(start_LE.astype(np.float64), LEAST_WEIGHT)), []
    adam = _Adam()
    for step in range(num_steps):
        part = seen[step * len(seen) // num_steps : (step + 1) * len(seen) // num_steps]
        answers = [gradient(image_hwK, logits_LE.astype(np.float32)) for image_hwK in part]
        losses.append(float(np.mean([loss for loss, _ in answers])))
        slope_LE = np.mean([each_LE.astype(np.float64) for _, each_LE in answers], axis=0)
        if step == num_shared:
            adam = _Adam()  # its running means were of sums over all layers
        logits_LE = logits_LE - adam.step(slope_LE if step >= num_shared else slope_LE.sum(axis=0))
    return softmax(logits_LE).astype(np.float32), Refinement(
        num_steps=num_steps, num_own=num_own, loss_first=losses[0], loss_last=losses[-1]
    )


def shared(weights_E: Floats, num_layers: int) -> Floats:
    """[L, E]: the same row in every layer."""
    return np.repeat(weights_E[np.newaxis].astype(np.float32), num_layers, axis=0)


class _Adam:
    """How far to go against each slope; of one row [E] or of all [L, E]."""

    def __init__(self) -> None:
        self._mean: Doubles | float = 0.0
        self._squares: Doubles | float = 0.0
        self._taken = 0

    def step(self, slope: Doubles) -> Doubles:
        self._taken += 1
        self._mean = BETA * self._mean + (1 - BETA) * slope
        self._squares = BETA_OF_SQUARES * self._squares + (1 - BETA_OF_SQUARES) * slope**2
        size = np.sqrt(self._squares / (1 - BETA_OF_SQUARES**self._taken)) + EPSILON
        return np.asarray(LEARNING_RATE * self._mean / (1 - BETA**self._taken) / size, np.float64)


def softmax(logits: Doubles) -> Doubles:
    """Over the last axis.

    >>> softmax(np.zeros(2)).tolist()
    [0.5, 0.5]
    """
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True), np.float64)
