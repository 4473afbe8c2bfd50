"""Answers of a network on a set of images, and figures about them. N = images, C = classes."""

from __future__ import annotations

import torch
from monai.metrics import compute_confusion_matrix_metric, compute_roc_auc, get_confusion_matrix
from torch import Tensor, nn
from torch.nn import functional

from ayni.learning.batches import Normaliser
from ayni.trained_model import Scores

ANSWER_BATCH = 128
MIN_CALIBRATION_IMAGES = 20
COLDEST, HOTTEST = 0.5, 5.0


def answers(network: nn.Module, pixels_NCHW: Tensor, normalise: Normaliser) -> Tensor:
    """Logits [N, C] of 8-bit images, as they are (nothing is varied)."""
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


def calibration_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """What to divide the logits by so that held-out images are least surprising (Guo et al. 2017), .5 to 5.

    1 if there are too few images to say, or all are of one class.
    """
    if len(labels_N) < MIN_CALIBRATION_IMAGES or len(torch.unique(labels_N)) < 2:
        return 1.0
    candidates_T = torch.logspace(0, 1, 121, dtype=torch.float64).mul(COLDEST)
    surprise_T = [functional.cross_entropy(logits_NC.double() / t, labels_N).item() for t in candidates_T]
    return round(float(candidates_T[surprise_T.index(min(surprise_T))]), 4)
