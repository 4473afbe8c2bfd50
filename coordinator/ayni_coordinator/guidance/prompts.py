"""Where a foundation model that wants boxes is told to look: rules that see the image and no label.

A box is (left, top, right, bottom) in pixels, with the image's corner as 0, 0. Another rule, or other numbers in one,
is another question to the model: count RULES_VERSION up, it is part of the version that answers are stored under.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ayni_coordinator.guidance.source import Pixels

Rule = Literal["image", "halves", "blobs"]
Boxes = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

RULES_VERSION = 1
HALVES = ((0.05, 0.05, 0.50, 0.95), (0.50, 0.05, 0.95, 0.95))  # parts of width and height: two lungs from the front
MAX_BLOBS = 100  # each costs a tenth of a second; crowded images lose a fifth of their Dice with 30
MIN_BLOB = 1 / 2000  # of the image's area; smaller ones are taken for noise
MARGIN = 0.1  # of a blob's longer side, added on each side of its box


def prompts_for(rule: Rule, grey_HW: Pixels) -> list[Boxes]:
    """One or more sets of boxes_N4. The answer to a set is the union of its masks; sets are opinions to be averaged.

    "image": the whole image. "halves": the whole image, and its left and right half, so that each speaks where the
    other wavers. "blobs": a box around each blob; where there is none, the whole image.
    """
    height, width = grey_HW.shape
    whole_14 = np.array([[0, 0, width, height]], np.float32)
    if rule == "halves":
        return [whole_14, np.array(HALVES, np.float32) * np.array([width, height, width, height], np.float32)]
    if rule == "blobs":
        boxes_N4 = blob_boxes(blobs(grey_HW))
        return [boxes_N4 if len(boxes_N4) else whole_14]
    return [whole_14]


def blobs(grey_HW: Pixels) -> Mask:
    """The brighter or the darker pixels of Otsu's threshold, whichever are fewer: objects fill less than their ground.

    >>> blobs(np.array([[9, 9, 9], [9, 1, 9]], np.uint8)).astype(int).tolist()
    [[0, 0, 0], [0, 1, 0]]
    """
    bright_HW: Mask = grey_HW > otsu_threshold(grey_HW)
    return ~bright_HW if bright_HW.mean() > 0.5 else bright_HW


def otsu_threshold(grey_HW: Pixels) -> int:
    """The grey value that parts the pixels (up to it, above it) into classes that lie farthest apart (Otsu 1979).

    >>> otsu_threshold(np.array([[10, 10, 12, 200, 202]], np.uint8))
    12
    """
    histogram = np.bincount(grey_HW.ravel(), minlength=256).astype(np.float64)
    below, weighted = np.cumsum(histogram), np.cumsum(histogram * np.arange(256))
    apart = np.maximum(below * (below[-1] - below), 1)  # 0 where one class is empty: then the next line gives 0 too
    between = (weighted[-1] * below - below[-1] * weighted) ** 2 / apart
    return int(between.argmax())


def blob_boxes(mask_HW: Mask) -> Boxes:
    """Boxes around the largest MAX_BLOBS connected parts (by sides, not corners), the largest first."""
    height, width = mask_HW.shape
    labels_HW, num_blobs = ndimage.label(mask_HW)
    sizes = np.bincount(labels_HW.ravel(), minlength=num_blobs + 1)[1:]
    places, boxes = ndimage.find_objects(labels_HW), []
    for number in np.argsort(-sizes, kind="stable")[:MAX_BLOBS]:
        rows, columns = places[number]
        if sizes[number] < max(2, MIN_BLOB * mask_HW.size):
            break
        margin = MARGIN * max(rows.stop - rows.start, columns.stop - columns.start)
        left, top = max(0.0, columns.start - margin), max(0.0, rows.start - margin)
        right, bottom = min(float(width), columns.stop + margin), min(float(height), rows.stop + margin)
        boxes.append((left, top, right, bottom))
    return np.array(boxes, np.float32).reshape(-1, 4)
