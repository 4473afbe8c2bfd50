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
    >>> distance(here, here), round(distance(here, there), 3)  # 1/2 each way
    (0.0, 0.5)
    """
    (mean_F, variance_F), (other_F, other_variance_F) = here_2F.astype(np.float64), there_2F.astype(np.float64)
    variance_F, other_variance_F = variance_F + LEAST_VARIANCE, other_variance_F + LEAST_VARIANCE
    apart_F = (mean_F - other_F) ** 2
    ratio_F = (variance_F + apart_F) / other_variance_F + (other_variance_F + apart_F) / variance_F - 2
    return float(ratio_F.mean() / 4)


def start_weights(here: Sequence[Floats | None], there: Sequence[Floats | None]) -> Floats:
    """[E] on the simplex. `here`: [2, F] of the worklist, as each expert's site would have seen it; `there`: of that
    site's training images. An expert without (None) gets nothing; if none has any, the global model gets all.

    >>> at = [np.array([[mean], [1.0]], np.float32) for mean in (0.0, 1.0)]
    >>> start_weights([None, at[0], at[0]], [None, *at]).round(2).tolist()  # .5 nats apart: e to 1
    [0.0, 0.7300000190734863, 0.27000001072883606]
    """
    far = [None if h is None or t is None else distance(h, t) for h, t in zip(here, there, strict=True)]
    known = [each for each in far if each is not None]
    if not known:
        return np.asarray(np.eye(1, len(far))[0], np.float32)
    near_E = np.array([0 if each is None else np.exp((min(known) - each) / TEMPERATURE) for each in far])
    return np.asarray(near_E / near_E.sum(), np.float32)
