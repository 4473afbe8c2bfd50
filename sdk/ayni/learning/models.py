"""From trained networks to the one that a site diagnoses with: chosen and calibrated on held-out images, and stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from ayni.artefacts.files import write_atomic
from ayni.auc_error import auc_standard_error
from ayni.data.read import load_images
from ayni.jobs import Done, Evaluate, SiteContext
from ayni.learning.batches import Normaliser, as_tensor
from ayni.learning.networks import build_network, load_weights
from ayni.learning.scores import answers, calibration_temperature, score
from ayni.learning.site_data import OwnImages
from ayni.task import ImageSettings, ResNetSettings, Task
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.trained_model import MODEL_FILE, WEIGHTS_FILE, Scores, TrainedModel

KINDS = ("federated", "alone")


class Candidate(NamedTuple):
    """A network that may be chosen; the first of a list wins ties."""

    name: str
    weights: dict[str, Floats]


def diagnosis_network(context: SiteContext, task: Task) -> ResNetSettings:
    """The large network at a hospital, the small one at a clinic."""
    return task.networks.large if context.role == "hospital" else task.networks.small


def _answers_of(
    settings: ResNetSettings,
    image: ImageSettings,
    weights: dict[str, Floats],
    pixels_NCHW: Tensor,
    normalise: Normaliser,
) -> Tensor:
    network = build_network(settings, image, len(weights["head.bias"]))
    load_weights(network, weights)
    return answers(network, pixels_NCHW, normalise)


def choose_and_store(
    candidates: Sequence[Candidate],
    own: OwnImages,
    normalise: Normaliser,
    context: SiteContext,
    task: Task,
    *,
    kind: str,
    rounds: int,
    steps: int,
) -> Scores:
    """Write HOME/models/KIND with the candidate of the best AUC on held-out images; returns its figures there.

    A later candidate must beat the first by more than chance would (one standard error): a few images decide little.
    """
    settings = diagnosis_network(context, task)
    labels_M = own.holdout_labels_M
    if len(labels_M):
        logits = [_answers_of(settings, task.image, c.weights, own.holdout_MCHW, normalise) for c in candidates]
        figures = [score(logits_MC, labels_M) for logits_MC in logits]
        best = _best(figures, labels_M)
        chosen, temperature = candidates[best], calibration_temperature(logits[best], labels_M)
        others = [f"{c.name} {f.auc:.3f}" for c, f in zip(candidates, figures, strict=True) if c is not chosen]
        words = f"{chosen.name}: AUC {figures[best].auc:.3f} on {len(labels_M)} held-out images"
        words += f" ({', '.join(others)})" if others else ""
        validation = figures[best]
    else:
        chosen, temperature, words = candidates[0], 1.0, f"{candidates[0].name}: no image could be held out"
        validation = Scores(num_images=0, auc=0.5, balanced_accuracy=0.0)
    model = TrainedModel(
        kind=kind,
        site=context.site,
        role=context.role,
        task=task,
        network=settings,
        pixel_mean=normalise.mean,
        pixel_std=normalise.std,
        temperature=temperature,
        num_train_per_class=own.count(own.train_labels_N, task.classes),
        num_holdout_per_class=own.count(labels_M, task.classes),
        validation=validation,
        rounds=rounds,
        steps=steps,
        chosen=words,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder = Path(context.home) / "models" / kind
    (folder / MODEL_FILE).unlink(missing_ok=True)  # a folder without it is no model: never old words on new weights
    write_atomic(folder / WEIGHTS_FILE, safe.encode(chosen.weights))
    write_atomic(folder / MODEL_FILE, msgspec.json.format(msgspec.json.encode(model), indent=1))
    return validation


def _best(figures: list[Scores], labels_M: Tensor) -> int:
    """The first candidate, unless another beats it by more than one standard error."""
    best = int(np.argmax([figure.auc for figure in figures]))
    margin = auc_error_of(figures[0].auc, labels_M)
    return best if figures[best].auc > figures[0].auc + margin else 0


def auc_error_of(auc: float, labels_M: Tensor) -> float:
    """The standard error of an AUC for the rarest class against the rest.

    >>> round(auc_error_of(0.9, torch.tensor([1] * 50 + [0] * 50)), 4)
    0.0321
    """
    counts = np.bincount(labels_M.numpy())
    num_positive = int(counts[counts > 0].min())
    num_negative = len(labels_M) - num_positive
    if num_negative == 0:
        return 0.5
    return auc_standard_error(auc, num_positive=num_positive, num_negative=num_negative)


def read_weights(folder: Path) -> dict[str, Floats]:
    """Raises IntegrityError if the file is damaged."""
    tensors = safe.decode((folder / WEIGHTS_FILE).read_bytes())
    return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def evaluate(job: Evaluate) -> Done:
    """Score every model in HOME/models on a labelled set."""
    scores = {}
    for kind in KINDS:
        folder = Path(job.context.home) / "models" / kind
        if not (folder / MODEL_FILE).exists():
            continue
        model = TrainedModel.read(folder)
        images = load_images(Path(job.data), model.task.image, model.task.classes, job.split)
        normalise = Normaliser(model.pixel_mean, model.pixel_std)
        pixels_NCHW, labels_N = as_tensor(images.pixels_NHWC), torch.from_numpy(images.labels_N)
        logits_NC = _answers_of(model.network, model.task.image, read_weights(folder), pixels_NCHW, normalise)
        scores[kind] = score(logits_NC, labels_N)
    return Done(scores=scores)
