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
from ayni.data.masks import load_segmented
from ayni.data.read import load_images
from ayni.jobs import Done, Evaluate, SiteContext
from ayni.learning.batches import Normaliser, as_tensor
from ayni.learning.networks import build_network, load_weights
from ayni.learning.objective import objective_of
from ayni.learning.scores import answers, final_scores, score
from ayni.learning.site_data import OwnImages
from ayni.task import Architecture, ImageSettings, Task
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.trained_model import MODEL_FILE, MODEL_KINDS, WEIGHTS_FILE, Scores, TrainedModel


class Candidate(NamedTuple):
    """A network that may be chosen, and how it is given images; the first of a list wins ties."""

    name: str
    architecture: Architecture
    normalise: Normaliser
    weights: dict[str, Floats]


def _answers_of(candidate: Candidate, image: ImageSettings, pixels_NCHW: Tensor) -> Tensor:
    network = build_network(candidate.architecture, image, len(candidate.weights["head.bias"]))
    load_weights(network, candidate.weights)
    return answers(network, pixels_NCHW, candidate.normalise)


def choose_and_store(
    candidates: Sequence[Candidate],
    own: OwnImages,
    context: SiteContext,
    task: Task,
    *,
    kind: str,
    rounds: int,
    steps: int,
) -> Scores:
    """Write HOME/models/KIND with the best candidate on held-out images (AUC, Dice); returns its figures there.

    A later candidate must beat the first by more than chance would (one standard error): a few images decide little.
    """
    truth, objective = own.holdout_truth, objective_of(task.kind)
    if len(truth):
        logits = [_answers_of(candidate, task.image, own.holdout_MCHW) for candidate in candidates]
        figures = [objective.score(some_logits, truth) for some_logits in logits]
        best = best_of([figure.main for figure in figures], objective.chance(logits[0], truth))
        chosen, temperature = candidates[best], objective.temperature(logits[best], truth)
        others = [f"{c.name} {f.main:.3f}" for c, f in zip(candidates, figures, strict=True) if c is not chosen]
        words = f"{chosen.name}: {figures[best].main_name} {figures[best].main:.3f} on {len(truth)} held-out images"
        words += f" ({', '.join(others)})" if others else ""
        validation = figures[best]
    else:
        chosen, temperature, words = candidates[0], 1.0, f"{candidates[0].name}: no image could be held out"
        validation = Scores(num_images=0, dice=0.0 if task.kind == "segmentation" else None)
    model = TrainedModel(
        kind=kind,
        site=context.site,
        role=context.role,
        task=task,
        network=chosen.architecture,
        pixel_mean=chosen.normalise.mean,
        pixel_std=chosen.normalise.std,
        temperature=temperature,
        num_train_per_class=own.count(own.train_truth, task.classes),
        num_holdout_per_class=own.count(truth, task.classes),
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


def best_of(figures: Sequence[float], chance: float) -> int:
    """The first candidate, unless another beats it by more than `chance`, one standard error.

    >>> best_of([0.90, 0.91, 0.94], 0.02), best_of([0.90, 0.91], 0.02)
    (2, 0)
    """
    best = int(np.argmax(figures))
    return best if figures[best] > figures[0] + chance else 0


def read_weights(folder: Path) -> dict[str, Floats]:
    """Raises IntegrityError if the file is damaged."""
    tensors = safe.decode((folder / WEIGHTS_FILE).read_bytes())
    return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def evaluate(job: Evaluate) -> Done:
    """Score every model in HOME/models on a labelled set."""
    scores = {}
    for kind in MODEL_KINDS:
        folder = Path(job.context.home) / "models" / kind
        if not (folder / MODEL_FILE).exists():
            continue
        model = TrainedModel.read(folder)
        normalise, image = Normaliser(model.pixel_mean, model.pixel_std), model.task.image
        stored = Candidate(kind, model.network, normalise, read_weights(folder))
        if model.task.kind == "segmentation":
            segmented = load_segmented(Path(job.data), image, model.task.classes, job.split)
            pixels_NCHW, masks_NSHW = as_tensor(segmented.pixels_NHWC), torch.from_numpy(segmented.masks_NSHW)
            logits = _answers_of(stored, image, pixels_NCHW)
            scores[kind] = final_scores(logits, masks_NSHW, model.task)
            continue
        images = load_images(Path(job.data), image, model.task.classes, job.split)
        logits = _answers_of(stored, image, as_tensor(images.pixels_NHWC))
        scores[kind] = score(logits, torch.from_numpy(images.labels_N))
    return Done(scores=scores)
