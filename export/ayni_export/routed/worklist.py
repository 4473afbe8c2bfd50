"""A worklist as adaptation needs it: one file in memory at a time, and of each image only what the model sees.

F = channels of the statistics, h x w = pixels as the model sees them, K = channels, N = images. Of volumes h x w is
d x h x w: of one that the network does not see at once, the part in the middle stands for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ayni.data.images import prepare, read_image
from ayni.data.volumes import as_seen, at_least, padded, place_in, read_volume
from ayni.errors import AyniError
from ayni.tensors.safe import Floats
from ayni_export.bundle import BundleInfo
from ayni_export.patience import Watch
from ayni_export.routed.refine import Pixels

MAX_SEEN_BYTES = 8 << 20  # of pixels that are kept: 512 grey images of 128 x 128
MAX_SEEN_IMAGES = 64
Look = Callable[[Pixels], Floats]  # an image -> each channel's mean and mean square over its pixels, [2, F]


@dataclass(frozen=True, slots=True)
class Worklist:
    """`seen`: 8-bit images [h, w, K], all of a short worklist and evenly spread ones of a long one. `num_in_part`: of
    the readable ones those of which only the part in the middle was looked at."""

    seen: Sequence[Pixels]
    num_images: int
    num_unreadable: int = 0
    num_in_part: int = 0


def read_worklist(
    info: BundleInfo, images: Sequence[Path], *, resize: bool, allow_burned_in: bool, watch: Watch | None = None
) -> Worklist:
    """Files that cannot be read are counted and left out: whoever answers the images says why of each."""
    in_part: list[Path] = []

    def readable() -> Iterator[Pixels]:
        for number, path in enumerate(images, start=1):
            if watch is not None:
                watch("reading the worklist", number, len(images))
            try:
                if info.image.depth:
                    seen_dhwK, is_part = middle_of_volume(info, path, allow_burned_in=allow_burned_in)
                    in_part.extend([path] if is_part else [])
                    yield seen_dhwK
                else:
                    pixels_HWK = read_image(path, allow_burned_in=allow_burned_in)
                    yield prepare(pixels_HWK, info.image, resize=resize or info.image.resize, name=str(path), remedy="")
            except AyniError:
                continue

    seen, num_images = evenly_spread(readable())
    return Worklist(seen, num_images, len(images) - num_images, len(in_part))


def middle_of_volume(info: BundleInfo, path: Path, *, allow_burned_in: bool) -> tuple[Pixels, bool]:
    """What the network sees at once in the middle of a volume, [d, h, w, K], and whether the volume is larger.

    Raises AyniError as a diagnosis does.
    """
    voxels_DHW = as_seen(read_volume(path, allow_burned_in=allow_burned_in), info.image, str(path))
    if info.task_kind == "segmentation":
        whole_DHW, _ = at_least(voxels_DHW, info.image.size)
    else:
        whole_DHW = padded(voxels_DHW, info.image, str(path))
    middle_dhw = whole_DHW[place_in(info.image.seen, whole_DHW.shape)]
    copy_dhwK = np.repeat(middle_dhw[..., np.newaxis], info.image.channels, axis=3)  # of its own: the volume can go
    return copy_dhwK, middle_dhw.shape != whole_DHW.shape


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
