"""Answers of a network on a set of images, and figures about them. N = images, C = classes, S = structures."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from monai.inferers import sliding_window_inference
from monai.metrics import (
    compute_average_surface_distance,
    compute_confusion_matrix_metric,
    compute_dice,
    compute_hausdorff_distance,
    compute_roc_auc,
    get_confusion_matrix,
)
from torch import Tensor, nn
from torch.nn import functional

from ayni.learning.batches import Normaliser
from ayni.learning.networks import Network
from ayni.task import Task
from ayni.trained_model import Scores

ANSWER_BATCH, ANSWER_VOLUMES, WINDOWS_AT_ONCE = 128, 4, 2
MIN_CALIBRATION_IMAGES = 20
MAX_CALIBRATION_PIXELS = 200_000
COLDEST, HOTTEST = 0.5, 5.0


def answers(network: nn.Module, pixels_NCHW: Tensor, normalise: Normaliser) -> Tensor:
    """Logits [N, C] or [N, S, H, W] of 8-bit images, as they are (nothing is varied); of volumes some at a time, and
    by a sliding window where the network sees patches of them."""
    size = ANSWER_BATCH if pixels_NCHW.ndim == 4 else ANSWER_VOLUMES
    with torch.no_grad():
        parts = [_answer(network, normalise(part)) for part in torch.split(pixels_NCHW, size)]
    return torch.cat(parts)


def _answer(network: nn.Module, x_BCHW: Tensor) -> Tensor:
    seen = network.seen if isinstance(network, Network) else x_BCHW.shape[2:]
    if tuple(x_BCHW.shape[2:]) == tuple(seen):
        logits: Tensor = network(x_BCHW)
        return logits
    windows = sliding_window_inference(x_BCHW, seen, WINDOWS_AT_ONCE, network, overlap=0.5, mode="gaussian")
    assert isinstance(windows, Tensor)
    return windows


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
    return _dice(logits_NSHW, masks_NSHW).mean(dim=1)


def _dice(logits_NSHW: Tensor, masks_NSHW: Tensor) -> Tensor:
    """[N, S]"""
    seen_NSHW = (logits_NSHW > 0).to(torch.float32)
    dice_NS: Tensor = compute_dice(seen_NSHW, masks_NSHW.to(torch.float32), ignore_empty=False)
    return dice_NS


def score_masks(logits_NSHW: Tensor, masks_NSHW: Tensor, *, distances: bool = False) -> Scores:
    """Dice, and with `distances` (slow) HD95 in pixels too; `Scores` says what empty masks count."""
    dice = float(dice_of_each(logits_NSHW, masks_NSHW).mean())
    hd95 = float(_distances(logits_NSHW > 0, masks_NSHW > 0, None)[0].mean()) if distances else None
    return Scores(num_images=len(masks_NSHW), dice=dice, hd95=hd95)


def score_volumes(logits_NSDHW: Tensor, masks_NSDHW: Tensor, task: Task) -> Scores:
    """Dice, HD95 and ASSD, in mm if the task resamples to a spacing; also of each structure by itself."""
    spacing_mm = task.image.spacing_mm
    dice_NS = _dice(logits_NSDHW, masks_NSDHW)
    hd95_NS, assd_NS = _distances(logits_NSDHW > 0, masks_NSDHW > 0, spacing_mm)
    figures = {"dice": dice_NS, "hd95": hd95_NS, "assd": assd_NS}
    return Scores(
        num_images=len(masks_NSDHW),
        dice=float(dice_NS.mean()),
        hd95=float(hd95_NS.mean()),
        assd=float(assd_NS.mean()),
        unit="mm" if spacing_mm else "pixels",
        structures={
            structure: {name: float(values_NS[:, s].mean()) for name, values_NS in figures.items()}
            for s, structure in enumerate(task.classes)
        },
    )


def final_scores(logits: Tensor, truth: Tensor, task: Task) -> Scores:
    """All that is measured on a set that nothing was chosen on."""
    if task.kind == "classification":
        return score(logits, truth)
    return score_volumes(logits, truth, task) if task.image.depth else score_masks(logits, truth, distances=True)


def _distances(seen_NSHW: Tensor, masks_NSHW: Tensor, spacing_mm: tuple[float, ...] | None) -> tuple[Tensor, Tensor]:
    """HD95 [N, S], and the average symmetric surface distance [N, S], in mm if there is a spacing, else in pixels."""
    sides = masks_NSHW.shape[2:]
    spacing = spacing_mm or (1.0,) * len(sides)
    diagonal = math.hypot(*(side * step for side, step in zip(sides, spacing, strict=True)))
    is_empty = [~one.flatten(2).any(dim=2) for one in (seen_NSHW, masks_NSHW)]
    num_empty_NS = is_empty[0].int() + is_empty[1].int()
    hd95_NS = torch.where(num_empty_NS == 2, 0.0, diagonal).double()
    assd_NS = hd95_NS.clone()
    for n, s in torch.nonzero(num_empty_NS == 0).tolist():  # MONAI warns of empty masks: it is not asked about them
        pair = (seen_NSHW[n : n + 1, s : s + 1], masks_NSHW[n : n + 1, s : s + 1])
        how = {"include_background": True, "spacing": spacing_mm}
        hd95_NS[n, s] = compute_hausdorff_distance(*pair, percentile=95, **how).item()
        if len(sides) == 3:
            assd_NS[n, s] = compute_average_surface_distance(*pair, symmetric=True, **how).item()
    return hd95_NS, assd_NS


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
