"""FedHelp's distillation terms for classification (arXiv 2412.19654, section 3). B = images, C = classes.

Pure functions of logits; the teacher's side never receives a gradient.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


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


def _check_pair(student_BC: Tensor, teacher_BC: Tensor) -> None:
    if student_BC.shape != teacher_BC.shape or student_BC.ndim != 2 or student_BC.shape[1] < 2:
        raise ValueError(f"needs logits [B, C >= 2] of one shape: {list(student_BC.shape)}, {list(teacher_BC.shape)}")
