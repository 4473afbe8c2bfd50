"""Newer relatives that merge weights by forward passes alone, after their papers' descriptions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ayni_coordinator.simulation.unseen.site import UnseenSite
from ayni_export.routed.losses import entropy

SHARPNESS = 0.1  # of the normalised entropy, 0 to 1: an expert that much less sure gets 1/e of the weight
GAMMA = 0.5  # T3's scale of the divergence


def entropy_merge(site: UnseenSite) -> Tensor:
    """The surer an expert is of a worklist, the more of its weights are merged (after arXiv 2602.21372, whose merging
    coefficients for encoder and head are apart; here both have one)."""
    parts = []
    for worklist in site.worklists():
        pixels_BKHW = site.pixels_NKHW[worklist]
        unsure_E = torch.stack([entropy(site.logits(site.one(e), pixels_BKHW)) for e in range(site.num_experts)])
        routing_LE = site.shared(torch.softmax(-unsure_E / SHARPNESS, dim=0))
        parts.append(site.logits(site.weights(routing_LE), pixels_BKHW))
    return torch.cat(parts)


def js_interpolation(site: UnseenSite) -> Tensor:
    """T3 (arXiv 2510.27265): for each image, between the global model and the sites' mean; the more their answers
    diverge (Jensen-Shannon), the more of the global model: sigmoid(GAMMA * divergence)."""
    num_sites, parts = site.num_experts - 1, []
    general = site.logits(site.one(0), site.pixels_NKHW)
    special = site.logits(site.soup(first=1), site.pixels_NKHW)
    for number, share in enumerate(torch.sigmoid(GAMMA * jensen_shannon(general, special)).tolist()):
        row = [share, *[(1 - share) / num_sites] * num_sites]
        parts.append(site.logits(site.weights(site.shared(row)), site.pixels_NKHW[number : number + 1]))
    return torch.cat(parts)


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """[N], nats: of two answers' probabilities; of maps the mean over pixels and structures."""
    if one.ndim == 2:
        p, q = torch.softmax(one, dim=1), torch.softmax(other, dim=1)
    else:
        p, q = (torch.stack([torch.sigmoid(x), torch.sigmoid(-x)], dim=1) for x in (one, other))
    middle = ((p + q) / 2).clamp_min(1e-12).log()
    both = functional.kl_div(middle, p, reduction="none") + functional.kl_div(middle, q, reduction="none")
    return both.sum(dim=1).reshape(len(one), -1).mean(dim=1) / 2
