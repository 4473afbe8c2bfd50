"""Occlusion sensitivity (Zeiler and Fergus, ECCV 2014): how far the answer falls when a part of the image is hidden.

The model is only asked, so whatever network it holds will do. As torch has it: monai.visualize.OcclusionSensitivity.
B = images, H x W = pixels (D x H x W = voxels of a volume), K = channels, C = classes, P = patches.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

POSITIONS = {2: 8, 3: 4}  # along each side of an image or of a volume, whatever its size
PATCH_SHARES = {2: 0.25, 3: 0.4}  # of each side: a patch is a quarter of it, or larger, as there are fewer
MAX_HIDDEN_VOXELS = 1 << 15  # a volume of 32 x 32 x 32 takes some seconds; no larger one is asked about so often
MAX_BATCH_IMAGES = 16
MAX_BATCH_PIXELS = 1 << 16  # large images go one by one: diagnosis stays under 150 MB

Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Ask = Callable[[Pixels], Floats]  # images [B, H, W, K] to logits [B, C]


def occlusion(ask: Ask, pixels_HWK: Pixels, predicted: int, *, temperature: float) -> tuple[Floats, float]:
    """How far the log-odds of the class `predicted` fall, in nats, when a patch of the image's mean grey hides a place.

    Returns [H, W] or [D, H, W], for each pixel the mean over the patches that hide it (a patch counts most at its
    middle), 0 where the odds rise; and the probability of the class with the one patch hidden that lowers it most.
    """
    whole = float(log_odds(ask(pixels_HWK[np.newaxis]), predicted, temperature)[0])
    sides = pixels_HWK.shape[:-1]
    patches = patches_of(*sides)
    odds_P = np.concatenate(
        [log_odds(ask(hidden_BHWK), predicted, temperature) for hidden_BHWK in _hidden(pixels_HWK, patches)]
    )
    sums_HW, weights_HW = np.zeros(sides), np.zeros(sides)
    for patch, fall in zip(patches, (whole - odds_P).tolist(), strict=True):
        # flat weights would draw stripes where patches end
        weights = functools.reduce(np.multiply.outer, [_tent(span) for span in patch])
        sums_HW[patch] += fall * weights
        weights_HW[patch] += weights
    falls_HW = np.maximum(sums_HW / weights_HW, 0).astype(np.float32)
    return falls_HW, float(np.exp(-np.logaddexp(0, -odds_P.min())))


def patches_of(*sides: int) -> list[tuple[slice, ...]]:
    """Evenly spaced, all of them inside the image or volume; together they hide every pixel."""
    positions, share = POSITIONS[len(sides)], PATCH_SHARES[len(sides)]
    return list(itertools.product(*(_spans(side, positions, share) for side in sides)))


def log_odds(logits_BC: Floats, predicted: int, temperature: float) -> Floats:
    """[B]: the logit of the calibrated probability. It goes on where a probability sticks at 1.

    >>> log_odds(np.array([[2.0, 0.0, 0.0]], np.float32), 0, 2.0).round(3) == np.float32(1 - np.log(2)).round(3)
    array([ True])
    """
    scaled_BC = logits_BC.astype(np.float64) / temperature
    others_BC = np.delete(scaled_BC, predicted, axis=1)
    return np.asarray(scaled_BC[:, predicted] - np.logaddexp.reduce(others_BC, axis=1), np.float32)


def _spans(length: int, num_positions: int, share: float) -> list[slice]:
    size = max(1, round(length * share))
    starts = sorted({round(start) for start in np.linspace(0, length - size, num_positions).tolist()})
    return [slice(start, start + size) for start in starts]


def _tent(span: slice) -> Floats:
    """1, 2, 3, ... and down again.

    >>> _tent(slice(10, 15)).tolist()
    [1.0, 2.0, 3.0, 2.0, 1.0]
    """
    steps = np.arange(1, span.stop - span.start + 1, dtype=np.float32)
    return np.minimum(steps, steps[::-1])


def _hidden(pixels_HWK: Pixels, patches: list[tuple[slice, ...]]) -> Iterator[Pixels]:
    """Batches of copies, in each of them one patch filled."""
    sides = pixels_HWK.shape[:-1]
    mean_K = np.rint(pixels_HWK.mean(axis=tuple(range(len(sides))))).astype(np.uint8)
    num_images = max(1, min(MAX_BATCH_IMAGES, MAX_BATCH_PIXELS // math.prod(sides)))
    for first in range(0, len(patches), num_images):
        some = patches[first : first + num_images]
        hidden_BHWK = np.repeat(pixels_HWK[np.newaxis], len(some), axis=0)
        for image_HWK, patch in zip(hidden_BHWK, some, strict=True):
            image_HWK[patch] = mean_K
        yield hidden_BHWK
