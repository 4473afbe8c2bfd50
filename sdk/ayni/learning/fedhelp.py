"""The losses of one FedHelp step at a clinic and at a hospital (arXiv 2412.19654, section 3). B = images.

The asymmetry: the hospital's large network teaches its small proxy with its full answers; the proxy teaches back the
order of the classes alone. Every teacher is detached. Logits are [B, C], or [B, S, H, W] of a segmentation.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ayni.learning.networks import Network
from ayni.learning.objective import CLASSIFICATION, Objective
from ayni.task import FedHelpSettings


class HospitalLosses(NamedTuple):
    """Scalars; a step minimises their sum, and neither reaches the other's network."""

    proxy: Tensor
    large: Tensor


def clinic_public_loss(
    network: Network,
    public_head: nn.Module | None,
    x_BCHW: Tensor,
    *,
    guidance: Tensor | None,
    consensus: Tensor | None,
    consensus_weight: float,
    truth: Tensor | None = None,
    is_labelled_B: Tensor | None = None,
    settings: FedHelpSettings,
    objective: Objective = CLASSIFICATION,
) -> Tensor:
    """Public images: `public_head` learns what the foundation model answered, and by its last outputs the `truth` of
    those images for which `is_labelled_B`, where it is known; the diagnosis head learns the consensus.

    A term is absent without what it learns from; without all of it there is no public step to take.
    """
    features = network.features(x_BCHW)
    loss = features.new_zeros(())
    if public_head is not None:
        answers = public_head(features)
        num_answers = 0 if guidance is None else guidance.shape[1]
        if guidance is not None:
            taught = objective.distil(answers[:, :num_answers], guidance, temperature=settings.temperature)
            loss = loss + settings.guidance_weight * taught
        if truth is not None and is_labelled_B is not None:
            supervised = objective.supervised(answers[is_labelled_B][:, num_answers:], truth)
            loss = loss + settings.label_weight * supervised
    if consensus is not None:
        taught = objective.distil(network.head(features), consensus, temperature=settings.temperature)
        loss = loss + consensus_weight * taught
    return loss


def hospital_losses(
    proxy_logits: Tensor,
    large_logits: Tensor,
    truth: Tensor,
    settings: FedHelpSettings,
    objective: Objective = CLASSIFICATION,
) -> HospitalLosses:
    """Forward: the proxy's own loss + KL from the large network. Backward: the large's + the proxy's order.

    With `settings.backward` "full-kl" the proxy teaches its full answer back, as it should not (an ablation).
    """
    forward = objective.distil(proxy_logits, large_logits, temperature=settings.temperature)
    if settings.backward == "full-kl":
        backward = objective.distil(large_logits, proxy_logits, temperature=settings.temperature)
    else:
        backward = objective.order(
            large_logits, proxy_logits, top_k=settings.ranking_top_k, margin=settings.ranking_margin
        )
    return HospitalLosses(
        proxy=objective.supervised(proxy_logits, truth) + settings.forward_weight * forward,
        large=objective.supervised(large_logits, truth) + settings.ranking_weight * backward,
    )
