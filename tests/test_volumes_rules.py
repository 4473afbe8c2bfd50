"""What a network sees of a volume: resampling, greys, size and masks by the rules "volume-1", and the way back."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ayni.data.resample import resampled
from ayni.data.volumes import (
    VOLUME_RULES,
    Volume,
    as_seen,
    at_least,
    back_to_file,
    label_planes,
    padded,
    place_in,
    plane_to_file,
)
from ayni.errors import DataError
from ayni.task import ImageSettings

Array = np.ndarray[Any, np.dtype[Any]]
STRAIGHT = ((0, 1), (1, 1), (2, 1))
TURNED = ((2, -1), (0, 1), (1, -1))  # file axes: from head to feet, to the right, from front to back


def volume(values_DHW: Array, spacing_mm: tuple[float, float, float] = (1, 1, 1), turn: Any = STRAIGHT) -> Volume:
    return Volume(values_DHW, spacing_mm, np.diag([*spacing_mm[::-1], 1.0]), turn, "NIfTI")


def settings(*size: int, spacing: tuple[float, float, float] | None = (1, 1, 1)) -> ImageSettings:
    return ImageSettings(depth=size[0], height=size[1], width=size[2], spacing_mm=spacing)


def noise(*shape: int) -> Array:
    return np.random.default_rng(1).random(shape).astype(np.float32)


def by_pillow(values_DHW: Array, lengths: tuple[int, ...]) -> Array:
    """The same filter, written by others, along one axis after the other."""
    for axis, length in enumerate(lengths):
        planes = np.moveaxis(values_DHW, axis, 2)
        scaled = [
            np.asarray(Image.fromarray(plane).resize((length, plane.shape[0]), Image.Resampling.BILINEAR))
            for plane in np.ascontiguousarray(planes)
        ]
        values_DHW = np.moveaxis(np.stack(scaled), 2, axis)
    return values_DHW


@pytest.mark.parametrize("lengths", [(9, 12, 15), (18, 24, 30), (4, 5, 7), (3, 29, 15), (1, 1, 1), (9, 7, 16)])
def test_resampling_agrees_with_pillows_triangle(lengths: tuple[int, ...]) -> None:
    values_DHW = noise(9, 12, 15)
    assert np.abs(resampled(values_DHW, lengths) - by_pillow(values_DHW, lengths)).max() < 1e-6


def test_more_voxels_are_linear_between_neighbours_and_the_extent_stays() -> None:
    values_DHW = noise(5, 6, 7)
    by_scipy = ndimage.zoom(values_DHW, 3, order=1, mode="nearest", grid_mode=True)
    assert np.abs(resampled(values_DHW, (15, 18, 21)) - by_scipy).max() < 1e-6


def test_the_task_says_the_spacing_and_the_sides_are_rounded() -> None:
    seen = as_seen(volume(noise(10, 33, 40), (2.5, 0.9, 0.5)), settings(8, 8, 8))
    assert seen.shape == (25, 30, 20)  # 25, 29.7, 20
    assert seen.dtype == np.uint8


def test_the_brightest_half_percent_does_not_decide_the_greys() -> None:
    """Of 1001 voxels 0 .. 1000 the percentiles are 5 and 995: 500 is in the middle, and a hot voxel changes nothing."""
    values_DHW = np.arange(1001, dtype=np.int16).reshape(7, 11, 13)
    values_DHW[-1, -1, -1] = 30000
    seen = as_seen(volume(values_DHW), settings(8, 16, 16)).reshape(-1)
    assert seen[[0, 5, 500, 995, 1000]].tolist() == [0, 0, 128, 255, 255]
    assert seen[254] == 64  # 255 * 249 / 990 = 64.1


def test_where_the_percentiles_are_equal_minimum_and_maximum_decide() -> None:
    values_DHW = np.zeros((10, 10, 10), np.float32)
    values_DHW[0, 0, :2] = 7, 14
    assert as_seen(volume(values_DHW), settings(16, 16, 16))[0, 0, :3].tolist() == [128, 255, 0]
    assert not as_seen(volume(np.full((4, 4, 4), 9.0)), settings(8, 8, 8)).any()


def test_without_a_spacing_voxels_are_taken_as_they_are_and_eight_bits_pass_unchanged() -> None:
    values_DHW = np.arange(60, 180, dtype=np.uint8).reshape(4, 5, 6)
    no_spacing = settings(8, 8, 8, spacing=None)
    assert np.array_equal(as_seen(volume(values_DHW, (3, 1, 1)), no_spacing), values_DHW)
    assert as_seen(volume(values_DHW), settings(8, 8, 8)).max() == 255
    seen = as_seen(volume(values_DHW.astype(np.int16), (3, 1, 1)), no_spacing)
    assert (seen.shape, seen.min(), seen.max()) == ((4, 5, 6), 0, 255)


def test_the_rules_have_a_version_and_these_bits_belong_to_it() -> None:
    """If this changes, models that were trained by the old rules see other voxels: VOLUME_RULES must change too."""
    index_DHW = np.indices((12, 20, 17))
    values_DHW = ((index_DHW * np.array([37, 101, 53]).reshape(3, 1, 1, 1)).sum(axis=0) % 509).astype(np.int16)
    seen = as_seen(volume(values_DHW, (3.0, 1.1, 0.8)), settings(8, 8, 8, spacing=(1.5, 1.5, 1.5)))
    assert VOLUME_RULES == "volume-1"
    assert seen.shape == (24, 15, 9)
    assert hashlib.sha256(seen.tobytes()).hexdigest()[:16] == "73bd3e9a3c1e8ebc"


def test_a_volume_is_centred_in_the_tasks_size() -> None:
    voxels = np.full((3, 4, 8), 9, np.uint8)
    whole = padded(voxels, settings(8, 8, 8))
    assert whole.shape == (8, 8, 8)
    assert np.argwhere(whole).min(axis=0).tolist() == [2, 2, 0]
    assert (whole.sum(), whole[2:5, 2:6].min()) == (9 * 96, 9)
    assert padded(np.stack([voxels, voxels]), settings(8, 8, 8)).shape == (2, 8, 8, 8)
    assert np.array_equal(whole[place_in((3, 4, 8), (8, 8, 8))], voxels)


def test_a_larger_volume_is_an_error_that_says_what_it_would_need() -> None:
    told = r"north\.nii has 3 x 12 x 8 voxels .* takes 8 x 8 x 8\. .* of at least 8 x 12 x 8\."
    with pytest.raises(DataError, match=told):
        padded(np.zeros((3, 12, 8), np.uint8), settings(8, 8, 8), "north.nii")
    with pytest.raises(DataError, match=r"would have 200000 x 200000 x 200000 voxels"):
        as_seen(volume(noise(2, 2, 2), (1e3, 1e3, 1e3)), settings(8, 8, 8, spacing=(0.01, 0.01, 0.01)))


def test_a_window_larger_than_a_volume_is_filled_up_and_found_again() -> None:
    voxels = np.arange(1, 61, dtype=np.uint8).reshape(3, 4, 5)
    whole, place = at_least(voxels, (8, 2, 5))
    assert whole.shape == (8, 4, 5)
    assert np.array_equal(whole[place], voxels)
    assert whole.sum() == voxels.sum()


def test_a_voxel_is_a_structures_if_that_covers_half_of_it() -> None:
    labels = np.zeros((2, 2, 12), np.uint8)
    labels[..., 3:6], labels[..., 9:] = 1, 2
    planes = label_planes(volume(labels), ("anterior", "posterior"), settings(8, 8, 8, spacing=(1, 1, 3)))
    assert planes.shape == (2, 2, 2, 4)
    assert planes[:, 0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    same = label_planes(volume(labels), ("any",), settings(8, 8, 16))
    assert np.array_equal(same[0], labels > 0)
    finer = label_planes(volume(labels), ("any",), settings(8, 8, 8, spacing=(1, 1, 0.5)))
    assert finer[0, 0, 0].tolist() == [0] * 6 + [1] * 6 + [0] * 6 + [1] * 6
    with pytest.raises(DataError, match=r"m\.nii holds the value 3; this task has the structures 1 to 2"):
        label_planes(volume(labels + 1), ("a", "b"), settings(8, 8, 8), "m.nii")


@pytest.mark.parametrize("length", [6, 18, 30, 42, 66, 78])
def test_a_border_through_the_middle_of_a_voxel_leaves_it_to_the_structure(length: int) -> None:
    """Exactly half of the middle one of three; sums of thirds and sevenths may miss a half by their rounding."""
    labels = np.zeros((2, 2, length), np.uint8)
    labels[..., length // 2 :] = 1
    planes = label_planes(volume(labels), ("one",), settings(8, 8, 8, spacing=(1, 1, length / 3)))
    assert planes[0, 0, 0].tolist() == [0, 1, 1]


def test_a_structure_keeps_its_volume_and_its_place_in_millimetres() -> None:
    d, h, w = np.indices((20, 40, 40))
    ball = (((d + 0.5) * 2.4 - 24) ** 2 + ((h + 0.5) - 18) ** 2 + ((w + 0.5) - 22) ** 2 < 12**2).astype(np.uint8)
    plane = label_planes(volume(ball, (2.4, 1, 1)), ("ball",), settings(8, 8, 8, spacing=(1.5, 1.5, 1.5)))[0]
    step = np.array([20 * 2.4, 40, 40]) / plane.shape
    assert plane.sum() * step.prod() == pytest.approx(ball.sum() * 2.4, rel=0.02)
    centre = (np.argwhere(plane).mean(axis=0) + 0.5) * step
    assert centre == pytest.approx([24, 18, 22], abs=0.1)


@pytest.mark.parametrize("turn", [STRAIGHT, TURNED])
def test_what_was_found_goes_back_to_the_files_grid(turn: Any) -> None:
    smooth_DHW = ndimage.gaussian_filter(noise(12, 24, 20), 3).astype(np.float32)
    here = volume(smooth_DHW, (2, 1, 1), turn)
    there = resampled(smooth_DHW, (24, 24, 20))
    back = back_to_file(np.stack([there, 1 - there]), here)
    expected = smooth_DHW.transpose(2, 1, 0) if turn == STRAIGHT else smooth_DHW[::-1, ::-1].transpose(0, 2, 1)
    assert back.shape == (2, *here.file_shape) == (2, *expected.shape)
    assert np.abs(back[0] - expected).max() < 0.02 < np.ptp(expected)
    assert np.abs(back[0] + back[1] - 1).max() < 1e-5
    assert np.array_equal(plane_to_file(there, here), back[0])


def test_seeing_a_volume_takes_little_more_than_its_float_array() -> None:
    """All that is there at once, in bytes per voxel: 4 of the array in floats, and at most 6 more."""
    here = volume((noise(64, 128, 96) * 1000).astype(np.int16), (1.1, 1, 1))
    tracemalloc.start()
    seen = as_seen(here, settings(8, 8, 8, spacing=(1.0, 1.02, 0.98)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10 * seen.size
