"""Volumes to another number of voxels, one axis after the other, in numpy alone.

The filter is a triangle: linear between neighbours when there are more voxels afterwards, and as wide as the new voxel
when there are fewer, so that nothing is skipped. The volume keeps its extent. Every voxel is a sum in a fixed order of
few products, not a matrix product: the same bits on every machine. D, H, W = slices, rows, columns.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ayni.data.eight_bits import Values


def resampled(values_DHW: Values, lengths: tuple[int, ...]) -> Values:
    """float32 of these `lengths`, or the very array where that is its shape. Axes that shrink most come first: what
    is in between stays small.

    >>> resampled(np.array([[[0, 10]]], np.uint8), (1, 1, 4)).tolist()
    [[[0.0, 2.5, 7.5, 10.0]]]
    >>> resampled(np.array([[[0, 0, 8, 8]]], np.uint8), (1, 1, 2)).tolist()
    [[[1.1428571939468384, 6.857142925262451]]]
    """
    for axis in sorted(range(3), key=lambda axis: lengths[axis] / values_DHW.shape[axis]):
        if lengths[axis] != values_DHW.shape[axis]:
            values_DHW = _along(values_DHW, axis, lengths[axis])
    return values_DHW


def _along(values_DHW: Values, axis: int, new_length: int) -> Values:
    """One plane after the other: what is computed in between stays small."""
    other = 1 if axis == 0 else 0
    shape = [*values_DHW.shape[:axis], new_length, *values_DHW.shape[axis + 1 :]]
    out = np.empty(shape, np.float32)
    sources, targets = (np.moveaxis(array, (axis, other), (0, 1)) for array in (values_DHW, out))
    voxels_TN, weights_TN = _taps(values_DHW.shape[axis], new_length)
    for number in range(sources.shape[1]):
        plane = sources[:, number].astype(np.float32)
        total = weights_TN[0][:, np.newaxis] * plane[voxels_TN[0]]
        for voxels_N, weights_N in zip(voxels_TN[1:], weights_TN[1:], strict=True):
            total += weights_N[:, np.newaxis] * plane[voxels_N]
        targets[:, number] = total
    return out


def _taps(length: int, new_length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each of N new voxels, the T old ones that it is made of and their weights, which sum to 1."""
    scale = length / new_length
    width = max(scale, 1.0)
    centres_N = (np.arange(new_length) + 0.5) * scale
    first_N = np.floor(centres_N - width).astype(np.int64)
    voxels_TN = first_N + np.arange(2 * math.ceil(width) + 1)[:, np.newaxis]
    weights_TN = np.clip(1 - np.abs(voxels_TN + 0.5 - centres_N) / width, 0, None)
    weights_TN[(voxels_TN < 0) | (voxels_TN >= length)] = 0
    weights_TN /= weights_TN.sum(axis=0)
    return np.clip(voxels_TN, 0, length - 1), weights_TN.astype(np.float32)
