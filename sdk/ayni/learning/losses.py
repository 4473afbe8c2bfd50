"""FedHelp's losses (arXiv 2412.19654, section 3), of classes and of masks. B = images, C = classes, S = structures.
H x W = pixels; of volumes D x H x W, by the same functions.

Pure functions of logits; the teacher's side never receives a gradient. A structure's logit at a pixel is that of a
Bernoulli variable: its softmax over one channel would always be 1, and every term of it 0.
"""

from __future__ import annotations

import math

import torch
from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.nn import functional

_soft_dice = DiceLoss(sigmoid=True)


def distillation_loss(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of the softened class probabilities: the full answer is taught.

    Both are logits, C >= 2 (a softmax over one channel is always 1, and its loss always 0). Returns a scalar: nats per
    image (summed over classes, averaged over images), times temperature**2 to keep gradients comparable.

    >>> import torch
    >>> agree = torch.tensor([[2.0, 0.0]])
    >>> distillation_loss(agree, agree, temperature=3.0).item()
    0.0
    """
    _check_pair(student_BC, teacher_BC)
    student_log_BC = functional.log_softmax(student_BC / temperature, dim=1)
    teacher_log_BC = functional.log_softmax(teacher_BC.detach() / temperature, dim=1)
    divergence = functional.kl_div(student_log_BC, teacher_log_BC, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def ranking_loss(student_BC: Tensor, teacher_BC: Tensor, *, top_k: int, margin: float) -> Tensor:
    """Only the order is taught: the teacher's `top_k` classes should stand `margin` above all others.

    The mean over images and pairs (a in the teacher's top k, b outside) of max(0, margin - (z[a] - z[b])) with the
    student's logits z; `top_k` < C. Returns a scalar in units of logits.

    >>> import torch
    >>> ranking_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), top_k=1, margin=0.5).item()
    2.5
    """
    _check_pair(student_BC, teacher_BC)
    num_classes = student_BC.shape[1]
    if not 0 < top_k < num_classes:
        raise ValueError(f"top_k is {top_k}; with {num_classes} classes it must lie between 1 and {num_classes - 1}")
    order_BC = teacher_BC.detach().argsort(dim=1, descending=True, stable=True)
    inside_BA = student_BC.gather(1, order_BC[:, :top_k])
    outside_BO = student_BC.gather(1, order_BC[:, top_k:])
    return functional.relu(margin - (inside_BA[:, :, None] - outside_BO[:, None, :])).mean()


def mask_loss(logits_BSHW: Tensor, masks_BSHW: Tensor) -> Tensor:
    """Binary cross-entropy (nats per pixel and structure) plus soft Dice loss (of each image and structure), means."""
    masks_BSHW = masks_BSHW.to(logits_BSHW.dtype)
    surprise = functional.binary_cross_entropy_with_logits(logits_BSHW, masks_BSHW)
    dice: Tensor = _soft_dice(logits_BSHW, masks_BSHW)
    return surprise + dice


def mask_distillation_loss(student_BSHW: Tensor, teacher_BSHW: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of each pixel's and structure's Bernoulli, nats per pixel and structure (as the
    cross-entropy of `mask_loss`), times temperature**2.

    >>> import torch
    >>> sure = torch.full((1, 1, 1, 1), 9.0)
    >>> round(mask_distillation_loss(torch.zeros(1, 1, 1, 1), sure, temperature=1.0).item(), 2)  # log 2, nearly
    0.69
    """
    _check_maps(student_BSHW, teacher_BSHW)
    student, teacher = student_BSHW / temperature, teacher_BSHW.detach() / temperature
    cross_entropy = functional.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher))
    entropy = functional.binary_cross_entropy_with_logits(teacher, torch.sigmoid(teacher))
    return (cross_entropy - entropy) * temperature**2


def mask_order_loss(student_BSHW: Tensor, teacher_BSHW: Tensor, *, margin: float) -> Tensor:
    """`ranking_loss` of two classes, inside and outside: the mean of max(0, margin - s z), where z is the student's
    logit and s = 1 where the teacher says inside, -1 elsewhere.

    >>> import torch
    >>> mask_order_loss(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -3.0), margin=0.5).item()
    2.5
    """
    _check_maps(student_BSHW, teacher_BSHW)
    side_BSHW = torch.where(teacher_BSHW.detach() > 0, 1.0, -1.0)
    return functional.relu(margin - side_BSHW * student_BSHW).mean()


def class_doubt(probabilities_BC: Tensor) -> Tensor:
    """[B, 1]: the entropy of each image's classes, 1 if all are as likely.

    >>> import torch
    >>> class_doubt(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])).flatten().tolist()
    [1.0, 0.0]
    """
    entropy_B1: Tensor = torch.special.entr(probabilities_BC).sum(dim=1, keepdim=True)
    return entropy_B1 / math.log(probabilities_BC.shape[1])


def mask_doubt(probabilities_BSHW: Tensor) -> Tensor:
    """[B, S, (D,) H, W]: the entropy of each pixel's structure, there or not; 1 at a half."""
    entropy_BSHW: Tensor = torch.special.entr(probabilities_BSHW) + torch.special.entr(1 - probabilities_BSHW)
    return entropy_BSHW / math.log(2)


def _check_maps(student_BSHW: Tensor, teacher_BSHW: Tensor) -> None:
    if student_BSHW.shape != teacher_BSHW.shape or student_BSHW.ndim not in (4, 5):
        raise ValueError(f"needs logits [B, S, (D,) H, W] of one shape: {student_BSHW.shape}, {teacher_BSHW.shape}")


def _check_pair(student_BC: Tensor, teacher_BC: Tensor) -> None:
    if student_BC.shape != teacher_BC.shape or student_BC.ndim != 2 or student_BC.shape[1] < 2:
        raise ValueError(f"needs logits [B, C >= 2] of one shape: {list(student_BC.shape)}, {list(teacher_BC.shape)}")
