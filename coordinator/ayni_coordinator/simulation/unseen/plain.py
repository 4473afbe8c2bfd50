"""Ways that fit nothing: the global model, experts chosen by labels, the mean of weights, the mean of answers."""

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
    return torch.stack(_of_each(site)).mean(dim=0)


def oracle(site: UnseenSite) -> Tensor:
    """The one expert that does best on these images, by their labels: the best choice of one, luck included."""
    answers = _of_each(site)
    return answers[_best(site, answers, torch.arange(len(site.truth)))]


def oracle_half(site: UnseenSite) -> Tensor:
    """Each half of the images by the expert that does best on the other half, by its labels: what of `oracle` is luck
    falls away. Classes are halved each."""
    answers = _of_each(site)
    order = torch.argsort(site.truth, stable=True) if site.truth.ndim == 1 else torch.arange(len(site.truth))
    logits = torch.empty_like(answers[0])
    for here, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        logits[here] = answers[_best(site, answers, other)][here]
    return logits


def _of_each(site: UnseenSite) -> list[Tensor]:
    return [site.logits(site.one(e), site.pixels_NKHW) for e in range(site.num_experts)]


def _best(site: UnseenSite, answers: list[Tensor], chosen_by: Tensor) -> int:
    """The first of those that do best on these images."""
    figures = [site.figures(logits[chosen_by], site.truth[chosen_by]).main for logits in answers]
    return figures.index(max(figures))
