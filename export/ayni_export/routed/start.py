"""Where a routing starts: at the experts of the sites whose training images look most like the worklist.

E = experts (0 is the global model), F = channels of the statistics (row 0: means, row 1: variances). numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ayni.tensors.safe import Floats

TEMPERATURE = 0.5  # nats: experts that much further away get 1/e of the weight
LEAST_VARIANCE = 1e-6


def distance(here_2F: Floats, there_2F: Floats) -> float:
    """Mean over channels of the symmetric KL divergence of two Gaussians, in nats: 0 if the statistics are the same.

    >>> here, there = np.array([[0.0], [1.0]], np.float32), np.array([[1.0], [1.0]], np.float32)
    >>> distance(here, here), distance(here, there)  # 1/2 each way
    (0.0, 0.5)
    """
    (mean_F, variance_F), (other_F, other_variance_F) = here_2F.astype(np.float64), there_2F.astype(np.float64)
    variance_F, other_variance_F = variance_F + LEAST_VARIANCE, other_variance_F + LEAST_VARIANCE
    apart_F = (mean_F - other_F) ** 2
    ratio_F = (variance_F + apart_F) / other_variance_F + (other_variance_F + apart_F) / variance_F - 2
    return float(ratio_F.mean() / 4)


def start_weights(worklist_2F: Floats, experts: Sequence[Floats | None]) -> Floats:
    """[E] on the simplex. An expert without statistics (None) gets nothing; if none has any, the global model all."""
    with_E = [i for i, there_2F in enumerate(experts) if there_2F is not None]
    weights_E = np.zeros(len(experts), np.float64)
    if not with_E:
        weights_E[0] = 1
        return weights_E.astype(np.float32)
    far = np.array([distance(worklist_2F, there_2F) for there_2F in experts if there_2F is not None])
    near = np.exp((far.min() - far) / TEMPERATURE)
    weights_E[with_E] = near / near.sum()
    return weights_E.astype(np.float32)
