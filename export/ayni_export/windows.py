"""Asking a network about a volume that is larger than what it sees at once: windows that overlap by half. numpy only.

The same places, weights and mean of logits as MONAI's `sliding_window_inference(overlap=0.5, mode="gaussian")`, with
which training measures and calibrates. S = structures, D x H x W = voxels, d x h x w = those of a window, K = channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SIGMA_SHARE = 0.125  # of a window's side: the standard deviation of its weights
LEAST_WEIGHT = 1e-3  # every voxel of a window counts, its corners too

Floats = np.ndarray[Any, np.dtype[np.float32]]
Voxels = np.ndarray[Any, np.dtype[np.uint8]]
Ask = Callable[[Voxels], Floats]  # a window [d, h, w, K] to logits [S, d, h, w]


def windows_of(size: Sequence[int], seen: Sequence[int]) -> list[tuple[slice, ...]]:
    """Where windows of the size `seen` lie in a volume that is nowhere smaller; the last ones end where it ends.

    >>> [(start.start, start.stop) for start, in windows_of((10,), (4,))]
    [(0, 4), (2, 6), (4, 8), (6, 10)]
    """
    return list(itertools.product(*(_spans(*sides) for sides in zip(size, seen, strict=True))))


def _spans(length: int, seen: int) -> list[slice]:
    step = seen if length == seen else max(1, seen // 2)
    num_windows = 1 + max(0, math.ceil((length - seen) / step))
    starts = [min(number * step, length - seen) for number in range(num_windows)]
    return [slice(start, start + seen) for start in starts]


def weights_of(seen: Sequence[int]) -> Floats:
    """How much each voxel of a window counts: most in its middle. [d, h, w]"""
    weights = np.ones((), np.float32)
    for side in seen:
        from_middle = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        bell = np.exp(from_middle**2 / np.float32(-2 * (SIGMA_SHARE * side) ** 2))
        weights = weights[..., np.newaxis] * bell
    return np.asarray(np.maximum(weights, max(float(weights.min()), LEAST_WEIGHT)), np.float32)


def ask_in_windows(
    ask: Ask, voxels_DHWK: Voxels, seen: Sequence[int], watch: Callable[[int, int], None] | None = None
) -> Floats:
    """Logits [S, D, H, W]: where windows overlap, their weighted mean. Windows that are all black are asked once.

    `watch` hears how many of how many windows are done.
    """
    size = voxels_DHWK.shape[:3]
    windows = windows_of(size, seen)
    if len(windows) == 1:
        return ask(voxels_DHWK)
    weights_dhw = weights_of(seen)
    counted_DHW = np.zeros(size, np.float32)
    sums_SDHW: Floats | None = None
    of_black_Sdhw: Floats | None = None
    for number, window in enumerate(windows, start=1):
        part_dhwK = voxels_DHWK[window]
        is_black = not part_dhwK.any()
        if is_black and of_black_Sdhw is not None:
            logits_Sdhw = of_black_Sdhw
        else:
            logits_Sdhw = ask(part_dhwK)
            of_black_Sdhw = logits_Sdhw if is_black else of_black_Sdhw
        if sums_SDHW is None:
            sums_SDHW = np.zeros((len(logits_Sdhw), *size), np.float32)
        sums_SDHW[:, *window] += logits_Sdhw * weights_dhw
        counted_DHW[window] += weights_dhw
        if watch is not None:
            watch(number, len(windows))
    assert sums_SDHW is not None
    sums_SDHW /= counted_DHW
    return sums_SDHW
