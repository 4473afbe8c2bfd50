"""Ways that change the global model alone: its normalisation, or its weights by a few labels."""

from __future__ import annotations

import copy

import msgspec
import torch
from torch import Tensor, nn

from ayni.learning.batches import Batches, Normaliser
from ayni.learning.learners import adam, descend
from ayni.learning.objective import objective_of
from ayni.learning.scores import answers
from ayni_coordinator.simulation.unseen.site import UnseenSite
from ayni_export.routed.losses import entropy

TENT_STEPS, TENT_RATE = 10, 1e-3
FINE_TUNE_BATCH, FINE_TUNE_RATE = 2, 1e-3


def norm_refresh(site: UnseenSite) -> Tensor:
    """The normalisation's statistics are the worklist's. Group normalisation stores none, so what is refreshed is the
    one place that does: the pixels' mean and deviation. Frozen layers keep ImageNet's."""
    parts = []
    for worklist in site.worklists():
        pixels_BKHW = site.pixels_NKHW[worklist]
        own = Normaliser.of(pixels_BKHW.permute(0, 2, 3, 1).numpy())
        parts.append(answers(site.network, pixels_BKHW, own))
    return torch.cat(parts)


def tent(site: UnseenSite) -> Tensor:
    """TENT (Wang et al. 2021, arXiv 2006.10726): the normalisation's scales and shifts follow the answers' entropy
    down; from the global model again for each worklist. Those of frozen layers too, which keep their statistics."""
    parts = []
    for worklist in site.worklists():
        network = copy.deepcopy(site.network).requires_grad_(False)
        norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm | nn.BatchNorm2d)]
        weights = [weight.requires_grad_(True) for norm in norms for weight in (norm.weight, norm.bias)]
        optimiser = torch.optim.Adam(weights, lr=TENT_RATE)
        x_BCHW = site.normalise(site.pixels_NKHW[worklist])
        for _ in range(TENT_STEPS):
            descend(entropy(network(x_BCHW)), TENT_RATE, optimiser)
        parts.append(answers(network.eval(), site.pixels_NKHW[worklist], site.normalise))
    return torch.cat(parts)


def fine_tune(site: UnseenSite) -> Tensor:
    """One epoch over the few labelled images, from the global model: it asks for what an unseen site seldom has."""
    network, objective = copy.deepcopy(site.network).train(), objective_of(site.task.kind)
    pixels_MCHW = torch.cat([site.few.train_NCHW, site.few.holdout_MCHW])
    truth = torch.cat([site.few.train_truth, site.few.holdout_truth])
    training = msgspec.structs.replace(site.task.training, batch_size=FINE_TUNE_BATCH)
    optimiser = adam(network, training)
    batches = Batches(pixels_MCHW, site.normalise, training, seed=site.task.seed)
    for number in range(max(1, len(pixels_MCHW) // FINE_TUNE_BATCH)):
        batch = batches.at(number)
        descend(objective.supervised(network(batch.x_BCHW), batch.of(truth)), FINE_TUNE_RATE, optimiser)
    return answers(network.eval(), site.pixels_NKHW, site.normalise)
