"""Means with 95 % intervals over seeds and sites: a bootstrap that draws both, and is paired for differences.

A result is a table with a row per seed and a column per site, and both count: a site of the same name has the same
size (and, with natural sites, the same scanner) at every seed, and a seed's run gives one global model to all sites.
So neither the cells nor the sites within a seed are independent of each other. A resample therefore draws seeds and,
apart from them, sites, both with replacement, and takes the mean of the cells where they cross (the pigeonhole
bootstrap, Owen 2007). Of n it draws n - 1, which makes the spread that of the unbiased estimate (Rao and Wu 1988); with
three seeds the usual n of n would be a fifth too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Cells = Mapping[tuple[int, str], float]  # (seed, site) -> figure

NUM_RESAMPLES = 10_000
TAILS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over the cells; `interval` is None when there are fewer than two seeds: one run has no spread to see."""

    mean: float
    interval: tuple[float, float] | None
    num_seeds: int
    num_sites: int
    num_cells: int

    @property
    def above_zero(self) -> bool:
        return self.interval is not None and self.interval[0] > 0

    @property
    def below_zero(self) -> bool:
        return self.interval is not None and self.interval[1] < 0


def estimate(cells: Cells) -> Estimate | None:
    """The mean over sites and seeds with its interval; None without a single finite figure.

    >>> estimate({(0, "a"): 1.0, (0, "b"): 3.0})
    Estimate(mean=2.0, interval=None, num_seeds=1, num_sites=2, num_cells=2)
    """
    finite = {key: value for key, value in cells.items() if math.isfinite(value)}
    if not finite:
        return None
    seeds, sites = sorted({seed for seed, _ in finite}), sorted({site for _, site in finite})
    figures_SK = np.full((len(seeds), len(sites)), np.nan)  # S = seeds, K = sites
    for (seed, site), value in finite.items():
        figures_SK[seeds.index(seed), sites.index(site)] = value
    return Estimate(
        mean=math.fsum(finite.values()) / len(finite),
        interval=_interval(figures_SK) if len(seeds) > 1 else None,
        num_seeds=len(seeds),
        num_sites=len(sites),
        num_cells=len(finite),
    )


def paired_difference(ours: Cells, theirs: Cells) -> Estimate | None:
    """The mean of ours - theirs over the seeds and sites that both have; a pair is resampled as one.

    >>> paired_difference({(0, "a"): 3.0, (1, "a"): 4.0, (2, "a"): 9.0}, {(0, "a"): 1.0, (1, "a"): 2.0})
    Estimate(mean=2.0, interval=(2.0, 2.0), num_seeds=2, num_sites=1, num_cells=2)
    """
    return estimate({key: ours[key] - theirs[key] for key in sorted(ours.keys() & theirs.keys())})


def _interval(figures_SK: NDArray[np.float64]) -> tuple[float, float]:
    """Missing cells are NaN; a resample that meets none of the others does not count."""
    num_seeds, num_sites = figures_SK.shape
    times_seed_BS, times_site_BK = _draws(num_seeds, num_sites)
    there_SK = np.isfinite(figures_SK)
    total_B, weight_B = np.zeros(NUM_RESAMPLES), np.zeros(NUM_RESAMPLES)
    centre = float(np.nanmean(figures_SK))
    for seed, site in zip(*np.nonzero(there_SK), strict=True):
        times_B = times_seed_BS[:, seed] * times_site_BK[:, site]
        total_B += times_B * (figures_SK[seed, site] - centre)  # equal figures: exactly zero, whatever is drawn
        weight_B += times_B
    means_B = centre + total_B[weight_B > 0] / weight_B[weight_B > 0]
    low, high = np.quantile(means_B, TAILS)
    return float(low), float(high)


@cache
def _draws(num_seeds: int, num_sites: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each resample has each seed, and each site (B = resamples)."""
    random = np.random.RandomState(0)  # its stream is promised never to change: the same rows give the same page
    seeds_BS, sites_BK = (
        random.multinomial(max(count - 1, 1), [1 / count] * count, size=NUM_RESAMPLES).astype(np.float64)
        for count in (num_seeds, num_sites)
    )
    return seeds_BS, sites_BK
