"""Batches, hold-out, figures and calibration, with numbers by hand."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
import torch

from ayni.learning.batches import Batches, Normaliser, as_tensor, batch_indices, moved, seed_of, variation
from ayni.learning.learners import learning_rate_at
from ayni.learning.objective import auc_error_of
from ayni.learning.scores import calibration_temperature, score
from ayni.learning.site_data import held_out
from ayni.task import TrainingSettings


def test_every_image_comes_once_per_pass_and_passes_differ() -> None:
    steps = [batch_indices(10, 4, step, seed=1) for step in range(5)]  # 20 positions: two passes
    order = np.concatenate(steps)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()


@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_have_the_strides_that_torch_expects(num_channels: int) -> None:
    """Grey images once had a channel's stride of 1, and training without augmentation overwrote foreign memory."""
    pixels_NHWC = np.arange(2 * 3 * 4 * num_channels, dtype=np.uint8).reshape(2, 3, 4, num_channels)
    made = as_tensor(pixels_NHWC)
    assert made.stride() == (12 * num_channels, 12, 4, 1)
    assert made[1, num_channels - 1].tolist() == pixels_NHWC[1, :, :, -1].tolist()


def test_a_batch_depends_on_its_step_alone() -> None:
    assert batch_indices(7, 3, 100, seed=5).tolist() == batch_indices(7, 3, 100, seed=5).tolist()
    assert batch_indices(7, 3, 100, seed=5).tolist() != batch_indices(7, 3, 100, seed=6).tolist()


def test_fewer_images_than_a_batch_are_repeated() -> None:
    assert np.bincount(batch_indices(3, 9, 0, seed=0)).tolist() == [3, 3, 3]


def test_of_each_class_a_part_is_held_out_and_never_all() -> None:
    labels_N = np.array([0] * 50 + [1] * 2 + [2])
    out_N = held_out(labels_N, 0.2, seed=0)
    assert np.bincount(labels_N[out_N], minlength=3).tolist() == [10, 1, 0]
    assert out_N.tolist() == held_out(labels_N, 0.2, seed=0).tolist()
    assert out_N.tolist() != held_out(labels_N, 0.2, seed=3).tolist()


def test_normalised_pixels_by_hand() -> None:
    pixels_NHWC = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    normalise = Normaliser.of(pixels_NHWC)
    assert (normalise.mean, normalise.std) == ((0.5,), (0.5,))
    assert normalise(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)).flatten().tolist() == [-1.0, 1.0]


def test_augmentation_keeps_left_left_and_is_the_same_for_the_same_seed() -> None:
    training = TrainingSettings(rounds=1, batch_size=16)
    pixels_NCHW = torch.linspace(0, 255, 28).view(1, 1, 1, 28).expand(16, 1, 28, 28).to(torch.uint8)  # brighter right

    def varied(seed: int, training: TrainingSettings = training) -> torch.Tensor:
        return Batches(pixels_NCHW, Normaliser((0.0,), (1.0,)), training, seed=seed).at(0).x_BCHW

    brighter_right_B = (varied(3)[..., 14:] - varied(3)[..., :14]).mean(dim=(1, 2, 3)) > 0
    assert brighter_right_B.all()
    assert torch.equal(varied(3), varied(3))
    assert not torch.equal(varied(3), varied(4))
    mirrored = varied(3, msgspec.structs.replace(training, mirror=True))
    right_B = (mirrored[..., 14:] - mirrored[..., :14]).mean(dim=(1, 2, 3)) > 0
    assert 0 < right_B.sum() < 16


def test_a_mask_is_moved_exactly_as_its_image_is() -> None:
    training = TrainingSettings(rounds=1, batch_size=6, mirror=True)
    masks_NSHW = torch.zeros(6, 1, 16, 16, dtype=torch.uint8)
    masks_NSHW[:, :, 2:7, 5:14] = 1
    batch = Batches(masks_NSHW * 255, Normaliser((0.0,), (1.0,)), training, seed=1).at(0)
    rows_BA1, contrast_B, brightness_B = variation(6, 2, mirror=True, seed=seed_of(1, "augment", 0))
    plain_BCHW = (batch.x_BCHW - brightness_B.view(-1, 1, 1, 1)) / contrast_B.view(-1, 1, 1, 1)
    assert torch.allclose(batch.of(masks_NSHW), plain_BCHW, atol=1e-5)
    assert torch.equal(batch.of(masks_NSHW), moved(masks_NSHW[batch.chosen_B].float(), rows_BA1))
    assert batch.of(torch.arange(6)).tolist() == batch.chosen_B.tolist()  # labels are not moved


def test_the_learning_rate_rises_falls_and_ends_at_nothing() -> None:
    training = TrainingSettings(rounds=1, learning_rate=0.5)
    rates = [learning_rate_at(number, 100, training) for number in range(101)]
    assert rates[0] == pytest.approx(0.5 / 3)  # warm-up: 3 % of 100 steps
    assert rates[3] == pytest.approx(0.5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[3:]))
    assert rates[100] == pytest.approx(0.0, abs=1e-9)


def test_area_and_recall_by_hand() -> None:
    logits_NC = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    scores = score(logits_NC, torch.tensor([0, 0, 1, 1]))
    assert scores.auc == pytest.approx(0.75)  # of four pairs, (third, second) is in the wrong order
    assert scores.balanced_accuracy == pytest.approx(0.5)  # of each class one of two


def test_figures_are_of_the_images_given_also_if_a_class_has_none() -> None:
    logits_NC = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert score(logits_NC, torch.tensor([0, 1])).balanced_accuracy == 1.0
    alone = score(logits_NC, torch.tensor([0, 0]))
    assert (alone.auc, alone.balanced_accuracy) == (0.5, 0.5)


def test_calibration_finds_the_temperature_that_made_the_logits() -> None:
    # 3 of 4 right with logits (0, 2 ln 3): they claim 9/10, so halving them is calibrated
    logits_NC = torch.tensor([[0.0, 2 * np.log(3.0)]]).repeat(40, 1)
    labels_N = torch.tensor([1, 1, 1, 0] * 10)
    assert calibration_temperature(logits_NC, labels_N) == pytest.approx(2.0, rel=0.02)


def test_calibration_says_nothing_when_there_is_nothing_to_say() -> None:
    logits_NC = torch.tensor([[0.0, 9.0]])
    assert calibration_temperature(logits_NC.repeat(8, 1), torch.tensor([0, 1] * 4)) == 1.0
    assert calibration_temperature(logits_NC.repeat(40, 1), torch.ones(40, dtype=torch.int64)) == 1.0


def test_few_images_make_an_area_uncertain() -> None:
    few, many = torch.tensor([0, 1] * 5), torch.tensor([0, 1] * 500)
    assert auc_error_of(0.9, few) > 5 * auc_error_of(0.9, many)
