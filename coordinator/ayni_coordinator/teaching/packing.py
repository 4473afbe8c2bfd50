"""How a teacher travels: in half precision, unless that costs what it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import msgspec
import numpy as np
import torch
from torch import Tensor

from ayni.learning.batches import Normaliser
from ayni.learning.objective import objective_of
from ayni.learning.site_data import OwnImages
from ayni.task import Task
from ayni.tensors.teacher import Form, TeacherWeights
from ayni.trained_model import Scores
from ayni_coordinator.teaching.train import Weights, answers_of

LARGEST_LOSS = 0.001  # of Dice or AUC on held-out images, by half precision
WantedForm = Literal["auto", "fp16", "fp32"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """M labelled images that the teacher has not learned from here."""

    pixels_MCHW: Tensor
    truth: Tensor

    @classmethod
    def of(cls, own: OwnImages) -> Self:
        return cls(own.holdout_MCHW, own.holdout_truth)

    @classmethod
    def all_of(cls, own: OwnImages) -> Self:
        """For a teacher that was trained elsewhere."""
        return cls(torch.cat([own.train_NCHW, own.holdout_MCHW]), torch.cat([own.train_truth, own.holdout_truth]))


def packed(
    teacher: TeacherWeights, wanted: WantedForm, seen: HeldOut | None, task: Task
) -> tuple[Form, TeacherWeights]:
    """The form, and the teacher with its figure on held-out images in that form, if there are any.

    "auto": 16 bits if the figure does not fall by more than `LARGEST_LOSS`; 32 bits if it does, or nothing tells. A
    teacher that came in 16 bits stays so.
    """
    halved = _halved(teacher.weights)
    if wanted == "auto" and halved and all((halved[name] == tensor).all() for name, tensor in teacher.weights.items()):
        wanted = "fp16"
    if seen is None or not len(seen.truth):
        return ("fp32" if wanted == "auto" else wanted), teacher
    normalise = Normaliser(teacher.info.pixel_mean, teacher.info.pixel_std)

    def measured(weights: Weights) -> Scores:
        logits = answers_of(weights, seen.pixels_MCHW, normalise, task)
        return objective_of(task.kind).score(logits, seen.truth)

    full = measured(teacher.weights)
    half = measured(halved) if halved else None
    form: Form = "fp32" if wanted == "auto" else wanted
    if wanted == "auto" and half and half.main >= full.main - LARGEST_LOSS:
        form = "fp16"
    figure = half if form == "fp16" and half else full
    info = msgspec.structs.replace(
        teacher.info, num_held_out=len(seen.truth), figure_name=figure.main_name, figure=figure.main
    )
    return form, TeacherWeights(info, teacher.weights)


def _halved(weights: Weights) -> Weights | None:
    """As they come out of half precision; None if a weight is beyond its range."""
    with np.errstate(over="ignore"):
        halved = {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in weights.items()}
    return halved if all(np.isfinite(tensor).all() for tensor in halved.values()) else None
