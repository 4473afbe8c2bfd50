"""Outlines of masks over an image: one colour per structure, told apart by the colour-blind too. numpy only.

S = structures, H x W = pixels as shown, K = channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

THICKNESS = 2
STRIPE = 4  # pixels: where outlines lie on one another, their colours take turns
# Okabe and Ito (2008), "Color Universal Design", without black; the ones that stand out on grey come first.
COLOURS: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (204, 121, 167),
    (0, 158, 115),
    (213, 94, 0),
    (0, 114, 178),
)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def colour_of(number: int) -> tuple[int, int, int]:
    """Of the structure with this number, from 0; after seven they begin again."""
    return COLOURS[number % len(COLOURS)]


def css_colour(number: int) -> str:
    """
    >>> css_colour(0)
    'rgb(230 159 0)'
    """
    return "rgb({} {} {})".format(*colour_of(number))


def outline(mask_HW: Mask, thickness: int = THICKNESS) -> Mask:
    """The mask's own pixels that are less than `thickness` steps from the outside (beyond the image is outside).

    >>> outline(np.ones((3, 4), np.bool_), 1).astype(int).tolist()
    [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    """
    inner_HW = mask_HW
    for _ in range(thickness):
        inner_HW = _eroded(inner_HW)
    return mask_HW & ~inner_HW


def _eroded(mask_HW: Mask) -> Mask:
    """Those whose four neighbours are in the mask too."""
    framed = np.pad(mask_HW, 1)
    return mask_HW & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]


def draw_outlines(shown_HWK: Pixels, masks: Sequence[Mask]) -> Pixels:
    """The image with the outline of each mask [H, W], uint8 [H, W, 3]; all other pixels are untouched."""
    height, width = shown_HWK.shape[:2]
    drawn_HW3 = np.broadcast_to(shown_HWK, (height, width, 3)).copy()
    lines_SHW = [outline(mask_HW) for mask_HW in masks]
    for number, line_HW in enumerate(lines_SHW):
        drawn_HW3[line_HW] = colour_of(number)
    y, x = np.ogrid[:height, :width]
    turn_HW = (x + y) // STRIPE % max(1, len(masks))
    for number, line_HW in enumerate(lines_SHW):
        drawn_HW3[line_HW & (turn_HW == number)] = colour_of(number)
    return drawn_HW3
