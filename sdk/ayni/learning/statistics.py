"""What a network sees of images, in few numbers: means and mean squares of three places, per channel.

The places are the network's input (normalised images), its first convolution's output (before any normalisation), and
the features that its head sees. Scanners, protocols and patients shift these; `ayni` compares a worklist with the sites
that an expert comes from. B, N = images, F = the channels of the three places one behind the other, K = an image's
channels; images are [B, K, H, W], or [B, K, D, H, W] of volumes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ayni.data.volumes import place_in
from ayni.learning.batches import Normaliser
from ayni.learning.networks import Network
from ayni.tensors.expert import MIN_CASES as MIN_CASES

STATISTICS_BATCH = 64  # images; volumes go one by one


def first_convolution(network: nn.Module) -> nn.Module:
    """Of our networks it is the one that takes the images themselves."""
    kinds = (nn.Conv2d, nn.Conv3d)
    return next(module for module in network.modules() if isinstance(module, kinds))


def answer_and_statistics(network: Network, x_BKHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and statistics [B, 2, F] (see `statistics_of`), from one pass.

    Plain module calls, no hooks: torch.export, make_fx and functional_call see through it. The first convolution stands
    twice in an exported graph, with the same inputs, until the runtime merges the two.
    """
    features = network.features(x_BKHW)
    places = (x_BKHW, first_convolution(network)(x_BKHW), features)
    logits: Tensor = network.head(features)
    return logits, torch.cat([_moments(place) for place in places], dim=2)


def statistics_of(network: Network, x_BKHW: Tensor) -> Tensor:
    """[B, 2, F] of normalised images: for each one and each channel the mean over its pixels, and the mean of squares.

    A classifier's features have one "pixel" each, their mean over the feature map.
    """
    return answer_and_statistics(network, x_BKHW)[1]


def _moments(place: Tensor) -> Tensor:
    """[B, 2, channels] of [B, channels, ...]. Of a volume the means of its rows first: ONNX Runtime adds 100,000 voxels
    up one by one, and loses digits."""
    squares = place * place
    if place.ndim == 5:
        place, squares = place.mean(dim=4), squares.mean(dim=4)
    flat = (*place.shape[:2], -1)
    return torch.stack([place.reshape(flat).mean(dim=2), squares.reshape(flat).mean(dim=2)], dim=1)


def gathered(statistics_N2F: Tensor) -> Tensor:
    """[2, F]: mean and variance of each channel over all images and their pixels, from each image's `statistics_of`.

    Images of one size count equally, so the order and the grouping of the images change nothing but rounding.
    """
    mean_F, squares_F = statistics_N2F.double().mean(dim=0)
    variance_F = (squares_F - mean_F * mean_F).clamp_min(0)
    return torch.stack([mean_F, variance_F]).float()


def training_statistics(network: Network, pixels_NKHW: Tensor, normalise: Normaliser) -> Tensor | None:
    """[2, F] of a site's 8-bit training images, none of them varied; None if there are fewer than `MIN_CASES`.

    Of a volume that the network does not see at once it is the part in the middle, as of a clinic's (`ayni adapt`).
    """
    if len(pixels_NKHW) < MIN_CASES:
        return None
    num_at_once = STATISTICS_BATCH
    if pixels_NKHW.ndim == 5:
        num_at_once = 1
        depth, height, width = place_in(network.seen, tuple(pixels_NKHW.shape[2:]))
        pixels_NKHW = pixels_NKHW[:, :, depth, height, width]
    with torch.no_grad():
        parts = [statistics_of(network, normalise(part)) for part in torch.split(pixels_NKHW, num_at_once)]
    return gathered(torch.cat(parts))
