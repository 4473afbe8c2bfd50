"""What a network's answers say about themselves, without labels: the terms that a routing is adapted by.

B = images, C = classes, S = structures, X = pixels or voxels (H x W, or D x H x W). Logits are [B, C] of classes
(softmax) or [B, S, ...] of structures per pixel (each a Bernoulli variable by itself). Every term is a mean over images
of something of the order of one: no term depends on the batch, and none is numerically nothing beside the others.
Consistency and shape are those of IOP-FL (arXiv 2204.08467), entropy as in its release.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

WEIGHTS: dict[str, dict[str, float]] = {
    "classification": {"entropy": 1.0, "consistency": 1.0},
    "segmentation": {"entropy": 1.0, "consistency": 1.0, "compactness": 0.1},
}
LEAST_AREA_SHARE = 1e-3  # of an image: below it, compactness measures noise


def entropy(logits: Tensor) -> Tensor:
    """How unsure the answers are, 0 (sure) to 1 (all alike): the mean over images, pixels and structures; scalar.

    >>> import torch
    >>> entropy(torch.zeros(2, 3)).item(), entropy(torch.zeros(2, 1, 4, 4)).item()
    (1.0, 1.0)
    """
    if logits.ndim == 2:
        log_BC = functional.log_softmax(logits, dim=1)
        return -(log_BC.exp() * log_BC).sum(dim=1).mean() / math.log(logits.shape[1])
    return (functional.softplus(logits) - logits * torch.sigmoid(logits)).mean() / math.log(2)


def consistency(logits: Tensor, others: Tensor) -> Tensor:
    """How far the answers to two views of the same images lie apart: the mean of both KL divergences, in nats per image
    or per pixel and structure; scalar. `others` are mapped back (`View.back`), so that pixels stand for each other.

    >>> import torch
    >>> there, here = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> round(consistency(there, here).item(), 4)  # (.8808 - .5) * 2 / 2
    0.3808
    """
    if logits.shape != others.shape:
        raise ValueError(f"two views need logits of one shape: {list(logits.shape)}, {list(others.shape)}")
    # KL(p||q) + KL(q||p) = sum over outcomes of (p - q) * (log p - log q); constants in the logits cancel
    if logits.ndim == 2:
        apart_BC = torch.softmax(logits, dim=1) - torch.softmax(others, dim=1)
        return (apart_BC * (logits - others)).sum(dim=1).mean() / 2
    return ((torch.sigmoid(logits) - torch.sigmoid(others)) * (logits - others)).mean() / 2


def compactness(logits: Tensor) -> Tensor:
    """Outline over area of what is found, in 1/pixel; scalar. One smooth region has less of it than rags and holes.

    The outline is the morphological gradient (largest minus smallest in 3 x 3) of the foreground's probability, summed
    over the image; it is divided by the probability's own sum. Per image and structure, then the mean.

    >>> import torch
    >>> logits = torch.full((1, 1, 8, 8), -99.0)
    >>> logits[:, :, 2:6, 2:6] = 99.0  # 16 pixels, outlined by 6 * 6 - 2 * 2
    >>> compactness(logits).item()
    2.0
    """
    if logits.ndim not in (4, 5):
        raise ValueError(f"compactness is of maps [B, S, H, W] or [B, S, D, H, W], not of {list(logits.shape)}")
    pool = functional.max_pool2d if logits.ndim == 4 else functional.max_pool3d
    inside = torch.sigmoid(logits)
    outline = pool(inside, 3, 1, 1) + pool(-inside, 3, 1, 1)
    places = tuple(range(2, logits.ndim))
    least_area = LEAST_AREA_SHARE * logits[0, 0].numel()
    return (outline.sum(dim=places) / inside.sum(dim=places).clamp_min(least_area)).mean()


def terms_of(logits: Tensor, others: Tensor) -> dict[str, Tensor]:
    """All terms that these answers have, by name; `others` are the second view's, mapped back."""
    terms = {"entropy": entropy(logits), "consistency": consistency(logits, others)}
    return terms if logits.ndim == 2 else terms | {"compactness": compactness(logits)}


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum. Raises ValueError unless there is one weight for each term: none is left out by mistake."""
    if set(terms) != set(weights):
        raise ValueError(f"terms {sorted(terms)}, but weights of {sorted(weights)}")
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
