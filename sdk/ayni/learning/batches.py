"""Which images a step sees and how they are varied: pure functions of seeds and the step, so a run can be cut anywhere.

N = all images, B = images of a batch, C = channels, H x W = pixels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ayni.task import TrainingSettings

MAX_TURN_DEGREES, MAX_SCALE, MAX_SHIFT, MAX_GAIN = 8.0, 0.08, 0.06, 0.15


def seed_of(*parts: object) -> int:
    """One 63-bit seed from any texts and numbers; the same parts give the same seed on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def batch_indices(num_images: int, batch_size: int, step: int, *, seed: int) -> npt.NDArray[np.int64]:
    """The images [B] of step 0, 1, ...: every image once per pass, each pass in its own order.

    A batch may span two passes; it is as large as asked even if the site has fewer images than that.
    """
    positions_B = np.arange(step * batch_size, (step + 1) * batch_size)
    passes_B = positions_B // num_images
    parts = [
        np.random.default_rng(seed_of(seed, one_pass)).permutation(num_images)[
            positions_B[passes_B == one_pass] % num_images
        ]
        for one_pass in range(int(passes_B[0]), int(passes_B[-1]) + 1)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Per channel, of pixels scaled to 0..1. The exported model does the same arithmetic."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, pixels_NHWC: npt.NDArray[np.uint8]) -> Normaliser:
        """The statistics of these images, rounded so that a few bits of another machine change nothing."""
        mean_C = pixels_NHWC.mean(axis=(0, 1, 2), dtype=np.float64) / 255
        std_C = pixels_NHWC.std(axis=(0, 1, 2), dtype=np.float64) / 255
        return cls(tuple(round(float(v), 4) for v in mean_C), tuple(max(round(float(v), 4), 1e-3) for v in std_C))

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """Float32 images from 8-bit ones."""
        shape = (1, -1, 1, 1)
        scaled_BCHW = pixels_BCHW.to(torch.float32) / 255
        return (scaled_BCHW - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


def as_tensor(pixels_NHWC: npt.NDArray[np.uint8]) -> Tensor:
    """8-bit [N, C, H, W], copied so that the strides are those of this order.

    A view of grey images counts as contiguous with a channel's stride of 1, which torch takes for channels-last: its
    backward pass then wrote beyond its memory (torch 2.13, training without augmentation).
    """
    return torch.from_numpy(np.moveaxis(pixels_NHWC, 3, 1).copy(order="C"))


def variation(num_images: int, *, mirror: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """How each of B images is turned, scaled and shifted [B, 2, 3], and its contrast and brightness [B] varied: what
    differs between two takes of a patient. `mirror`: left and right, top and bottom too."""
    generator = torch.Generator().manual_seed(seed)

    def draw(limit: float) -> Tensor:
        return (torch.rand(num_images, generator=generator) * 2 - 1) * limit

    angle_B, scale_B = draw(math.radians(MAX_TURN_DEGREES)), 1 + draw(MAX_SCALE)
    cos_B, sin_B = torch.cos(angle_B) * scale_B, torch.sin(angle_B) * scale_B
    shift_x_B, shift_y_B = draw(2 * MAX_SHIFT), draw(2 * MAX_SHIFT)  # the image is 2 units wide
    rows_B23 = torch.stack([cos_B, -sin_B, shift_x_B, sin_B, cos_B, shift_y_B], dim=1).view(num_images, 2, 3)
    contrast_B, brightness_B = 1 + draw(MAX_GAIN), draw(MAX_GAIN)
    if mirror:
        rows_B23 = rows_B23 * torch.stack([draw(1).sign(), draw(1).sign()], dim=1)[:, :, None]
    return rows_B23, contrast_B, brightness_B


def moved(maps_BCHW: Tensor, rows_B23: Tensor) -> Tensor:
    """Images or maps as `variation` says; edges are continued outwards."""
    grid = functional.affine_grid(rows_B23, list(maps_BCHW.shape), align_corners=False)
    return functional.grid_sample(maps_BCHW, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """Normalised, varied images [B, C, H, W] and their positions [B] in the set."""

    x_BCHW: Tensor
    chosen_B: Tensor
    rows_B23: Tensor | None = None

    def of(self, all_N: Tensor) -> Tensor:
        """What belongs to these images of a tensor about all; maps [N, S, H, W] are moved as the images were."""
        some_B = all_N[self.chosen_B]
        if some_B.ndim != 4:
            return some_B
        return some_B.float() if self.rows_B23 is None else moved(some_B.float(), self.rows_B23)


class Batches:
    """A set of images as batches by the number of the step; each is varied anew if the task says so."""

    def __init__(self, pixels_NCHW: Tensor, normalise: Normaliser, training: TrainingSettings, *, seed: int) -> None:
        self.pixels_NCHW, self.normalise, self.training, self.seed = pixels_NCHW, normalise, training, seed

    def at(self, number: int) -> Batch:
        order_B = batch_indices(len(self.pixels_NCHW), self.training.batch_size, number, seed=self.seed)
        chosen_B = torch.from_numpy(order_B)
        x_BCHW = self.normalise(self.pixels_NCHW[chosen_B])
        if not self.training.augment:
            return Batch(x_BCHW, chosen_B)
        rows_B23, contrast_B, brightness_B = variation(
            len(chosen_B), mirror=self.training.mirror, seed=seed_of(self.seed, "augment", number)
        )
        varied_BCHW = moved(x_BCHW, rows_B23) * contrast_B.view(-1, 1, 1, 1) + brightness_B.view(-1, 1, 1, 1)
        return Batch(varied_BCHW, chosen_B, rows_B23)
