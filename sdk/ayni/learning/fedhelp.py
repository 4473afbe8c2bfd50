"""The losses of one FedHelp step at a clinic and at a hospital (arXiv 2412.19654, section 3). B = images, C = classes.

The asymmetry: the hospital's large network teaches its small proxy with its full answers; the proxy teaches back the
order of the classes alone. Every teacher is detached.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from ayni.learning.losses import distillation_loss, ranking_loss
from ayni.learning.networks import Network
from ayni.task import FedHelpSettings


class HospitalLosses(NamedTuple):
    """Scalars; a step minimises their sum, and neither reaches the other's network."""

    proxy: Tensor
    large: Tensor


def clinic_private_loss(network: Network, x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy of the diagnosis."""
    return functional.cross_entropy(network(x_BCHW), labels_B)


def clinic_public_loss(
    network: Network,
    public_head: nn.Linear | None,
    x_BCHW: Tensor,
    *,
    guidance_BG: Tensor | None,
    consensus_BC: Tensor | None,
    consensus_weight: float,
    settings: FedHelpSettings,
) -> Tensor:
    """Public images: `public_head` learns the foundation model's G classes, the diagnosis head the consensus.

    Without guidance or without consensus that term is absent; without both there is no public step to take.
    """
    features_BF = network.features(x_BCHW)
    loss = features_BF.new_zeros(())
    if guidance_BG is not None and public_head is not None:
        answers_BG = public_head(features_BF)
        loss = loss + settings.guidance_weight * distillation_loss(
            answers_BG, guidance_BG, temperature=settings.temperature
        )
    if consensus_BC is not None:
        loss = loss + consensus_weight * distillation_loss(
            network.head(features_BF), consensus_BC, temperature=settings.temperature
        )
    return loss


def hospital_losses(
    proxy_logits_BC: Tensor, large_logits_BC: Tensor, labels_B: Tensor, settings: FedHelpSettings
) -> HospitalLosses:
    """Forward: the proxy's cross-entropy + KL from the large network. Backward: the large's + the proxy's order."""
    forward = distillation_loss(proxy_logits_BC, large_logits_BC, temperature=settings.temperature)
    backward = ranking_loss(
        large_logits_BC, proxy_logits_BC, top_k=settings.ranking_top_k, margin=settings.ranking_margin
    )
    return HospitalLosses(
        proxy=functional.cross_entropy(proxy_logits_BC, labels_B) + settings.forward_weight * forward,
        large=functional.cross_entropy(large_logits_BC, labels_B) + settings.ranking_weight * backward,
    )
