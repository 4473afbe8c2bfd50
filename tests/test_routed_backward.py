"""Backward steps written in forward operators: each against torch's own autograd, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ayni_export.routed import backward
from ayni_export.routed.gradient import traced

CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "3 x 3": (nn.Conv2d(2, 3, 3, padding=1), (2, 2, 7, 6)),
    "strided, a pixel left over": (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 2, 8, 7)),
    "7 x 7 stem": (nn.Conv2d(1, 2, 7, stride=2, padding=3), (2, 1, 16, 12)),
    "1 x 1": (nn.Conv2d(3, 2, 1, bias=False), (2, 3, 5, 4)),
    "1 x 1, strided": (nn.Conv2d(3, 2, 1, stride=2), (1, 3, 6, 5)),
    "dilated, unequal": (nn.Conv2d(2, 2, (3, 5), stride=(1, 2), padding=(2, 1), dilation=(2, 1)), (2, 2, 9, 11)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), (2, 3, 4, 5)),
    "transposed, no padding": (nn.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 4, 3)),
    "3D": (nn.Conv3d(2, 3, 3, stride=2, padding=1), (1, 2, 6, 5, 4)),
    "3D transposed": (nn.ConvTranspose3d(2, 1, 3, stride=2, padding=1, output_padding=1), (1, 2, 3, 2, 4)),
}
NORMS = {"one group": (1, 6), "three groups": (3, 6), "a group each": (6, 6)}


def gradients_agree(module: nn.Module, x: Tensor) -> None:
    """Of a rough function of the output, with respect to the input and every weight: traced, and torch's own."""
    module = module.double()
    names = [name for name, _ in module.named_parameters()]

    def loss(x: Tensor, *weights: Tensor) -> Tensor:
        out = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))
        return (torch.sin(3 * out) * torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)).sum()

    arguments = (x.double(), *(weight.detach() for weight in module.parameters()))
    function: Any = torch.func.grad(loss, argnums=tuple(range(len(arguments))))
    graph = traced(function, arguments)
    for mine, torchs in zip(graph(*arguments), function(*arguments), strict=True):
        assert torchs.abs().max() > 0.1
        torch.testing.assert_close(mine, torchs)
    targets = {str(node.target) for node in graph.graph.nodes}  # type: ignore[union-attr]
    assert not {name for name in targets if "backward" in name or "native_group_norm" in name}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    module, shape = CONVOLUTIONS[name]
    gradients_agree(module, torch.randn(shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("places", [(5, 4), (3, 4, 2)])
def test_group_norm(name: str, places: tuple[int, ...]) -> None:
    norm = nn.GroupNorm(*NORMS[name])
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 6))
        norm.bias.copy_(torch.linspace(-1, 1, 6))
    gradients_agree(norm, 3 + torch.randn((2, 6, *places), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool3d(3, 1, 1)], ids=str
)
def test_max_pool(pool: nn.Module) -> None:
    shape = (2, 3, 6, 8) if isinstance(pool, nn.MaxPool2d) else (1, 2, 4, 6, 5)
    gradients_agree(pool, torch.randn(shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.1), nn.ReLU(), nn.Sigmoid(), nn.Softplus()], ids=str)
def test_activations(act: nn.Module) -> None:
    gradients_agree(act, torch.randn(4, 5, generator=torch.Generator().manual_seed(1)))


def test_the_gradient_of_a_flat_image_is_a_number() -> None:
    """Where all is equal, a group's deviation is zero."""
    x = torch.full((1, 4, 3, 3), 2.0)
    of_x, *_ = backward.group_norm_backward(
        torch.ones_like(x), x, x.mean().reshape(1, 1), torch.tensor([[1e-5]]).rsqrt(), torch.ones(4), 1, 4, 9, 1, [True]
    )
    assert of_x.abs().max() < 1e-3


def test_a_frozen_grouped_convolution_lets_the_gradient_through() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(2)))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.get_buffer("weight"), stride=2, padding=1, groups=4)

    gradients_agree(Frozen(), torch.randn((2, 4, 6, 7), generator=torch.Generator().manual_seed(1)))


def test_the_weight_of_a_grouped_convolution_is_refused() -> None:
    conv = nn.Conv2d(4, 4, 3, groups=2)
    with pytest.raises(ValueError, match="grouped convolution"):
        gradients_agree(conv, torch.randn(1, 4, 5, 5))
