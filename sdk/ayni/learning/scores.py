"""Answers of a network on a set of images, and figures about them. N = images, C = classes, S = structures."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from monai.metrics import (
    compute_confusion_matrix_metric,
    compute_dice,
    compute_hausdorff_distance,
    compute_roc_auc,
    get_confusion_matrix,
)
from torch import Tensor, nn
from torch.nn import functional

from ayni.learning.batches import Normaliser
from ayni.trained_model import Scores

ANSWER_BATCH = 128
MIN_CALIBRATION_IMAGES = 20
MAX_CALIBRATION_PIXELS = 200_000
COLDEST, HOTTEST = 0.5, 5.0


def answers(network: nn.Module, pixels_NCHW: Tensor, normalise: Normaliser) -> Tensor:
    """Logits [N, C] or [N, S, H, W] of 8-bit images, as they are (nothing is varied)."""
    with torch.no_grad():
        parts = [network(normalise(part)) for part in torch.split(pixels_NCHW, ANSWER_BATCH)]
    return torch.cat(parts)


def score(logits_NC: Tensor, labels_N: Tensor) -> Scores:
    """Area under the ROC curve (mean over classes against the rest) and mean recall; the decision is the argmax.

    Classes without an image count in neither; an area that needs two classes and has one is .5: no information.
    """
    num_classes = logits_NC.shape[1]
    truth_NC = functional.one_hot(labels_N, num_classes)
    there_C = truth_NC.any(dim=0)
    decided_NC = functional.one_hot(logits_NC.argmax(dim=1), num_classes)
    confusion_C4 = get_confusion_matrix(decided_NC, truth_NC).sum(dim=0)
    recall_C = compute_confusion_matrix_metric("sensitivity", confusion_C4)
    auc = 0.5
    if there_C.sum() > 1:
        probabilities_NC = torch.softmax(logits_NC.double(), dim=1)
        auc = float(compute_roc_auc(probabilities_NC[:, there_C], truth_NC[:, there_C], average="macro"))
    return Scores(num_images=len(labels_N), auc=auc, balanced_accuracy=float(recall_C[there_C].mean()))


def dice_of_each(logits_NSHW: Tensor, masks_NSHW: Tensor) -> Tensor:
    """[N]: each image's Dice, the mean over its structures; a structure that is neither there nor seen counts 1."""
    seen_NSHW = (logits_NSHW > 0).to(torch.float32)
    dice_NS: Tensor = compute_dice(seen_NSHW, masks_NSHW.to(torch.float32), ignore_empty=False)
    return dice_NS.mean(dim=1)


def score_masks(logits_NSHW: Tensor, masks_NSHW: Tensor, *, distances: bool = False) -> Scores:
    """Dice, and with `distances` (slow) HD95 too; `Scores` says what empty masks count."""
    dice = float(dice_of_each(logits_NSHW, masks_NSHW).mean())
    hd95 = float(_hd95_of_each(logits_NSHW > 0, masks_NSHW > 0).mean()) if distances else None
    return Scores(num_images=len(masks_NSHW), dice=dice, hd95=hd95)


def _hd95_of_each(seen_NSHW: Tensor, masks_NSHW: Tensor) -> Tensor:
    """[N, S] in pixels."""
    diagonal = math.hypot(*masks_NSHW.shape[2:])
    num_empty_NS = (~seen_NSHW.any(dim=(2, 3))).int() + (~masks_NSHW.any(dim=(2, 3))).int()
    distance_NS = torch.where(num_empty_NS == 2, 0.0, diagonal).double()
    for n, s in torch.nonzero(num_empty_NS == 0).tolist():  # MONAI warns of empty masks: it is not asked about them
        pair = (seen_NSHW[n : n + 1, s : s + 1], masks_NSHW[n : n + 1, s : s + 1])
        distance_NS[n, s] = compute_hausdorff_distance(*pair, include_background=True, percentile=95).item()
    return distance_NS


def calibration_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """What to divide the logits by so that held-out images are least surprising (Guo et al. 2017), .5 to 5.

    1 if there are too few images to say, or all are of one class.
    """
    if len(labels_N) < MIN_CALIBRATION_IMAGES or len(torch.unique(labels_N)) < 2:
        return 1.0
    return _least_surprising(lambda t: functional.cross_entropy(logits_NC.double() / t, labels_N).item())


def mask_calibration_temperature(logits_NSHW: Tensor, masks_NSHW: Tensor) -> float:
    """The same for the pixels of held-out images (an even choice of at most 200,000 of them)."""
    if len(masks_NSHW) < MIN_CALIBRATION_IMAGES or len(torch.unique(masks_NSHW)) < 2:
        return 1.0
    every = -(-masks_NSHW.numel() // MAX_CALIBRATION_PIXELS)
    logits_P, masks_P = logits_NSHW.flatten()[::every].double(), masks_NSHW.flatten()[::every].double()
    return _least_surprising(lambda t: functional.binary_cross_entropy_with_logits(logits_P / t, masks_P).item())


def _least_surprising(surprise: Callable[[float], float]) -> float:
    candidates_T: list[float] = torch.logspace(0, 1, 121, dtype=torch.float64).mul(COLDEST).tolist()
    best: float = min(candidates_T, key=surprise)
    return round(best, 4)
