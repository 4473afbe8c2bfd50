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
    """8-bit [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels_NHWC, 3, 1)))


def augment(x_BCHW: Tensor, *, seed: int) -> Tensor:
    """Turn, scale and shift each image a little, and vary its contrast: what differs between two takes of a patient.

    No mirroring: the heart is on the left. Edges are continued outwards.
    """
    generator = torch.Generator().manual_seed(seed)
    num_images = len(x_BCHW)

    def draw(limit: float) -> Tensor:
        return (torch.rand(num_images, generator=generator) * 2 - 1) * limit

    angle_B, scale_B = draw(math.radians(MAX_TURN_DEGREES)), 1 + draw(MAX_SCALE)
    cos_B, sin_B = torch.cos(angle_B) * scale_B, torch.sin(angle_B) * scale_B
    shift_x_B, shift_y_B = draw(2 * MAX_SHIFT), draw(2 * MAX_SHIFT)  # the image is 2 units wide
    rows = torch.stack([cos_B, -sin_B, shift_x_B, sin_B, cos_B, shift_y_B], dim=1)
    grid = functional.affine_grid(rows.view(num_images, 2, 3), list(x_BCHW.shape), align_corners=False)
    moved_BCHW = functional.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)
    return moved_BCHW * (1 + draw(MAX_GAIN)).view(-1, 1, 1, 1) + draw(MAX_GAIN).view(-1, 1, 1, 1)
