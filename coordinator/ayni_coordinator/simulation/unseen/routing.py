"""Ours: a routing over the experts for each worklist, by the product's own functions (ayni_export.routed).

E = experts (0 is the global model), L = layers, h x w = pixels, K = channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ayni.tensors.safe import Floats
from ayni_coordinator.simulation.unseen.site import LONG_WORKLIST, WORKLIST, Participant, UnseenSite
from ayni_export.routed import start
from ayni_export.routed.adapt import Ask, Comparison, Setting, choose
from ayni_export.routed.gradient import loss_of
from ayni_export.routed.losses import WEIGHTS
from ayni_export.routed.mixed_answers import gradient_of_mixed_answers
from ayni_export.routed.refine import Gradient, Pixels
from ayni_export.routed.views import view

LOSS_STEPS, LOSS_RATE, LOSS_EPSILON = 10, 0.1, 1e-3
POWERS, TRUSTS = (1.0, 2.0, 4.0), (0.03, 0.1, 0.3)


def routed(site: UnseenSite) -> Tensor:
    """As `ayni diagnose`: from the statistics, with the guard."""
    return _chosen(site, None)


def routed_refined(site: UnseenSite) -> Tensor:
    """As `ayni diagnose --refine`: gradient steps from there."""
    return _chosen(site, _gradient(site))


def routed_refined_long(site: UnseenSite) -> Tensor:
    """The same where a clinic brings many images at once: the last steps then go layer by layer."""
    return _chosen(site, _gradient(site), LONG_WORKLIST)


def routed_refined_answers(site: UnseenSite) -> Tensor:
    """As `ayni diagnose --refine` on a bundle without a gradient graph: forward passes alone."""
    experts = [site.one(number) for number in range(site.num_experts)]

    def ask(image_hwK: Pixels, number: int) -> Floats:
        logits: Floats = site.logits(experts[number], _planes(image_hwK))[0].numpy()
        return logits if logits.ndim == 1 else logits.reshape(len(logits), -1)

    return _chosen(site, gradient_of_mixed_answers(ask, site.num_experts))


def _chosen(site: UnseenSite, gradient: Gradient | None, length: int = WORKLIST) -> Tensor:
    dense = site.task.kind == "segmentation"
    setting = Setting(site.task.classes, dense, say=site.say)
    there = [None, *(None if p.statistics_2F is None else p.statistics_2F.numpy() for p in site.participants)]

    def ask_with(routing_LE: Floats) -> Ask:
        weights = site.weights(torch.from_numpy(routing_LE))

        def ask(image_hwK: Pixels) -> Floats:
            probabilities: Floats = site.probabilities(site.logits(weights, _planes(image_hwK)))[0]
            return probabilities

        return ask

    parts = []
    for worklist in site.worklists(length):
        pixels_BKHW = site.pixels_NKHW[worklist]
        here_2F = site.looks(pixels_BKHW).numpy()
        comparison = Comparison([None if each is None else here_2F for each in there], there, site.places)
        seen = list(np.ascontiguousarray(pixels_BKHW.permute(0, 2, 3, 1).numpy()))
        choice = choose(seen, comparison, len(site.layers), ask_with, setting, gradient)
        parts.append(site.logits(site.weights(torch.from_numpy(choice.routing_LE)), pixels_BKHW))
    return torch.cat(parts)


def _planes(image_hwK: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image_hwK.transpose(2, 0, 1)))[None]


def _gradient(site: UnseenSite) -> Gradient:
    def gradient(image_hwK: Pixels, logits_LE: Floats) -> tuple[float, Floats]:
        logits = torch.from_numpy(logits_LE).requires_grad_(True)
        loss = _loss(site, _planes(image_hwK), logits)
        (slope_LE,) = torch.autograd.grad(loss, logits)
        return float(loss.detach()), slope_LE.numpy()

    return gradient


def _loss(site: UnseenSite, pixels_BKHW: Tensor, logits_LE: Tensor) -> Tensor:
    seen = view(0, mirror=site.task.training.mirror)
    loss, _ = loss_of(
        site.asked, site.stack, seen, pixels_BKHW, logits_LE, torch.tensor(list(WEIGHTS[site.task.kind].values()))
    )
    return loss


def routed_losses(site: UnseenSite) -> Tensor:
    """The published losses alone (IOP-FL, arXiv 2204.08467): every layer's row by gradient, from the uniform soup."""
    parts = []
    for worklist in site.worklists():
        pixels_BKHW = site.pixels_NKHW[worklist]
        logits_LE = torch.zeros(len(site.layers), site.num_experts, requires_grad=True)
        optimiser = torch.optim.Adam([logits_LE], lr=LOSS_RATE, eps=LOSS_EPSILON)
        for _ in range(LOSS_STEPS):
            optimiser.zero_grad()
            _loss(site, pixels_BKHW, logits_LE).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        routing_LE = torch.softmax(logits_LE.detach(), dim=1)
        parts.append(site.logits(site.weights(routing_LE), pixels_BKHW))
    return torch.cat(parts)


def routed_learned(site: UnseenSite) -> Tensor:
    """Power and trust of the start, learned by leaving out each site that trained: the pair that would have served
    their labelled images best, each without its own expert. Only scores would leave the sites."""
    settings = list(itertools.product(POWERS, TRUSTS))
    means = [np.mean([_as_if_unseen(site, k, *each) for k in range(len(site.participants))]) for each in settings]
    power, trust = settings[int(np.argmax(means))]
    parts = []
    for worklist in site.worklists():
        pixels_BKHW = site.pixels_NKHW[worklist]
        weights_E = _start(site.looks(pixels_BKHW), site, site.participants, power, trust)
        parts.append(site.logits(site.weights(site.shared(weights_E)), pixels_BKHW))
    return torch.cat(parts)


def _as_if_unseen(site: UnseenSite, left_out: int, power: float, trust: float) -> float:
    own = site.participants[left_out].own
    others = [None if k == left_out else participant for k, participant in enumerate(site.participants)]
    weights_E = _start(site.looks(own.train_NCHW), site, others, power, trust)
    return site.figures(site.logits(site.weights(site.shared(weights_E)), own.train_NCHW), own.train_truth).main


def _start(
    here_2F: Tensor, site: UnseenSite, others: Sequence[Participant | None], power: float, trust: float
) -> Tensor:
    there = [None, *(None if p is None or p.statistics_2F is None else p.statistics_2F.numpy() for p in others)]
    here = [None if each is None else here_2F.numpy() for each in there]
    return torch.from_numpy(start.start_weights(here, there, site.places, power=power, trust=trust))
