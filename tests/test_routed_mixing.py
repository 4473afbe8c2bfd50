"""METHODS, section 2, what must hold of mixing: with a 2D U-Net and a classifier of the product, and a 3D U-Net.

One-hot rows are that expert, equal rows the arithmetic soup, no layer of no expert is missing, nothing aliases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from ayni.learning.networks import build_network
from ayni.task import ImageSettings, ResNetSettings, UNetSettings
from ayni_export.routed.layers import Layer, check_cover, layers_of
from ayni_export.routed.mixing import mixed, stacked

NUM_EXPERTS = 3
IMAGE = ImageSettings(height=16, width=24)


def unet_2d() -> nn.Module:
    return build_network(UNetSettings(channels=(4, 8, 8), residual_units=1, features=4), IMAGE, 2)


def unet_3d() -> nn.Module:
    norm = ("group", {"num_groups": 2})
    return cast(nn.Module, UNet(3, 1, 2, (4, 8, 8), (2, 2), norm=norm, dropout=0.5))


def classifier() -> nn.Module:
    return build_network(ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 8, 8, 8)), IMAGE, 3)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2D U-Net": (unet_2d, (2, 1, 16, 24)),
    "3D U-Net": (unet_3d, (2, 1, 8, 12, 16)),
    "classifier": (classifier, (2, 1, 16, 24)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def some(name: str) -> tuple[nn.Module, list[dict[str, Tensor]], Tensor]:
    """A network, experts of its shape that differ in every tensor, and images."""
    torch.manual_seed(7)
    build, shape = NETWORKS[name]
    network = build().eval()
    experts = [
        {k: v + 0.05 * torch.randn(v.shape) for k, v in build().state_dict().items()} for _ in range(NUM_EXPERTS)
    ]
    return network, experts, torch.randn(shape)


def logits_with(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    return cast(Tensor, torch.func.functional_call(network, weights, (images,)))


def logits_of(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """As anybody would ask that network, without our mixing."""
    network.load_state_dict(weights)
    with torch.no_grad():
        return cast(Tensor, network(images))


@every_network
@pytest.mark.parametrize("expert", range(NUM_EXPERTS))
def test_a_one_hot_routing_is_that_expert_bit_for_bit(name: str, expert: int) -> None:
    network, experts, images = some(name)
    layers = layers_of(experts[0])
    one_hot = torch.zeros(len(layers), NUM_EXPERTS)
    one_hot[:, expert] = 1
    weights = mixed(stacked(experts), one_hot, layers)
    assert all(torch.equal(weights[k], experts[expert][k]) for k in experts[expert])
    assert torch.equal(logits_with(network, weights, images), logits_of(network, experts[expert], images))


@every_network
def test_equal_weights_are_the_arithmetic_soup(name: str) -> None:
    network, experts, images = some(name)
    layers = layers_of(experts[0])
    soup = {k: torch.stack([expert[k].double() for expert in experts]).mean(dim=0).float() for k in experts[0]}
    weights = mixed(stacked(experts), torch.full((len(layers), NUM_EXPERTS), 1 / NUM_EXPERTS), layers)
    torch.testing.assert_close(weights, soup, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits_with(network, weights, images), logits_of(network, soup, images))


@every_network
def test_each_layer_of_each_expert_is_in_it_by_its_own_weight(name: str) -> None:
    """A site's expert was silently missing from 19 of 23 layers of public code."""
    _, experts, _ = some(name)
    layers = layers_of(experts[0])
    assert sorted(tensor for layer in layers for tensor in layer.tensors) == sorted(experts[0])
    for i, layer in enumerate(layers):
        for expert in range(1, NUM_EXPERTS):
            routing_LE = torch.zeros(len(layers), NUM_EXPERTS)
            routing_LE[:, 0] = 1
            routing_LE[i] = 0
            routing_LE[i, expert] = 1
            weights = mixed(stacked(experts), routing_LE, layers)
            changed = {k for k in weights if not torch.equal(weights[k], experts[0][k])}
            assert changed == set(layer.tensors)
            assert all(torch.equal(weights[k], experts[expert][k]) for k in layer.tensors)


