"""NIfTI volumes as they come: which way round they lie, their numbers, and what is refused. nibabel is the judge."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from ayni.data.volumes import back_to_file, read_volume

Array = np.ndarray[Any, np.dtype[Any]]
TURNS = [(order, ways) for order in itertools.permutations(range(3)) for ways in itertools.product((1, -1), repeat=3)]


def some_voxels(shape: tuple[int, ...] = (4, 5, 6), dtype: Any = np.int16, seed: int = 3) -> Array:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def saved(path: Path, values: Array, affine: Array | None = None, **header: Any) -> Path:
    image = nibabel.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def turned_affine(order: tuple[int, ...], ways: tuple[int, ...]) -> Array:
    """File axis k runs along `order[k]`, at 1, 2 or 3 mm a voxel, tilted a little."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (to, way) in enumerate(zip(order, ways, strict=True)):
        affine[to, axis] = way * (axis + 1.0)
    tilt, (sine, cosine) = np.eye(4), (np.sin(0.2), np.cos(0.2))
    tilt[:2, :2] = [[cosine, -sine], [sine, cosine]]
    affine[:3, 3] = (-7, 5, 11)
    return np.asarray(tilt @ affine)


@pytest.mark.parametrize(("order", "ways"), TURNS)
def test_every_turn_of_a_file_ends_as_nibabels_canonical_and_goes_back(
    tmp_path: Path, order: tuple[int, ...], ways: tuple[int, ...]
) -> None:
    values_XYZ, affine = some_voxels(), turned_affine(order, ways)
    volume = read_volume(saved(tmp_path / "v.nii", values_XYZ, affine))
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values_XYZ, affine))
    assert np.array_equal(volume.values_DHW, np.asarray(canonical.dataobj).transpose(2, 1, 0))
    assert volume.spacing_mm == pytest.approx(canonical.header.get_zooms()[::-1], rel=1e-5)
    assert np.allclose(volume.turned_affine, canonical.affine, atol=1e-4)
    assert np.allclose(volume.affine, affine, atol=1e-5)
    assert volume.file_shape == values_XYZ.shape
    back = back_to_file(volume.values_DHW.astype(np.float32)[np.newaxis], volume)
    assert back.dtype == np.float32
    assert np.array_equal(back[0], values_XYZ)
