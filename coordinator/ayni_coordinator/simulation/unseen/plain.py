"""Ways that fit nothing: the global model, the best expert in hindsight, the mean of weights, the mean of answers."""

from __future__ import annotations

import torch
from torch import Tensor

from ayni_coordinator.simulation.unseen.site import UnseenSite


def global_model(site: UnseenSite) -> Tensor:
    return site.logits(site.one(0), site.pixels_NKHW)


def soup(site: UnseenSite) -> Tensor:
    return site.logits(site.soup(), site.pixels_NKHW)


def ensemble(site: UnseenSite) -> Tensor:
    """The mean of all experts' logits: as many inferences per image as there are experts."""
    return torch.stack([site.logits(site.one(e), site.pixels_NKHW) for e in range(site.num_experts)]).mean(dim=0)


def oracle(site: UnseenSite) -> Tensor:
    """The one expert that does best on these images, by their labels: what a perfect choice of one would give."""
    answers = [site.logits(site.one(e), site.pixels_NKHW) for e in range(site.num_experts)]
    return max(answers, key=lambda logits: site.figures(logits, site.truth).main)
