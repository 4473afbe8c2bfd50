"""Outlines as they are kept: logits per pixel of each structure, bounded in value and in size.

Each structure is a yes or no of its own at each pixel (one sigmoid), so that structures may overlap. `RULES_VERSION`
is part of the version of whatever is kept by these rules: another rule, another version.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from ayni_coordinator.guidance.source import Logits

RULES_VERSION = 1
MAX_LOGIT = 8.0  # a probability of .9997; beyond it only the steps of the 8-bit targets would grow
FINE_SIDE = 64  # what is small in images up to this size would be lost at half of it
Output = Literal["logits", "probabilities"]


def kept_size(height: int, width: int) -> tuple[int, int]:
    """Of the maps of images of this size: half of it; all of it where a side is odd or both are at most 64.

    >>> kept_size(256, 200), kept_size(64, 48), kept_size(99, 300)
    ((128, 100), (64, 48), (99, 300))
    """
    whole = max(height, width) <= FINE_SIDE or height % 2 or width % 2
    return (height, width) if whole else (height // 2, width // 2)


def clipped(values: Logits, output: Output) -> Logits:
    """Logits between -8 and 8 of what a model gave: its logits, or log(p / (1 - p)) of its probabilities."""
    if output == "probabilities":
        least = 1 / (1 + np.exp(np.float32(MAX_LOGIT)))
        inside = np.clip(values, least, 1 - least)
        values = np.log(inside) - np.log1p(-inside)
    limited: Logits = np.clip(values, -MAX_LOGIT, MAX_LOGIT).astype(np.float32)
    return limited


def scaled(logits_BSHW: Logits, height: int, width: int) -> Logits:
    """[B, S, height, width]: bilinear, and a mean over all that falls into a pixel where it gets smaller (Pillow)."""
    if logits_BSHW.shape[2:] == (height, width):
        return logits_BSHW
    maps_NHW = logits_BSHW.reshape(-1, *logits_BSHW.shape[2:])
    sized = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in maps_NHW]
    return np.stack(sized).reshape(*logits_BSHW.shape[:2], height, width)
