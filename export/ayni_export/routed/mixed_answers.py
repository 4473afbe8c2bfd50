"""Steps for a bundle without a gradient graph: forward passes, and experts' answers mixed instead of their weights.

The experts lie in one basin, so their answers, mixed, are near those of their mixed weights; and how the entropy of
mixed answers falls with the shares needs no step back through a network. What comes of it are shares to mix weights by,
which the guard weighs up like any others. (After forward-only entropy merging, arXiv 2602.21372.)
E = experts, L = layers, C = classes, S = structures, X = pixels or voxels. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ayni.tensors.safe import Floats
from ayni_export.routed.refine import Doubles, Gradient, Pixels, softmax

AskExpert = Callable[[Pixels, int], Floats]  # an image [h, w, K] and an expert's number -> logits, [C] or [S, X]


def gradient_of_mixed_answers(ask: AskExpert, num_experts: int, *, temperature: float = 1.0) -> Gradient:
    """The entropy, 0 (sure) to 1 (all alike), of the experts' logits mixed by their shares, and its exact gradient
    [L, E] with respect to the routing's logits: all rows are alike and stay so, for answers have no layers."""

    def gradient(image_hwK: Pixels, logits_LE: Floats) -> tuple[float, Floats]:
        shares_E = softmax(logits_LE[0].astype(np.float64))
        answers = np.stack([ask(image_hwK, number) for number in range(num_experts)]) / np.float32(temperature)
        mixed = np.tensordot(shares_E, answers, axes=1)
        entropy, slope = _of_classes(mixed) if mixed.ndim == 1 else _of_structures(mixed)
        by_share_E = np.tensordot(answers, slope, axes=mixed.ndim)
        slope_E = shares_E * (by_share_E - shares_E @ by_share_E)
        return entropy, np.repeat(slope_E[np.newaxis] / len(logits_LE), len(logits_LE), axis=0).astype(np.float32)

    return gradient


def _of_classes(logits_C: Doubles) -> tuple[float, Doubles]:
    """Entropy as a share of the most there is, and its slope by each logit: -p (log p + entropy)."""
    log_C = logits_C - logits_C.max()
    log_C = log_C - np.log(np.exp(log_C).sum())
    p_C = np.exp(log_C)
    nats, most = float(-(p_C * log_C).sum()), np.log(len(p_C))
    return nats / most, np.asarray(-p_C * (log_C + nats) / most)


def _of_structures(logits: Doubles) -> tuple[float, Doubles]:
    """The mean over places and structures of log(1 + exp z) - z p, in bits, and its slope by each logit z."""
    p = 0.5 + 0.5 * np.tanh(logits / 2)
    per_place = logits.size * np.log(2)
    bits = float((np.logaddexp(0, logits) - logits * p).sum() / per_place)
    return bits, np.asarray(-logits * p * (1 - p) / per_place)
