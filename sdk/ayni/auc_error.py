"""How far chance moves an area under the ROC curve. Needs no numpy, no torch."""

from __future__ import annotations

import math


def auc_standard_error(auc: float, *, num_positive: int, num_negative: int) -> float:
    """Of an AUC on so many ill and so many healthy (Hanley and McNeil 1982, Radiology 143:29-36, formula 1).

    >>> round(auc_standard_error(0.9, num_positive=50, num_negative=50), 4)
    0.0321
    >>> round(auc_standard_error(0.95, num_positive=390, num_negative=234), 4)
    0.0083
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (num_positive - 1) * (q1 - auc**2) + (num_negative - 1) * (q2 - auc**2)
    return math.sqrt(max(0.0, spread) / (num_positive * num_negative))
