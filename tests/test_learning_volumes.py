"""Networks, batches, figures and memory for volumes; expected numbers by hand, from scipy, or from torch itself."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from ayni.errors import UserError
from ayni.learning.batches import Batches, Normaliser, as_tensor, moved, variation
from ayni.learning.memory import chosen_patch, estimated_mb
from ayni.learning.networks import build_network, seeded_network
from ayni.learning.scores import answers, score_volumes
from ayni.task import ImageSettings, ResNetSettings
from ayni.task_checks import check_kind
from small_volumes import SIZE, boxes, volume_task

PLAIN = Normaliser((0.0,), (1.0,))


def test_a_3d_unet_answers_every_voxel_and_its_bottleneck_is_its_deepest_level() -> None:
    task = volume_task()
    network = seeded_network(task.small_network, task, 1)
    found: list[Tensor] = []
    network.bottleneck.register_forward_hook(lambda module, inputs, output: found.append(output))
    assert network(torch.zeros(3, 1, *SIZE)).shape == (3, 2, *SIZE)
    assert found[0].shape == (3, 16, 2, 4, 3)
    assert task.small_network.bottleneck == (16, 4)


def test_a_3d_resnet_answers_every_volume() -> None:
    settings = ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 8, 8, 16), stem_stride=2)
    network = build_network(settings, ImageSettings(depth=28, height=28, width=28), 2)
    found: list[Tensor] = []
    network.bottleneck.register_forward_hook(lambda module, inputs, output: found.append(output))
    assert network(torch.zeros(2, 1, 28, 28, 28)).shape == (2, 2)
    channels, shrinks = settings.bottleneck
    assert found[0].shape == (2, channels, *(math.ceil(28 / shrinks),) * 3)


def test_a_volume_that_is_not_varied_stays_and_masks_move_with_their_volumes() -> None:
    pixels, masks = boxes(4, seed=3)
    training = msgspec.structs.replace(volume_task().training, batch_size=4, mirror=True)
    batch = Batches(as_tensor(pixels), PLAIN, training, seed=5).at(2)
    still = Batches(as_tensor(pixels), PLAIN, msgspec.structs.replace(training, augment=False), seed=5).at(2)
    assert torch.equal(still.chosen_B, batch.chosen_B)
    assert torch.allclose(still.x_BCHW * 255, as_tensor(pixels)[still.chosen_B].float())
    moved_masks = batch.of(torch.from_numpy(masks))
    assert moved_masks.shape == (4, 2, *SIZE)
    assert not torch.equal(moved_masks, torch.from_numpy(masks)[batch.chosen_B].float())
    inside, outside = moved_masks[:, :1] > 0.99, moved_masks.sum(dim=1, keepdim=True) < 0.01
    bright = batch.x_BCHW[inside].mean() - batch.x_BCHW[outside].mean()
    assert bright > 0.5  # the mask lies where its box went


def test_variation_of_a_volume_is_a_turn_in_the_plane_of_its_slices() -> None:
    rows_B34, _, _ = variation(5, 3, mirror=False, seed=1)
    rows_B23, _, _ = variation(5, 2, mirror=False, seed=1)
    assert torch.equal(rows_B34[:, :2, :2], rows_B23[:, :, :2])
    assert torch.equal(rows_B34[:, :2, 3], rows_B23[:, :, 2])
    scale_B = torch.linalg.det(rows_B23[:, :, :2]).sqrt()
    assert torch.allclose(rows_B34[:, 2, 2], scale_B)
    assert not rows_B34[:, 2, :2].any()
    assert not rows_B34[:, :2, 2].any()
    unchanged_134 = torch.eye(4)[None, :3]
    volume = torch.rand(1, 1, *SIZE)
    assert torch.allclose(moved(volume, unchanged_134), volume, atol=1e-5)


def test_patches_are_cut_from_volume_and_mask_at_one_place_and_reach_both_ends() -> None:
    place = torch.arange(math.prod(SIZE)).reshape(1, 1, *SIZE).float()
    training = msgspec.structs.replace(volume_task().training, batch_size=64, augment=False)
    batch = Batches(torch.zeros(1, 1, *SIZE, dtype=torch.uint8), PLAIN, training, seed=1, patch=(4, 16, 8)).at(0)
    assert batch.x_BCHW.shape == (64, 1, 4, 16, 8)
    cut = batch.of(place)
    first_depth, first_width = cut[:, 0, 0, 0, 0] // (16 * 12), cut[:, 0, 0, 0, 0] % 12
    assert set(first_depth.tolist()) == {0, 1, 2, 3, 4}
    assert set(first_width.tolist()) == {0, 1, 2, 3, 4}


def _surface_distances(seen: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """HD95 (the larger of both ways) and ASSD, from scipy."""
    both = []
    for one, other in ((seen, mask), (mask, seen)):
        edge, other_edge = one & ~binary_erosion(one), other & ~binary_erosion(other)
        both.append(distance_transform_edt(~other_edge, sampling=spacing)[edge])
    assd = np.concatenate(both).mean()
    return max(np.percentile(way, 95) for way in both), float(assd)


def test_distances_of_volumes_are_in_mm_and_those_of_scipy() -> None:
    task, spacing = volume_task(), (2.0, 1.0, 0.5)
    _, masks = boxes(2, seed=1)
    seen = np.roll(masks, (1, 2), axis=(2, 4))
    scores = score_volumes(torch.from_numpy(seen * 2.0 - 1), torch.from_numpy(masks), task)
    expected = np.array(
        [[_surface_distances(seen[n, s] > 0, masks[n, s] > 0, spacing) for s in (0, 1)] for n in (0, 1)]
    )
    assert scores.unit == "mm"
    assert scores.hd95 == pytest.approx(expected[..., 0].mean(), rel=1e-5)
    assert scores.assd == pytest.approx(expected[..., 1].mean(), rel=1e-5)
    assert scores.structures["posterior"]["assd"] == pytest.approx(expected[:, 1, 1].mean(), rel=1e-5)
    assert scores.figures()["hd95_anterior"] == pytest.approx(expected[:, 0, 0].mean(), rel=1e-5)


def test_a_missed_structure_is_as_far_away_as_the_volume_is_long() -> None:
    task = volume_task()
    masks = torch.zeros(1, 2, *SIZE, dtype=torch.uint8)
    masks[0, 0, 2, 3, 4] = 1  # one is there and not seen; the other is neither there nor seen
    scores = score_volumes(torch.full((1, 2, *SIZE), -5.0), masks, task)
    diagonal = math.hypot(8 * 2.0, 16 * 1.0, 12 * 0.5)
    assert scores.structures["anterior"] == {
        "dice": 0.0,
        "hd95": pytest.approx(diagonal),
        "assd": pytest.approx(diagonal),
    }
    assert scores.structures["posterior"] == {"dice": 1.0, "hd95": 0.0, "assd": 0.0}


def test_a_network_that_sees_patches_answers_whole_volumes_by_a_sliding_window() -> None:
    task = volume_task()
    patched = msgspec.structs.replace(task.image, patch=(8, 8, 12))
    whole = seeded_network(task.small_network, task, 1)
    sliding = seeded_network(task.small_network, msgspec.structs.replace(task, image=patched), 1)
    pixels = as_tensor(boxes(2, seed=2)[0])
    answered = answers(sliding, pixels, PLAIN)
    assert answered.shape == (2, 2, *SIZE)
    corner = whole(PLAIN(pixels)[..., :8, :])[..., 0, 0, 0]  # seen by the first window alone
    assert torch.allclose(answered[..., 0, 0, 0], corner, atol=1e-4)


def test_the_patch_is_what_the_memory_allows() -> None:
    big = ImageSettings(depth=128, height=160, width=96)
    task = volume_task(image=big)
    enough = estimated_mb(task, task.large_network, big.size)
    roomy = msgspec.structs.replace(task.training, memory_mb=enough)
    assert chosen_patch(msgspec.structs.replace(task, training=roomy)) is None
    tight = msgspec.structs.replace(task, training=msgspec.structs.replace(task.training, memory_mb=enough // 2 + 250))
    patch = chosen_patch(tight)
    assert patch is not None
    assert all(side % 4 == 0 and side <= whole for side, whole in zip(patch, big.size, strict=True))
    assert estimated_mb(task, task.large_network, patch) <= tight.training.memory_mb
    check_kind(msgspec.structs.replace(tight, image=msgspec.structs.replace(big, patch=patch)))
    assert chosen_patch(msgspec.structs.replace(task, image=msgspec.structs.replace(big, patch=(8, 8, 8)))) == (8, 8, 8)


def test_memory_that_is_too_little_for_any_patch_is_said() -> None:
    training = msgspec.structs.replace(volume_task().training, memory_mb=300)
    with pytest.raises(UserError, match="memory_mb = 300 is too little"):
        chosen_patch(volume_task(training=training))