@every_network
def test_an_image_alone_and_among_others_gets_one_answer(name: str) -> None:
    network, experts, images = some(name)
    layers = layers_of(experts[0])
    weights = mixed(stacked(experts), torch.softmax(torch.randn(len(layers), NUM_EXPERTS), dim=1), layers)
    together = logits_with(network, weights, images)
    alone = torch.cat([logits_with(network, weights, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@every_network
def test_gradients_of_the_routing_are_those_of_finite_differences(name: str) -> None:
    network, experts, images = some(name)
    layers = layers_of(experts[0])
    stack = stacked([{k: v.double() for k, v in expert.items()} for expert in experts])

    def loss(logits_LE: Tensor) -> Tensor:
        weights = mixed(stack, torch.softmax(logits_LE, dim=1), layers)
        return logits_with(network, weights, images[:1].double()).square().mean()

    start_LE = torch.randn(len(layers), NUM_EXPERTS, dtype=torch.double)
    way_LE = torch.randn(len(layers), NUM_EXPERTS, dtype=torch.double)
    along = (torch.func.grad(loss)(start_LE) * way_LE).sum()
    with torch.no_grad():
        difference = (loss(start_LE + 1e-6 * way_LE) - loss(start_LE - 1e-6 * way_LE)) / 2e-6
    assert abs(along) > 1e-3
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-7)


def test_integers_are_the_global_models_and_never_a_mean() -> None:
    experts = [{"norm.mean": torch.tensor([float(i)]), "norm.num_batches": torch.tensor(10 * i)} for i in (1, 2)]
    weights = mixed(stacked(experts), torch.tensor([[0.25, 0.75]]), layers_of(experts[0]))
    assert weights["norm.mean"].tolist() == [1.75]
    assert weights["norm.num_batches"].dtype == torch.int64
    assert weights["norm.num_batches"].item() == 10


def test_half_precision_experts_are_mixed_in_single_precision() -> None:
    """1 and 1 + 1/1024 are neighbours in half precision: what lies between must not be rounded to either."""
    experts = [{"a.b": torch.tensor([1 + i / 1024], dtype=torch.float16)} for i in range(2)]
    weights = mixed(stacked(experts), torch.tensor([[0.5, 0.5]]), layers_of(experts[0]))
    assert weights["a.b"].dtype == torch.float32
    assert weights["a.b"].item() == 1 + 1 / 2048


def test_the_stack_does_not_alias_a_model_that_trains_on() -> None:
    network = unet_2d()
    stack = stacked([network.state_dict()])
    before = {k: v.clone() for k, v in stack.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(stack[k], before[k]) for k in stack)


def test_layers_are_leaf_modules_in_the_order_of_the_state() -> None:
    names = ["a.0.weight", "a.0.bias", "a.1.weight", "scale", "head.weight", "head.bias"]
    assert layers_of(names) == (
        Layer("a.0", ("a.0.weight", "a.0.bias")),
        Layer("a.1", ("a.1.weight",)),
        Layer("scale", ("scale",)),
        Layer("head", ("head.weight", "head.bias")),
    )


@pytest.mark.parametrize("covered", [["a.w"], ["a.w", "a.w", "b.w"], ["a.w", "b.w", "c.w"]])
def test_layers_that_leave_out_a_tensor_or_hold_it_twice_are_refused(covered: list[str]) -> None:
    with pytest.raises(ValueError, match="every tensor once"):
        check_cover([Layer(name, (name,)) for name in covered], ["a.w", "b.w"])


def test_experts_of_other_shapes_and_routings_that_do_not_fit_are_refused() -> None:
    experts = [{"a.w": torch.zeros(2)}, {"a.w": torch.zeros(2)}]
    layers = layers_of(experts[0])
    for other in ({"a.w": torch.zeros(3)}, {"a.v": torch.zeros(2)}, {"a.w": torch.zeros(2, dtype=torch.double)}):
        with pytest.raises(ValueError, match="expert 1 is not of the same network"):
            stacked([experts[0], other])
    with pytest.raises(ValueError, match="no expert"):
        stacked([])
    for shape in ((1, 3), (2, 2), (2,)):
        with pytest.raises(ValueError, match="for 1 layers and 2 experts"):
            mixed(stacked(experts), torch.ones(shape), layers)
