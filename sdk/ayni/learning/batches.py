"""Which images a step sees and how they are varied: pure functions of seeds and the step, so a run can be cut anywhere.

N = all images, B = images of a batch, C = channels, H x W = pixels (D x H x W of volumes).
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
        axes = tuple(range(pixels_NHWC.ndim - 1))
        mean_C = pixels_NHWC.mean(axis=axes, dtype=np.float64) / 255
        std_C = pixels_NHWC.std(axis=axes, dtype=np.float64) / 255
        return cls(tuple(round(float(v), 4) for v in mean_C), tuple(max(round(float(v), 4), 1e-3) for v in std_C))

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        """Float32 images from 8-bit ones."""
        shape = (1, -1, *(1,) * (pixels_BCHW.ndim - 2))
        scaled_BCHW = pixels_BCHW.to(torch.float32) / 255
        return (scaled_BCHW - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


def as_tensor(pixels_NHWC: npt.NDArray[np.uint8]) -> Tensor:
    """8-bit [N, C, H, W] (or [N, C, D, H, W]), copied so that the strides are those of this order.

    A view of grey images counts as contiguous with a channel's stride of 1, which torch takes for channels-last: its
    backward pass then wrote beyond its memory (torch 2.13, training without augmentation).
    """
    return torch.from_numpy(np.moveaxis(pixels_NHWC, -1, 1).copy(order="C"))


def variation(num_images: int, num_axes: int, *, mirror: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """How each of B images is turned, scaled and shifted [B, A, A + 1] (A axes, the last one first, as `affine_grid`
    has it), and its contrast and brightness [B] varied: what differs between two takes of a patient. A volume is
    turned in the plane of its slices. `mirror`: left and right, top and bottom too."""
    generator = torch.Generator().manual_seed(seed)

    def draw(limit: float) -> Tensor:
        return (torch.rand(num_images, generator=generator) * 2 - 1) * limit

    angle_B, scale_B = draw(math.radians(MAX_TURN_DEGREES)), 1 + draw(MAX_SCALE)
    cos_B, sin_B = torch.cos(angle_B) * scale_B, torch.sin(angle_B) * scale_B
    shift_x_B, shift_y_B = draw(2 * MAX_SHIFT), draw(2 * MAX_SHIFT)  # the image is 2 units wide
    rows_BA1 = torch.stack([cos_B, -sin_B, shift_x_B, sin_B, cos_B, shift_y_B], dim=1).view(num_images, 2, 3)
    contrast_B, brightness_B = 1 + draw(MAX_GAIN), draw(MAX_GAIN)
    if mirror:
        rows_BA1 = rows_BA1 * torch.stack([draw(1).sign(), draw(1).sign()], dim=1)[:, :, None]
    if num_axes == 3:
        within_slice_B34 = functional.pad(rows_BA1[:, :, :2], (0, 1))
        shifts_B31 = torch.stack([shift_x_B, shift_y_B, draw(2 * MAX_SHIFT)], dim=1)[:, :, None]
        across_B14 = functional.pad(scale_B[:, None, None], (2, 0))
        rows_BA1 = torch.cat([torch.cat([within_slice_B34, across_B14], dim=1), shifts_B31], dim=2)
    return rows_BA1, contrast_B, brightness_B


def moved(maps_BCHW: Tensor, rows_BA1: Tensor) -> Tensor:
    """Images or maps as `variation` says; edges are continued outwards."""
    grid = functional.affine_grid(rows_BA1, list(maps_BCHW.shape), align_corners=False)
    return functional.grid_sample(maps_BCHW, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the patch of each of B volumes begins [B, 3], and its size: what a network sees at once."""

    starts_B3: Tensor
    size: tuple[int, ...]

    def __call__(self, maps_BCDHW: Tensor) -> Tensor:
        depth, height, width = self.size
        return torch.stack(
            [
                one_CDHW[:, z : z + depth, y : y + height, x : x + width]
                for one_CDHW, (z, y, x) in zip(maps_BCDHW, self.starts_B3.tolist(), strict=True)
            ]
        )


def random_cut(num_images: int, whole: tuple[int, ...], size: tuple[int, ...], *, seed: int) -> Cut:
    """Patches anywhere within volumes of the size `whole`."""
    generator = torch.Generator().manual_seed(seed)
    room_3 = torch.tensor([side - part for side, part in zip(whole, size, strict=True)])
    shares_B3 = torch.rand(num_images, 3, generator=generator)
    return Cut((shares_B3 * (room_3 + 1)).long().clamp(max=room_3), size)


@dataclass(frozen=True, slots=True)
class Batch:
    """Normalised, varied images [B, C, H, W] (or volumes, or patches of them) and their positions [B] in the set."""

    x_BCHW: Tensor
    chosen_B: Tensor
    rows_BA1: Tensor | None = None
    cut: Cut | None = None

    def of(self, all_N: Tensor) -> Tensor:
        """What belongs to these images of a tensor about all; maps [N, S, H, W] are moved and cut as the images
        were."""
        some_B = all_N[self.chosen_B]
        if some_B.ndim < 4:
            return some_B
        maps_BSHW = some_B.float() if self.rows_BA1 is None else moved(some_B.float(), self.rows_BA1)
        return maps_BSHW if self.cut is None else self.cut(maps_BSHW)

    def where(self, is_in_B: Tensor) -> Batch:
        """Those images of it for which `is_in_B` is true."""
        rows_BA1 = None if self.rows_BA1 is None else self.rows_BA1[is_in_B]
        cut = None if self.cut is None else Cut(self.cut.starts_B3[is_in_B], self.cut.size)
        return Batch(self.x_BCHW[is_in_B], self.chosen_B[is_in_B], rows_BA1, cut)


class Batches:
    """A set of images as batches by the number of the step; each is varied anew if the task says so. `patch`: so much
    of each volume, at a place drawn anew."""

    def __init__(
        self,
        pixels_NCHW: Tensor,
        normalise: Normaliser,
        training: TrainingSettings,
        *,
        seed: int,
        patch: tuple[int, ...] | None = None,
    ) -> None:
        self.pixels_NCHW, self.normalise, self.training, self.seed = pixels_NCHW, normalise, training, seed
        self.patch = patch

    def at(self, number: int) -> Batch:
        order_B = batch_indices(len(self.pixels_NCHW), self.training.batch_size, number, seed=self.seed)
        chosen_B = torch.from_numpy(order_B)
        x_BCHW = self.normalise(self.pixels_NCHW[chosen_B])
        rows_BA1 = None
        if self.training.augment:
            rows_BA1, contrast_B, brightness_B = variation(
                len(chosen_B),
                x_BCHW.ndim - 2,
                mirror=self.training.mirror,
                seed=seed_of(self.seed, "augment", number),
            )
            per_image = (-1, *(1,) * (x_BCHW.ndim - 1))
            x_BCHW = moved(x_BCHW, rows_BA1) * contrast_B.view(per_image) + brightness_B.view(per_image)
        cut = None
        if self.patch:
            seed = seed_of(self.seed, "patch", number)
            cut = random_cut(len(chosen_B), tuple(x_BCHW.shape[2:]), self.patch, seed=seed)
            x_BCHW = cut(x_BCHW)
        return Batch(x_BCHW, chosen_B, rows_BA1, cut)
