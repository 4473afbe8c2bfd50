"""A second view of the same images whose answers can be mapped back exactly: what consistency is measured with.

B = images, K = channels, X = pixels or voxels (H x W, or D x H x W).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_SHIFT = 3  # pixels
MAX_BRIGHTER, MAX_CONTRAST = 0.2, 0.2  # in standard deviations of the training images, and as a share


@dataclass(frozen=True, slots=True)
class View:
    """Mirrored along the width or not, shifted by whole pixels (round the edge, so that nothing is lost), and
    `contrast * x + brighter` of the normalised pixels."""

    mirrored: bool
    shift: tuple[int, ...]  # pixels, one per axis
    contrast: float
    brighter: float

    def of(self, images: Tensor) -> Tensor:
        """`images`: normalised, [B, K, H, W] or [B, K, D, H, W]."""
        return self._move(images * self.contrast + self.brighter)

    def _move(self, images: Tensor) -> Tensor:
        images = images.flip(-1) if self.mirrored else images
        return _rolled(images, self.shift)

    def back(self, logits: Tensor) -> Tensor:
        """Answers to this view as answers to the images themselves: maps are moved back, classes stay."""
        if logits.ndim == 2:
            return logits
        logits = _rolled(logits, tuple(-pixels for pixels in self.shift))
        return logits.flip(-1) if self.mirrored else logits


def _rolled(images: Tensor, shift: tuple[int, ...]) -> Tensor:
    """As torch.roll, by two slices an axis: an exported graph of it needs no index of every pixel."""
    for axis, pixels in enumerate(shift, start=2):
        first = -pixels % images.shape[axis]
        if first:
            images = torch.cat(torch.split(images, [first, images.shape[axis] - first], axis)[::-1], axis)
    return images


def view(seed: int, *, num_axes: int = 2, mirror: bool = False) -> View:
    """The same seed gives the same view. `mirror`: whether an image means the same mirrored (`task.training.mirror`);
    then every view is, since it is the strongest difference. No axis stays where it is.

    >>> view(0) == view(0), view(0).mirrored, len(view(1, num_axes=3).shift)
    (True, False, 3)
    """
    random = np.random.default_rng(seed)
    pixels, sides = random.integers(1, MAX_SHIFT + 1, num_axes), random.choice((-1, 1), num_axes)
    side = float(random.choice((-1, 1)))
    return View(
        mirrored=mirror,
        shift=tuple(int(p * s) for p, s in zip(pixels, sides, strict=True)),
        contrast=1 + side * MAX_CONTRAST / 2 * (1 + random.random()),
        brighter=-side * MAX_BRIGHTER / 2 * (1 + random.random()),
    )
