"""Segmentation: losses, distillation, figures and maps as targets, with numbers by hand."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Literal

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ayni.errors import IntegrityError, UserError
from ayni.learning.fedhelp import hospital_losses
from ayni.learning.losses import mask_distillation_loss, mask_loss, mask_order_loss
from ayni.learning.networks import build_network
from ayni.learning.objective import SEGMENTATION
from ayni.learning.scores import dice_of_each, mask_calibration_temperature, score_masks
from ayni.task import FedHelpSettings, ImageSettings, ResNetSettings, UNetSettings
from ayni.task_checks import check_kind
from ayni.tensors.targets import Targets, TargetsInfo, decode_targets, encode_targets
from small_setups import small_task


def mask(*rows: str) -> torch.Tensor:
    """[1, 1, H, W] of 0 and 1."""
    return torch.tensor([[[[int(letter) for letter in row] for row in rows]]])


def sure(masks_NSHW: torch.Tensor) -> torch.Tensor:
    """Logits that draw this mask."""
    return (masks_NSHW.float() - 0.5) * 20


def test_distilling_one_channel_teaches_something() -> None:
    # public code takes a softmax over the one channel, which is always 1, so that its loss and gradient are 0
    student = torch.zeros(1, 1, 2, 2, requires_grad=True)
    teacher = torch.full((1, 1, 2, 2), math.log(3.0), requires_grad=True)  # .75
    loss = mask_distillation_loss(student, teacher, temperature=1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([(0.5 - 0.75) / 4] * 4)
    assert teacher.grad is None


@given(st.integers(1, 4), st.integers(1, 3))
def test_a_distillation_loss_does_not_depend_on_how_many_images_or_structures_say_the_same(
    num_images: int, num_structures: int
) -> None:
    student, teacher = torch.tensor([0.3, -1.0]), torch.tensor([1.0, 0.5])
    one = mask_distillation_loss(student.view(1, 1, 1, 2), teacher.view(1, 1, 1, 2), temperature=2.0)
    shape = (num_images, num_structures, 1, 2)
    many = mask_distillation_loss(student.expand(shape), teacher.expand(shape), temperature=2.0)
    assert many.item() == pytest.approx(one.item(), rel=1e-5)


def test_the_order_of_two_sides_is_rewarded_when_it_agrees() -> None:
    student = torch.tensor([[[[2.0, 0.05, -1.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[3.0, 0.1, 9.0]]]])
    loss = mask_order_loss(student, teacher, margin=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx((0 + 0.05 + 1.1) / 3)
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([0, -1 / 3, -1 / 3])  # up: inside


def test_the_loss_of_a_mask_is_cross_entropy_and_soft_dice() -> None:
    logits = torch.zeros(1, 1, 2, 2)  # probability .5 everywhere
    # log 2 per pixel; Dice 1 - 2 * (2 * .5) / (4 * .5 + 2) = .5
    assert mask_loss(logits, mask("10", "10")).item() == pytest.approx(math.log(2) + 0.5, abs=1e-4)


def test_a_hospital_teaches_masks_both_ways_and_no_gradient_crosses() -> None:
    truth, settings = mask("1"), FedHelpSettings(forward_weight=0.5, ranking_weight=0.2, ranking_margin=0.1)
    proxy = torch.full((1, 1, 1, 1), -1.0, requires_grad=True)
    large = torch.zeros(1, 1, 1, 1, requires_grad=True)
    losses = hospital_losses(proxy, large, truth, settings, SEGMENTATION)
    losses.proxy.backward()  # type: ignore[no-untyped-call]
    assert large.grad is None
    assert proxy.grad is not None
    p = 1 / (1 + math.e)  # of the proxy; that of the large network is 1/2
    # cross-entropy p - 1; soft Dice 1 - 2p / (p + 1), whose slope in p is -2 / (p + 1)**2; half the KL's p - 1/2
    by_hand = (p - 1) - 2 / (p + 1) ** 2 * p * (1 - p) + 0.5 * (p - 0.5)
    assert proxy.grad.item() == pytest.approx(by_hand, abs=1e-4)
    losses.large.backward()  # type: ignore[no-untyped-call]
    assert large.grad is not None
    # at 1/2: -1/2 and -2 / 2.25 / 4; the proxy says outside, so the hinge pushes down by its weight
    assert large.grad.item() == pytest.approx(-0.5 - 2 / 2.25 / 4 + 0.2, abs=1e-4)


def test_dice_is_of_each_case_and_empty_masks_have_a_policy() -> None:
    truth = torch.cat([mask("1100", "0000"), mask("0000", "0000"), mask("0000", "0000"), mask("1000", "0000")])
    seen = torch.cat([mask("0110", "0000"), mask("0000", "0000"), mask("0001", "0000"), mask("0000", "0000")])
    assert dice_of_each(sure(seen), truth).tolist() == pytest.approx([0.5, 1.0, 0.0, 0.0])
    scores = score_masks(sure(seen), truth, distances=True)
    assert scores.dice == pytest.approx(1.5 / 4)
    diagonal = math.hypot(2, 4)
    # the first: distances 0 and 1 either way, .95 at 95 of 100; none and none: 0; one of the two: the diagonal
    assert scores.hd95 == pytest.approx((0.95 + 0.0 + diagonal + diagonal) / 4)
    assert (scores.main, scores.main_name) == (scores.dice, "Dice")


def test_calibration_of_pixels_finds_the_temperature_that_made_the_logits() -> None:
    logits = torch.full((20, 1, 2, 2), 2 * math.log(3.0))  # they claim .9, and three of four are inside
    masks = mask("11", "10").repeat(20, 1, 1, 1)
    assert mask_calibration_temperature(logits, masks) == pytest.approx(2.0, rel=0.02)


def test_a_u_net_answers_every_pixel_and_has_no_batch_statistics() -> None:
    settings = UNetSettings(channels=(8, 16, 32), residual_units=1, features=8)
    network = build_network(settings, ImageSettings(height=16, width=24, channels=3), 2).eval()
    x_BCHW = torch.randn(4, 3, 16, 24)
    together = network(x_BCHW)
    assert together.shape == (4, 2, 16, 24)
    assert torch.allclose(together[:1], network(x_BCHW[:1]), atol=1e-5)
    assert not any("running" in name for name in network.state_dict())
    assert network.new_head(5)(network.features(x_BCHW)).shape == (4, 5, 16, 24)


def targets(bits: Literal[8, 16] = 8) -> Targets:
    info = TargetsInfo(
        source="hospital", image_set="a" * 64, model_name="h", model_version="1", licence="", classes=("lung", "heart"),
        bits=bits, height=4, width=6,
    )  # fmt: skip
    return Targets(info, np.random.default_rng(0).uniform(-8, 8, (3, 2, 4, 6)).astype(np.float32))


@pytest.mark.parametrize(("bits", "error"), [(8, 16 / 255 / 2 + 1e-5), (16, 0.005)])
def test_maps_travel_as_targets(bits: Literal[8, 16], error: float) -> None:
    sent = targets(bits)
    seen = decode_targets(encode_targets(sent))
    assert seen.info == sent.info
    assert np.abs(seen.logits_NC - sent.logits_NC).max() <= error


@given(st.data())
def test_damaged_maps_raise_integrity_error_and_nothing_else(data: st.DataObject) -> None:
    encoded = bytearray(encode_targets(targets()))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    with suppress(IntegrityError):
        decode_targets(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))


def test_maps_of_another_size_than_promised_are_refused() -> None:
    sent = targets()
    wrong = Targets(msgspec.structs.replace(sent.info, width=5), sent.logits_NC)
    with pytest.raises(IntegrityError, match=r"images, 2, 4, 5"):
        encode_targets(wrong)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("segmentation", {"image": ImageSettings(height=15, width=16)}, "multiples of 2"),
        ("classification", {"classes": ("one",)}, "at least two classes"),
        ("classification", {"kind": "segmentation"}, '"unet"'),
        ("segmentation", {"kind": "classification", "classes": ("a", "b")}, '"resnet"'),
    ],
)
def test_networks_and_classes_must_fit_the_kind_of_the_task(kind: str, changes: dict[str, object], words: str) -> None:
    task = msgspec.structs.replace(small_task(kind), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=words):
        check_kind(task)


def test_a_network_s_kind_is_in_the_task_file_of_every_site() -> None:
    task = small_task("segmentation")
    assert type(task).from_json(task.to_json()) == task
    assert isinstance(small_task("classification").small_network, ResNetSettings)
