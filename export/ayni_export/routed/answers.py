"""What a small network answers to pixels when its weights are arguments: all three graphs are made of this.

B = images, K = channels, H x W = pixels (D x H x W = voxels of volumes), C = classes, F = channels of the statistics. A
site normalises by its own pixels' mean and deviation, which its network has learned with: so these are tensors like
any other, and a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ayni.learning.networks import Network
from ayni.learning.statistics import answer_and_statistics

MEAN, STD = "normalise.mean", "normalise.std"  # [K], of pixels scaled to 0..1


def with_normalisation(
    weights: Mapping[str, Tensor], pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> dict[str, Tensor]:
    """An expert's whole state: its normalisation, then its network's weights."""
    return {MEAN: torch.tensor(pixel_mean), STD: torch.tensor(pixel_std), **weights}


class Answering(nn.Module):
    """Its network's logits and statistics, with weights given by name; the network's own never count."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BKHW: Tensor) -> tuple[Tensor, Tensor]:
        return answer_and_statistics(self.network, images_BKHW)


def answering(network: Network) -> Answering:
    """A copy that a graph can be made of: nothing is dropped out, and nothing is changed in place."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]
    return Answering(network)


def normalised(pixels_BKHW: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """`pixels_BKHW`: uint8. Float images as the network has learned from."""
    per_channel = (-1, *(1,) * (pixels_BKHW.ndim - 2))
    mean_K11, std_K11 = (weights[name].reshape(per_channel) for name in (MEAN, STD))
    return (pixels_BKHW.to(mean_K11.dtype) / 255 - mean_K11) / std_K11


def answers(asked: Answering, weights: Mapping[str, Tensor], images_BKHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and statistics [B, 2, F] (`ayni.learning.statistics`), of normalised images."""
    own = {f"network.{name}": tensor for name, tensor in weights.items() if name not in (MEAN, STD)}
    logits: Tensor
    logits, statistics_B2F = torch.func.functional_call(asked, own, (images_BKHW,))
    return logits, statistics_B2F


def probabilities_of(logits: Tensor, temperature: float) -> Tensor:
    """Of each class, or of each structure at each pixel by itself."""
    scaled = logits / temperature
    return torch.softmax(scaled, dim=1) if logits.ndim == 2 else torch.sigmoid(scaled)
