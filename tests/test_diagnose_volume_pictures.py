"""Pictures and sections of volumes: which way is up, where the planes cross, and words that a person reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ayni_export.report_volumes import outlined_volume_entry, volume_words
from ayni_export.reported import ReportedStructure
from ayni_export.three_planes import LONGEST_SIDE, centre_of, three_planes
from ayni_export.volume_answer import OutlinedVolume, VolumeFile, outlined

SHAPE = (4, 6, 10)  # slices, rows, columns
MM = (5.0, 1.0, 2.0)


def test_head_and_front_are_at_the_top_and_the_patients_right_is_at_the_left() -> None:
    values = np.zeros(SHAPE, np.float32)
    values[3, :, :], values[:, 5, :], values[:, :, 9] = 100, 200, 300  # the head, the front, the right side
    axial, coronal, sagittal = three_planes(values, (), MM, (1, 2, 3))
    assert [plane.name for plane in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert [plane.edges for plane in (axial, coronal, sagittal)] == ["RLAP", "RLHF", "APHF"]
    for plane, top_is, left_is in ((axial, 200, 300), (coronal, 100, 300), (sagittal, 100, 200)):
        shown = plane.shown_hw1[..., 0].astype(int)
        height, width = shown.shape
        assert shown[height // 2, width // 2] == shown[-1, -1] == 0
        assert shown[0, width // 2] == pytest.approx(255 * top_is / 300, abs=1)
        assert shown[height // 2, 0] == pytest.approx(255 * left_is / 300, abs=1)


def test_all_three_pictures_have_one_scale_in_mm() -> None:
    planes = three_planes(np.arange(240.0).reshape(SHAPE), (), MM, (0, 0, 0))
    # 20 mm from feet to head, 6 from back to front, 20 from left to right: 22.4 pixels for each mm
    assert LONGEST_SIDE / 20 == 22.4
    assert [plane.shown_hw1.shape[:2] for plane in planes] == [(134, 448), (448, 448), (448, 134)]
    assert [(plane.number, plane.num_slices) for plane in planes] == [(1, 4), (1, 6), (1, 10)]


def test_masks_are_cut_turned_and_scaled_as_their_volume() -> None:
    mask = np.zeros(SHAPE, np.bool_)
    mask[1:3, 2:4, 5:9] = True
    planes = three_planes(mask.astype(np.uint8) * 255, (mask,), MM, (2, 3, 6))
    for plane in planes:
        np.testing.assert_array_equal(plane.masks[0], plane.shown_hw1[..., 0] > 0)
        assert 0.05 < plane.masks[0].mean() < 0.5


def test_a_large_volume_is_shown_smaller_and_half_a_pixel_of_a_mask_counts() -> None:
    values = np.zeros((4, 4, 896), np.uint8)
    mask = np.zeros(values.shape, np.bool_)
    mask[:, :, 0:3] = True  # one and a half of the picture's pixels
    plane = three_planes(values, (mask,), (1.0, 1.0, 1.0), (0, 0, 0))[0]
    assert plane.shown_hw1.shape == (2, 448, 1)
    assert np.flatnonzero(plane.masks[0][0]).tolist() == [446, 447]
    assert not plane.in_squares


def test_the_planes_cross_in_what_was_found_also_if_its_middle_is_empty() -> None:
    found = np.zeros(SHAPE, np.bool_)
    assert centre_of(found, MM) == (2, 3, 5)
    found[1, 2, 3] = True
    assert centre_of(found, MM) == (1, 2, 3)
    found[:] = False
    found[0, 0, [0, 9]] = found[2, 0, 5] = True  # its middle (2 / 3, 0, 14 / 3): 6.7 mm from the last, 9.3 and 9.9 mm
    assert centre_of(found, MM) == (2, 0, 5)


def test_a_voxel_of_two_structures_goes_to_the_likelier_and_counts_for_both() -> None:
    one = np.array([[[0.5, 0.8, 0.49, 0.9]]], np.float32)
    two = np.array([[[0.6, 0.7, 0.2, 0.9]]], np.float32)
    found = outlined([one, two], ("one", "two"))
    assert found.labels_DHW.tolist() == [[[2, 1, 0, 1]]]  # at a draw, the first
    assert [(each.num_voxels, each.num_sure) for each in found.structures] == [(3, 1), (3, 1)]
    assert found.num_shared == 3
    assert [each.share for each in found.structures] == [0.75, 0.75]


@pytest.mark.parametrize(("highest", "num_pictures"), [(0.4, 3), (0.6, 6)])
def test_where_nothing_is_outlined_each_cut_is_shown_once(highest: float, num_pictures: int) -> None:
    volume = np.zeros((2, 3, 4), np.float32)
    found = outlined([volume + np.float32(highest)], ("one",))
    planes = three_planes(volume, found.masks, MM, (0, 0, 0))
    file = VolumeFile(Path("v.nii"), "", (4, 3, 2), MM, 1.0, "NIfTI", True)
    answer = OutlinedVolume(file, found.structures, 0, b"", planes, 1, False)
    section = outlined_volume_entry(answer, 1, "masks/v.nii.gz").section
    assert section.count("<img") == num_pictures
    assert ("Drawn by a program" in section) == (num_pictures == 6)
    assert '<p class="meaning"></p>' not in section


@pytest.mark.parametrize(
    ("voxels", "mm3", "said"),
    [
        (0, 0.0, "nothing outlined"),
        (12, 3.456, "3.46 mm³, 12 voxels"),
        (999, 999.4, "999 mm³, 999 voxels"),
        (3421, 3421.0, "3,421 mm³ (3.42 ml), 3,421 voxels"),
        (2_000_000, 1_234_567.0, "1,234,567 mm³ (1,235 ml), 2,000,000 voxels"),
    ],
)
def test_volumes_in_words(voxels: int, mm3: float, said: str) -> None:
    structure = ReportedStructure(mask="", voxels=voxels, volume_mm3=mm3, share=0.1, highest_probability=1.0)
    assert volume_words(structure, ", ") == said
