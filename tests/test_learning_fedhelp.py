"""One FedHelp step: who learns from whom, with gradients worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ayni.learning.fedhelp import clinic_public_loss, hospital_losses
from ayni.learning.networks import Network, build_network
from ayni.task import FedHelpSettings, ImageSettings, ResNetSettings

TINY = ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 4, 8, 8), stem_stride=2)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return build_network(TINY, ImageSettings(height=16, width=16), 2)


def test_the_proxy_learns_from_labels_and_the_full_answer_of_the_large_network() -> None:
    proxy_BC = torch.tensor([[0.0, 0.0]], requires_grad=True)
    large_BC = torch.tensor([[0.0, 2.0]], requires_grad=True)
    losses = hospital_losses(proxy_BC, large_BC, torch.tensor([0]), FedHelpSettings(forward_weight=0.5))
    losses.proxy.backward()  # type: ignore[no-untyped-call]
    assert large_BC.grad is None
    assert proxy_BC.grad is not None
    # softmax - label = (-.5, .5); softmax - teacher = (.5 - .1192, .5 - .8808) = (.3808, -.3808), half of it counts
    assert proxy_BC.grad[0].tolist() == pytest.approx([-0.5 + 0.1904, 0.5 - 0.1904], abs=1e-4)


def test_the_large_network_learns_from_labels_and_the_order_of_the_proxy() -> None:
    proxy_BC = torch.tensor([[0.0, 5.0]], requires_grad=True)
    large_BC = torch.tensor([[0.0, 0.0]], requires_grad=True)
    losses = hospital_losses(proxy_BC, large_BC, torch.tensor([0]), FedHelpSettings(ranking_weight=0.2))
    losses.large.backward()  # type: ignore[no-untyped-call]
    assert proxy_BC.grad is None
    assert large_BC.grad is not None
    # cross-entropy (-.5, .5); the hinge pulls class 1 up and class 0 down, by its weight, whatever the proxy's logits
    assert large_BC.grad[0].tolist() == pytest.approx([-0.5 + 0.2, 0.5 - 0.2], abs=1e-6)


def test_guidance_reaches_the_extractor_and_its_own_head_but_not_the_diagnosis_head(network: Network) -> None:
    public_head = nn.Linear(8, 5)
    x_BCHW, guidance_BG = torch.randn(3, 1, 16, 16), torch.randn(3, 5)
    clinic_public_loss(
        network,
        public_head,
        x_BCHW,
        guidance=guidance_BG,
        consensus=None,
        consensus_weight=0.0,
        settings=FedHelpSettings(),
    ).backward()  # type: ignore[no-untyped-call]
    assert network.head.weight.grad is None
    assert public_head.weight.grad is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.extractor.parameters())


def test_the_consensus_teaches_the_diagnosis_head_by_its_weight(network: Network) -> None:
    x_BCHW, consensus_BC = torch.randn(3, 1, 16, 16), torch.randn(3, 2)
    loss = [
        clinic_public_loss(
            network,
            None,
            x_BCHW,
            guidance=None,
            consensus=consensus_BC,
            consensus_weight=weight,
            settings=FedHelpSettings(),
        ).item()
        for weight in (1.0, 2.5)
    ]
    assert loss[1] == pytest.approx(2.5 * loss[0], rel=1e-5)


def test_every_normalisation_is_by_group_also_within_the_blocks() -> None:
    wide = build_network(
        ResNetSettings(layers=(1, 2, 1, 1), planes=(12, 24, 48, 96)), ImageSettings(height=8, width=8), 3
    )
    norms = [m for m in wide.modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d | nn.InstanceNorm2d)]
    assert {type(norm) for norm in norms} == {nn.GroupNorm}
    assert [norm.num_groups for norm in norms][:2] == [6, 6]  # of 12 channels


def test_one_image_alone_and_in_a_batch_get_the_same_answer(network: Network) -> None:
    x_BCHW = torch.randn(5, 1, 16, 16)
    assert torch.allclose(network(x_BCHW)[2:3], network(x_BCHW[2:3]), atol=1e-6)


def test_the_mean_of_the_head_on_the_feature_map_is_the_logit(network: Network) -> None:
    x_BCHW = torch.randn(2, 1, 16, 16)
    map_BFhw = network.extractor(x_BCHW)
    assert isinstance(network.head, nn.Linear)
    map_BChw = torch.einsum("bfhw,cf->bchw", map_BFhw, network.head.weight)
    assert torch.allclose(map_BChw.mean(dim=(2, 3)) + network.head.bias, network(x_BCHW), atol=1e-6)
