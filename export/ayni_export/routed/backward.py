"""Backward steps written in forward operators, so that an exact gradient can be an ONNX graph.

torch has no ONNX form of these, nor would autograd of written-out arithmetic be quick: the closed forms below take a
third of its time. Each is one entry of a decomposition table for `make_fx`; tests hold each against torch's own.

B = images, I, O = channels of a convolution's input and output, C = channels, G = groups of them, N = elements of a
group, P = places (pixels or voxels, flat), X = the same as axes (H x W or D x H x W).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

aten = torch.ops.aten
Sizes = Sequence[int]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's own, and those that it lacks."""
    return {
        **core_aten_decompositions(),
        aten.convolution_backward.default: convolution_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
        aten.max_pool3d_with_indices_backward.default: max_pool_backward,
        aten.native_group_norm.default: group_norm,
        aten.native_group_norm_backward.default: group_norm_backward,
        aten.leaky_relu_backward.default: leaky_relu_backward,
    }


def convolution_backward(
    gradient_BOX: Tensor,
    x_BIX: Tensor,
    weight_OIX: Tensor,
    bias_sizes: Sizes | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, weight and bias. Raises ValueError for the weight of a grouped convolution: ours are frozen."""
    if groups != 1 and wanted[1]:
        raise ValueError("the backward step of a grouped convolution's weight is not written")
    num_axes = weight_OIX.ndim - 2
    of_x = of_weight = of_bias = None
    if wanted[0]:
        reached = [
            (gradient_BOX.shape[2 + i] - 1) * stride[i]
            - 2 * padding[i]
            + dilation[i] * (weight_OIX.shape[2 + i] - 1)
            + 1
            for i in range(num_axes)
        ]
        rest = [0 if transposed else x_BIX.shape[2 + i] - reached[i] for i in range(num_axes)]
        of_x = aten.convolution.default(
            gradient_BOX, weight_OIX, None, stride, padding, dilation, not transposed, rest, groups
        )
    if wanted[1]:  # a transposed convolution is the way back of a plain one: its input and output change places
        large, small = (gradient_BOX, x_BIX) if transposed else (x_BIX, gradient_BOX)
        of_weight = _of_weight(large, small, weight_OIX.shape, stride, padding, dilation)
    if wanted[2]:
        of_bias = gradient_BOX.sum(dim=[0, *range(2, 2 + num_axes)])
    return of_x, of_weight, of_bias


def _of_weight(
    large_BIX: Tensor, small_BOX: Tensor, shape: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Tensor:
    """[O, I, kernel]: one product of matrices, over all pixels, with what each place in the kernel has seen."""
    axes = range(len(stride))
    reach = [(small_BOX.shape[2 + i] - 1) * stride[i] + 1 for i in axes]
    short = [reach[i] + (shape[2 + i] - 1) * dilation[i] - large_BIX.shape[2 + i] - padding[i] for i in axes]
    margins = [pixels for i in reversed(axes) for pixels in (padding[i], max(0, short[i]))]
    padded_BIX = aten.constant_pad_nd.default(large_BIX, margins, 0.0) if any(margins) else large_BIX
    seen = []
    for place in itertools.product(*(range(size) for size in shape[2:])):
        part_BIX = padded_BIX
        for i in axes:
            first = place[i] * dilation[i]
            part_BIX = aten.slice.Tensor(part_BIX, 2 + i, first, first + reach[i], stride[i])
        seen.append(part_BIX.flatten(2))
    of_seen = (small_BOX.flatten(2) @ torch.cat(seen, dim=1).transpose(1, 2)).sum(dim=0)
    return of_seen.reshape(shape[0], len(seen), shape[1]).transpose(1, 2).reshape(tuple(shape))


def max_pool_backward(
    gradient: Tensor,
    x_BCX: Tensor,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
    places: Tensor,
) -> Tensor:
    """Each output's gradient goes to the place that its largest value came from."""
    nothing_BCP = torch.zeros_like(x_BCX).flatten(2)
    return nothing_BCP.scatter_add(2, places.flatten(2), gradient.flatten(2)).reshape(x_BCX.shape)


def group_norm(
    x_BCX: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    num_images: int,
    num_channels: int,
    num_places: int,
    num_groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means of rows, then of these means: as `WrittenOutGroupNorm`, and for its reason."""
    groups_BGRW = x_BCX.reshape(num_images, num_groups, -1, x_BCX.shape[-1])
    mean_BG11 = _mean_of_rows(groups_BGRW)
    centred_BGRW = groups_BGRW - mean_BG11
    per_std_BG11 = torch.rsqrt(_mean_of_rows(centred_BGRW * centred_BGRW) + eps)
    per_channel = (num_channels, *(1,) * (x_BCX.ndim - 2))
    out_BCX = (centred_BGRW * per_std_BG11).reshape(x_BCX.shape) * weight_C.reshape(per_channel)
    of_group = (num_images, num_groups)
    return out_BCX + bias_C.reshape(per_channel), mean_BG11.reshape(of_group), per_std_BG11.reshape(of_group)


def _mean_of_rows(groups_BGRW: Tensor) -> Tensor:
    return groups_BGRW.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def group_norm_backward(
    gradient_BCX: Tensor,
    x_BCX: Tensor,
    mean_BG: Tensor,
    per_std_BG: Tensor,
    weight_C: Tensor,
    num_images: int,
    num_channels: int,
    num_places: int,
    num_groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """With n the normalised x and g the gradient times the weight: (g - mean of g - n * mean of g n) / std."""
    grouped, flat = (num_images, num_groups, -1), (num_images, num_channels, num_places)
    normal_BGN = (x_BCX.reshape(grouped) - mean_BG[:, :, None]) * per_std_BG[:, :, None]
    gradient_BCP = gradient_BCX.reshape(flat)
    of_bias_BC = gradient_BCP.sum(dim=2)
    of_weight_BC = (gradient_BCP * normal_BGN.reshape(flat)).sum(dim=2)
    num_elements = num_places * (num_channels // num_groups)
    mean_g_BG = (of_bias_BC * weight_C).reshape(grouped).sum(dim=2) / num_elements
    mean_gn_BG = (of_weight_BC * weight_C).reshape(grouped).sum(dim=2) / num_elements
    factor_BC = (per_std_BG[:, :, None] * weight_C.reshape(1, num_groups, -1)).reshape(num_images, num_channels)
    away_BGN = normal_BGN * (per_std_BG * mean_gn_BG)[:, :, None] + (per_std_BG * mean_g_BG)[:, :, None]
    of_x_BCP = gradient_BCP * factor_BC[:, :, None] - away_BGN.reshape(flat)
    return of_x_BCP.reshape(x_BCX.shape), of_weight_BC.sum(dim=0), of_bias_BC.sum(dim=0)


def leaky_relu_backward(gradient: Tensor, x: Tensor, slope: float, is_result: bool) -> Tensor:
    """`x` may be the result: its sign is the same."""
    return gradient * torch.where(x > 0, 1.0, slope)
