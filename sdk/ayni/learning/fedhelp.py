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
    settings: FedHelpSettings,
    objective: Objective = CLASSIFICATION,
) -> Tensor:
    """Public images: `public_head` learns what the foundation model answered, the diagnosis head the consensus.

    Without guidance or without consensus that term is absent; without both there is no public step to take.
    """
    features = network.features(x_BCHW)
    loss = features.new_zeros(())
    if guidance is not None and public_head is not None:
        taught = objective.distil(public_head(features), guidance, temperature=settings.temperature)
        loss = loss + settings.guidance_weight * taught
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
