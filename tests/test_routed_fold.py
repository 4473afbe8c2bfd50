"""Folding: the same weights as torch's mixing, the same bits on every machine, and no routing off the simplex."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from ayni_export.routed.fold import check_routing, folded, routing_of
from ayni_export.routed.layers import layers_of
from ayni_export.routed.mixing import mixed

SHAPES = {"a.weight": (3, 2, 3, 3), "a.bias": (3,), "b.weight": (2, 3)}
LAYERS = layers_of(SHAPES)
NUM_EXPERTS = 4


def some_stack(kind: type[np.floating]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {name: random.normal(0, 1, (NUM_EXPERTS, *shape)).astype(kind) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_folded_weights_are_torchs_mixed_ones(kind: type[np.floating]) -> None:
    stack = some_stack(kind)
    routing_LE = np.random.default_rng(0).dirichlet(np.ones(NUM_EXPERTS), 2).astype(np.float32)
    weights = folded(stack, routing_LE, LAYERS)
    expected = mixed({k: torch.from_numpy(v) for k, v in stack.items()}, torch.from_numpy(routing_LE), LAYERS)
    assert list(weights) == list(SHAPES)
    for name, tensor in weights.items():
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, expected[name].numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("expert", range(NUM_EXPERTS))
def test_a_one_hot_routing_folds_to_that_experts_bits(kind: type[np.floating], expert: int) -> None:
    stack = some_stack(kind)
    weights = folded(stack, np.eye(NUM_EXPERTS, dtype=np.float32)[[expert, expert]], LAYERS)
    for name, tensor in weights.items():
        assert tensor.tobytes() == stack[name][expert].astype(np.float32).tobytes()


def test_each_product_and_each_sum_is_rounded_to_single_precision_in_the_order_of_the_experts() -> None:
    """By exact fractions, rounded after every step: no fused multiply-add and no other order, on whatever machine."""
    stack, weights_E = some_stack(np.float32), np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    found = folded(stack, np.stack([weights_E] * 2), LAYERS)["a.bias"]
    for i in range(3):
        total = np.float32(0)
        for weight, value in zip(weights_E, stack["a.bias"][:, i], strict=True):
            product = _rounded(Fraction(float(weight)) * Fraction(float(value)))
            total = _rounded(Fraction(float(total)) + Fraction(float(product)))
        assert found[i] == total


def _rounded(exact: Fraction) -> np.float32:
    """To the nearest single; doubles hold these products exactly, and the sums to far below half a unit."""
    return np.float32(float(exact))


def test_softmax_is_on_the_simplex_whatever_the_logits() -> None:
    logits_LE = np.array([[0, np.log(3)], [-1e4, 1e4], [88, 89]], np.float32)
    routing_LE = routing_of(logits_LE)
    np.testing.assert_allclose(routing_LE[0], [0.25, 0.75], rtol=1e-6)
    assert routing_LE[1].tolist() == [0, 1]
    check_routing(routing_LE, 3, 2)


def test_a_routing_off_the_simplex_is_refused() -> None:
    """Weights of a public release came from a sigmoid, and did not sum to 1."""
    for row in ([0.5, 0.6], [-0.1, 1.1], [0.5, float("nan")], [float("inf"), 0.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="sum to 1"):
            check_routing(np.array([[1, 0], row], np.float32), 2, 2)
    for shape in ((2, 3), (1, 2), (4,)):
        with pytest.raises(ValueError, match="for 2 layers and 2 experts"):
            check_routing(np.ones(shape, np.float32), 2, 2)
    with pytest.raises(ValueError, match="sum to 1"):
        folded(some_stack(np.float32), np.ones((2, NUM_EXPERTS), np.float32), LAYERS)


def test_a_tensor_that_is_in_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="every tensor once"):
        folded(some_stack(np.float32), np.eye(NUM_EXPERTS, dtype=np.float32)[:1], LAYERS[:1])
