"""A start refined by exact gradients: one row of E numbers, shared by all layers, a few steps over the worklist.

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
EVERY = 3  # of so many images one is asked for a gradient, which costs as much as 9 to 17 plain answers
LEARNING_RATE = 0.2
LEAST_WEIGHT = 1e-3  # an expert that starts with nothing could not be found again
BETA, BETA_OF_SQUARES, EPSILON = 0.9, 0.999, 1e-3  # Adam; a smaller epsilon amplifies rounding

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Gradient = Callable[[Pixels, Floats], tuple[float, Floats]]  # image [h, w, K], logits [L, E] -> loss, gradient [L, E]


def refined(
    seen: Sequence[Pixels], start_E: Floats, gradient: Gradient, num_layers: int, *, num_steps: int = NUM_STEPS
) -> tuple[Floats, Refinement]:
    """[E] after `num_steps` of Adam, each on its share of every third image; no steps give `start_E`, bit for bit.

    The images are taken one by one in their order; what was refined before leaves no trace.
    """
    seen = seen[::EVERY]
    num_steps = min(num_steps, len(seen))
    if not num_steps:
        return start_E, Refinement(num_steps=0, loss_first=0.0, loss_last=0.0)
    logits_E = np.log(np.maximum(start_E.astype(np.float64), LEAST_WEIGHT))
    mean_E, squares_E, losses = np.zeros_like(logits_E), np.zeros_like(logits_E), []
    for step in range(1, num_steps + 1):
        part = seen[(step - 1) * len(seen) // num_steps : step * len(seen) // num_steps]
        logits_LE = np.repeat(logits_E[np.newaxis].astype(np.float32), num_layers, axis=0)
        answers = [gradient(image_hwK, logits_LE) for image_hwK in part]
        losses.append(float(np.mean([loss for loss, _ in answers])))
        slope_E = np.mean([slope_LE.astype(np.float64).sum(axis=0) for _, slope_LE in answers], axis=0)
        mean_E = BETA * mean_E + (1 - BETA) * slope_E
        squares_E = BETA_OF_SQUARES * squares_E + (1 - BETA_OF_SQUARES) * slope_E**2
        size_E = np.sqrt(squares_E / (1 - BETA_OF_SQUARES**step)) + EPSILON
        logits_E = logits_E - LEARNING_RATE * mean_E / (1 - BETA**step) / size_E
    weights_E = softmax(logits_E).astype(np.float32)
    return weights_E, Refinement(num_steps=num_steps, loss_first=losses[0], loss_last=losses[-1])


def softmax(logits_E: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """
    >>> softmax(np.zeros(2)).tolist()
    [0.5, 0.5]
    """
    shares_E = np.exp(logits_E - logits_E.max())
    return np.asarray(shares_E / shares_E.sum(), np.float64)
