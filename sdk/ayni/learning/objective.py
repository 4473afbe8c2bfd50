"""What one kind of task teaches and measures: classification by labels [N], segmentation by masks [N, S, H, W] (or
[N, S, D, H, W], of volumes).

Learners and methods know only this; a new kind of task is one more value here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ayni.auc_error import auc_standard_error
from ayni.learning import losses, scores
from ayni.task import Kind
from ayni.trained_model import Scores


class Distil(Protocol):
    def __call__(self, student: Tensor, teacher: Tensor, /, *, temperature: float) -> Tensor: ...


class Order(Protocol):
    def __call__(self, student: Tensor, teacher: Tensor, /, *, top_k: int, margin: float) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Objective:
    """Functions of logits and truth (or of a student's and a teacher's logits); losses are scalars."""

    supervised: Callable[[Tensor, Tensor], Tensor]
    distil: Distil  # the teacher's full answer
    order: Order  # which class is ahead, and no more
    probabilities: Callable[[Tensor], Tensor]  # of logits, in their shape
    doubt: Callable[[Tensor], Tensor]  # entropy of probabilities, as a share of the most that it can be
    score: Callable[[Tensor, Tensor], Scores]
    chance: Callable[[Tensor, Tensor], float]  # standard error of the main figure on so few images
    temperature: Callable[[Tensor, Tensor], float]  # that calibrates these answers


def auc_error_of(auc: float, labels_M: Tensor) -> float:
    """The standard error of an AUC for the rarest class against the rest.

    >>> import torch
    >>> round(auc_error_of(0.9, torch.tensor([1] * 50 + [0] * 50)), 4)
    0.0321
    """
    counts = np.bincount(labels_M.numpy())
    num_positive = int(counts[counts > 0].min())
    num_negative = len(labels_M) - num_positive
    if num_negative == 0:
        return 0.5
    return auc_standard_error(auc, num_positive=num_positive, num_negative=num_negative)


def _auc_chance(logits_MC: Tensor, labels_M: Tensor) -> float:
    return auc_error_of(scores.score(logits_MC, labels_M).auc, labels_M)


def _dice_chance(logits_MSHW: Tensor, masks_MSHW: Tensor) -> float:
    each_M = scores.dice_of_each(logits_MSHW, masks_MSHW)
    return float(each_M.std()) / math.sqrt(len(each_M)) if len(each_M) > 1 else 0.5


def _mask_order(student: Tensor, teacher: Tensor, *, top_k: int, margin: float) -> Tensor:
    return losses.mask_order_loss(student, teacher, margin=margin)  # of two sides, one is first


CLASSIFICATION = Objective(
    supervised=functional.cross_entropy,
    distil=losses.distillation_loss,
    order=losses.ranking_loss,
    probabilities=lambda logits_BC: torch.softmax(logits_BC, dim=1),
    doubt=losses.class_doubt,
    score=scores.score,
    chance=_auc_chance,
    temperature=scores.calibration_temperature,
)
SEGMENTATION = Objective(
    supervised=losses.mask_loss,
    distil=losses.mask_distillation_loss,
    order=_mask_order,
    probabilities=torch.sigmoid,
    doubt=losses.mask_doubt,
    score=scores.score_masks,
    chance=_dice_chance,
    temperature=scores.mask_calibration_temperature,
)


def objective_of(kind: Kind) -> Objective:
    return CLASSIFICATION if kind == "classification" else SEGMENTATION
