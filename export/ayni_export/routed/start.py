"""Where a routing starts: at the experts of the sites whose training images look most like the worklist.

Two places are compared: the images themselves (brightness, contrast), and the features that the global network's head
sees. Both must be near: an expert of a like scanner for another structure is no help, nor is the reverse. Where no
site's features are near, all experts speak alike: their mean varies less than any of them. The constants were settled
by leaving sites out, on other seeds than those of docs/results.md.

E = experts (0 is the global model), F = channels of the statistics (row 0: means, row 1: variances). numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ayni.tensors.safe import Floats

LEAST_VARIANCE = 1e-4
NOISE = 0.02  # nats: two sites nearer than that are equally near
POWER = 2.0  # a site twice as far in one place gets a quarter of the weight
TRUST = 0.1  # nats between features: an expert that far away gets 1/e of its weight, all alike the rest


class Places(NamedTuple):
    """Of the F channels the first are the images', the last the features (between them is the first convolution)."""

    num_channels: int
    num_features: int


def divergence(here_2F: Floats, there_2F: Floats) -> Floats:
    """[F]: the mean of both KL divergences of two Gaussians, in nats; 0 if the statistics are the same.

    >>> here, there = np.array([[0.0], [1.0]], np.float32), np.array([[1.0], [1.0]], np.float32)
    >>> divergence(here, here).tolist(), divergence(here, there).round(2).tolist()  # 1/2 each way
    ([0.0], [0.5])
    """
    (mean_F, variance_F), (other_F, other_variance_F) = here_2F.astype(np.float64), there_2F.astype(np.float64)
    variance_F, other_variance_F = variance_F + LEAST_VARIANCE, other_variance_F + LEAST_VARIANCE
    apart_F = (mean_F - other_F) ** 2
    ratio_F = (variance_F + apart_F) / other_variance_F + (other_variance_F + apart_F) / variance_F - 2
    return np.asarray(ratio_F / 4)


def distances(here_2F: Floats, there_2F: Floats, places: Places) -> tuple[float, float]:
    """In nats, means over the channels: between images, and between features."""
    apart_F = divergence(here_2F, there_2F)
    return float(apart_F[: places.num_channels].mean()), float(apart_F[-places.num_features :].mean())


def distance(here_2F: Floats, there_2F: Floats, places: Places) -> float:
    """Both in one figure, in nats: their geometric mean, 0 if the statistics are the same."""
    of_images, of_features = distances(here_2F, there_2F, places)
    return float(np.sqrt((of_images + NOISE) * (of_features + NOISE))) - NOISE


def start_weights(
    here: Sequence[Floats | None],
    there: Sequence[Floats | None],
    places: Places,
    *,
    power: float = POWER,
    trust: float = TRUST,
) -> Floats:
    """[E] on the simplex. `here`: [2, F] of the worklist, as each expert's site would have seen it; `there`: of that
    site's training images. What is not given to near sites is shared by all, the global model and those without
    statistics (None) among them; if there are none of any site, the global model gets all.

    >>> at = [np.array([[mean], [1.0]], np.float32) for mean in (0.0, 0.2)]
    >>> start_weights([None, at[0], at[0]], [None, *at], Places(1, 1)).round(3).tolist()  # .02 nats: 4 * 4 to 1
    [0.004000000189989805, 0.9340000152587891, 0.06199999898672104]
    """
    known = [i for i in range(len(here)) if here[i] is not None and there[i] is not None]
    if not known:
        return np.array([1.0] + [0.0] * (len(here) - 1), np.float32)
    weights_E = np.zeros(len(here), np.float64)
    apart = np.array([distances(here[i], there[i], places) for i in known])  # type: ignore[arg-type]
    near = -power * np.log(apart + NOISE).sum(axis=1)
    shares = np.exp(near - near.max())
    shares /= shares.sum()
    trusted = np.exp(-float(shares @ apart[:, 1]) / trust)
    weights_E[known] = trusted * shares
    weights_E += (1 - trusted) / len(here)
    return np.asarray(np.clip(weights_E, 0, 1), np.float32)
