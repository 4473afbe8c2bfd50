"""A mask as the network learns it: one plane of 0 and 1 per structure, of the network's size.

S = structures, H = height, W = width, h and w = the same after scaling.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ayni.data.eight_bits import Pixels, Values
from ayni.data.images import placement
from ayni.errors import DataError
from ayni.task import ImageSettings

ROUNDING = 1e-4  # a share of a half that was added up from thirds may miss it by so little


def planes_of(values_HW: Values, structures: tuple[str, ...], name: str) -> Pixels:
    """Whole numbers to uint8 0/1 [S, H, W]. With one structure all above 0 is it; with several, k is the k-th.

    Raises DataError, in which `name` stands for the mask.

    >>> planes_of(np.array([[0, 1], [2, 2]]), ("anterior", "posterior"), "m.png").tolist()
    [[[0, 1], [0, 0]], [[0, 0], [1, 1]]]
    """
    if values_HW.min() < 0:
        raise DataError(f"{name} holds {values_HW.min()}; a mask has no negative numbers, and 0 is background.")
    if len(structures) == 1:
        return (values_HW > 0)[np.newaxis].astype(np.uint8)
    if values_HW.max() > len(structures):
        raise DataError(
            f"{name} holds the value {values_HW.max()}; this task has the structures 1 to {len(structures)} "
            f"({', '.join(structures)}) and 0 for background."
        )
    return np.stack([values_HW == number for number in range(1, len(structures) + 1)]).astype(np.uint8)


def check_planes(planes_SHW: Values, structures: tuple[str, ...], name: str) -> Pixels:
    """Planes that came as such: as many as structures, of 0 and 1. Raises DataError."""
    if len(planes_SHW) != len(structures):
        raise DataError(
            f"{name} has {len(planes_SHW)} planes; this task has {len(structures)} structures "
            f"({', '.join(structures)}). Give one plane per structure, or one mask of whole numbers."
        )
    if not np.isin(planes_SHW, (0, 1)).all():
        raise DataError(f"{name}: a plane per structure holds 0 and 1 only. Give those, or one mask of whole numbers.")
    return planes_SHW.astype(np.uint8)


def prepare_planes(planes_SHW: Pixels, settings: ImageSettings) -> Pixels:
    """Each plane where `prepare` puts its image: uint8 0/1 [S, settings.height, settings.width].

    A pixel is a structure's if that covers at least half of the pixel's area. So a border stays where it was, to half
    a pixel, and a structure keeps its size; taking the nearest pixel instead would keep random crumbs of what is thin.
    What is thinner than half a pixel of the network is lost: it could not be drawn there either.
    """
    height, width = planes_SHW.shape[1:]
    if (height, width) == (settings.height, settings.width):
        return planes_SHW
    top, left, new_height, new_width = placement(height, width, settings)
    canvas = np.zeros((len(planes_SHW), settings.height, settings.width), np.uint8)
    rows_hH, columns_wW = _shares(height, new_height), _shares(width, new_width)
    for number, plane_HW in enumerate(planes_SHW):
        covered_hw = rows_hH @ plane_HW.astype(np.float32) @ columns_wW.T
        canvas[number, top : top + new_height, left : left + new_width] = covered_hw >= 0.5 - ROUNDING
    return canvas


def _shares(length: int, new_length: int) -> npt.NDArray[np.float32]:
    """[new, old]: which share of each new pixel each old pixel covers; every row sums to 1.

    >>> _shares(5, 2).round(1).astype(str).tolist()
    [['0.4', '0.4', '0.2', '0.0', '0.0'], ['0.0', '0.0', '0.2', '0.4', '0.4']]
    """
    edges, step = np.arange(length + 1), length / new_length
    starts = (np.arange(new_length) * step)[:, np.newaxis]
    overlap = np.minimum(starts + step, edges[1:]) - np.maximum(starts, edges[:-1])
    return np.asarray(np.clip(overlap, 0, None) / step, np.float32)
