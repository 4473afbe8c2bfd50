"""The heat map: where hiding a part lowers the answer, laid over the image. numpy and Pillow only.

H x W = pixels as shown, h x w = pixels as the model sees them, K = channels.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SMALLEST_SIDE = 336  # smaller images are shown larger, pixel by pixel: nothing is smoothed into them
MOST_OPAQUE = 0.62
FULL_COLOUR_NATS = math.log(2)  # at least, for the strongest place: half the odds
# Lightness rises evenly along these colours (matplotlib's plasma, CC0): more looks like more, also in grey and to
# the colour-blind; and bright yellow is no colour of bone.
COLOURS = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], np.float32)


def heat(falls_hw: Floats) -> Floats:
    """[h, w], 0 to 1, of the falls of the log-odds in nats (see occlusion.py).

    The strongest place of the image is 1, if hiding it at least halves the odds; weaker evidence is not blown up.

    >>> heat(np.array([[0.0, 1.5, 3.0]], np.float32)).tolist()
    [[0.0, 0.5, 1.0]]
    """
    return np.asarray(falls_hw / max(float(falls_hw.max()), FULL_COLOUR_NATS), np.float32)


def colours_of(heat: Floats) -> Floats:
    """RGB 0..255 of heat 0..1; an axis of three is added."""
    stops = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(heat, stops, COLOURS[:, i]) for i in range(3)], axis=-1).astype(np.float32)


def overlay(shown_HWK: Pixels, heat_hw: Floats) -> Pixels:
    """The image with the heat over it, uint8 [H, W, 3]; where there is no heat, the image is untouched."""
    height, width = shown_HWK.shape[:2]
    # bicubic: the edges of the patches are no borders of anything
    smooth = Image.fromarray(heat_hw).resize((width, height), Image.Resampling.BICUBIC)
    return _blend(np.broadcast_to(shown_HWK, (height, width, 3)), np.clip(np.asarray(smooth, np.float32), 0, 1))


def _blend(image_HW3: Pixels, heat_HW: Floats) -> Pixels:
    opacity_HW1 = (MOST_OPAQUE * heat_HW**1.2)[:, :, np.newaxis]
    mixed_HW3 = image_HW3.astype(np.float32) * (1 - opacity_HW1) + colours_of(heat_HW) * opacity_HW1
    return np.asarray(np.rint(mixed_HW3), np.uint8)


def enlarged(shown_HWK: Pixels) -> Pixels:
    """A small image a whole number of times larger, each pixel a square."""
    factor = -(-SMALLEST_SIDE // max(shown_HWK.shape[:2]))
    return shown_HWK.repeat(factor, axis=0).repeat(factor, axis=1)


def data_uri(pixels_HWK: Pixels, *, photo: bool = False) -> str:
    """A picture that stands inside an HTML file: PNG, exact, or JPEG if `photo`, a fraction of the size."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels_HWK[:, :, 0] if pixels_HWK.shape[2] == 1 else pixels_HWK)
    if photo:
        image.save(buffer, "JPEG", quality=90, subsampling=0)
    else:
        image.save(buffer, "PNG", optimize=True)
    return f"data:image/{'jpeg' if photo else 'png'};base64," + base64.b64encode(buffer.getvalue()).decode()


def legend_colours() -> list[str]:
    """From no heat to the most, for CSS: what the heat makes of a middle grey."""
    grey_HW3 = np.full((1, 9, 3), 128, np.uint8)
    colours = _blend(grey_HW3, np.linspace(0, 1, 9, dtype=np.float32)[np.newaxis])[0]
    return [f"rgb({red} {green} {blue})" for red, green, blue in colours.tolist()]
