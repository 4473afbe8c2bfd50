"""A worklist as adaptation needs it: one file in memory at a time, and of each image only what the model sees.

F = channels of the statistics, h x w = pixels as the model sees them, K = channels, N = images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ayni.data.images import prepare, read_image
from ayni.errors import AyniError
from ayni.tensors.safe import Floats
from ayni_export.bundle import BundleInfo
from ayni_export.routed.refine import Pixels

MAX_SEEN_BYTES = 8 << 20  # of pixels that are kept: 512 grey images of 128 x 128
MAX_SEEN_IMAGES = 64
Look = Callable[[Pixels], Floats]  # an image -> each channel's mean and mean square over its pixels, [2, F]


@dataclass(frozen=True, slots=True)
class Worklist:
    """`seen`: 8-bit images [h, w, K], all of a short worklist and evenly spread ones of a long one."""

    seen: Sequence[Pixels]
    num_images: int
    num_unreadable: int = 0


def read_worklist(info: BundleInfo, images: Sequence[Path], *, resize: bool, allow_burned_in: bool) -> Worklist:
    """Files that cannot be read are counted and left out: whoever answers the images says why of each."""
    readable = _readable(info, images, resize=resize, allow_burned_in=allow_burned_in)
    seen, num_images = evenly_spread(readable)
    return Worklist(seen, num_images, len(images) - num_images)


def _readable(info: BundleInfo, images: Sequence[Path], *, resize: bool, allow_burned_in: bool) -> Iterator[Pixels]:
    for path in images:
        try:
            pixels_HWK = read_image(path, allow_burned_in=allow_burned_in)
            yield prepare(pixels_HWK, info.image, resize=resize or info.image.resize, name=str(path), remedy="")
        except AyniError:
            continue


def evenly_spread(images: Iterable[Pixels]) -> tuple[list[Pixels], int]:
    """Every image, every second, fourth, ... so that they fit into memory; and how many there were.

    >>> images = [np.full((1, 1, 1), i, np.uint8) for i in range(100)]
    >>> [int(image[0, 0, 0]) for image in evenly_spread(images)[0]][:4]
    [0, 2, 4, 6]
    """
    seen: list[Pixels] = []
    step, num_images = 1, 0
    for image_hwK in images:
        if num_images % step == 0:
            seen.append(image_hwK)
        num_images += 1
        if len(seen) > max(1, min(MAX_SEEN_IMAGES, MAX_SEEN_BYTES // image_hwK.nbytes)):
            seen, step = seen[::2], 2 * step
    return seen, num_images


def statistics_of(seen: Sequence[Pixels], look: Look) -> Floats:
    """[2, F]: each channel's mean and variance over all images and pixels (as ayni.learning.statistics has it).

    >>> statistics_of([np.zeros((1, 1, 1), np.uint8)] * 2, lambda image: np.array([[2], [5]], np.float32)).tolist()
    [[2.0], [1.0]]
    """
    mean_F, squares_F = np.mean([look(image_hwK).astype(np.float64) for image_hwK in seen], axis=0)
    return np.stack([mean_F, np.maximum(squares_F - mean_F * mean_F, 0)]).astype(np.float32)
