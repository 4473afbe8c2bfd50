"""What a site trains on: its own images with a part held out for choices, and the public set with its teachers."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ayni.data.folder import LABELS_FILE
from ayni.data.read import DATASET_FILE, load_images
from ayni.errors import DataError, IntegrityError
from ayni.jobs import SiteContext
from ayni.learning.batches import Normaliser, as_tensor, seed_of
from ayni.task import Task
from ayni.tensors.image_set import decode_image_set
from ayni.tensors.targets import decode_targets


@dataclass(frozen=True)
class OwnImages:
    """N training and M held-out images, 8-bit [., C, H, W]; `sha256` is of pixels and labels."""

    train_NCHW: Tensor
    train_labels_N: Tensor
    holdout_MCHW: Tensor
    holdout_labels_M: Tensor
    normalise: Normaliser
    sha256: str

    def count(self, labels: Tensor, classes: tuple[str, ...]) -> dict[str, int]:
        return {name: int((labels == number).sum()) for number, name in enumerate(classes)}


@dataclass(frozen=True)
class PublicImages:
    """P public images, 8-bit [P, C, H, W], and what teachers answered: logits [P, G] and [P, classes]."""

    pixels_PCHW: Tensor
    guidance_PG: Tensor | None
    consensus_PC: Tensor | None
    normalise: Normaliser
    sha256: str


def held_out(labels_N: npt.NDArray[np.int64], fraction: float, *, seed: int) -> npt.NDArray[np.bool_]:
    """True for the images [N] that are only used for choices: of each class `fraction`, and at least one of two."""
    out_N = np.zeros(len(labels_N), bool)
    for number in np.unique(labels_N):
        members = np.flatnonzero(labels_N == number)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        out_N[np.random.default_rng(seed_of(seed, number)).permutation(members)[:count]] = True
    return out_N


def load_own_images(context: SiteContext, task: Task) -> OwnImages:
    """Raises DataError if the data cannot be used; the last set read is kept in memory for the next job."""
    data = Path(context.data)
    return _read_own_images(data, context.site, task, _stamp(data))


def _stamp(data: Path) -> int:
    """Changes when the data do."""
    marks = [data, data / LABELS_FILE, data / DATASET_FILE]
    return max((mark.stat().st_mtime_ns for mark in marks if mark.exists()), default=0)


@functools.lru_cache(maxsize=1)
def _read_own_images(data: Path, site: str, task: Task, stamp: int) -> OwnImages:
    images = load_images(data, task.image, task.classes)
    if len(np.unique(images.labels_N)) < 2:
        raise DataError(f"{data} holds images of one class only. Add images of the others: {', '.join(task.classes)}.")
    out_N = held_out(images.labels_N, task.training.holdout_fraction, seed=seed_of(task.seed, site, "hold-out"))
    pixels_NCHW, labels_N = as_tensor(images.pixels_NHWC), torch.from_numpy(images.labels_N)
    keep, out = torch.from_numpy(~out_N), torch.from_numpy(out_N)
    return OwnImages(
        train_NCHW=pixels_NCHW[keep],
        train_labels_N=labels_N[keep],
        holdout_MCHW=pixels_NCHW[out],
        holdout_labels_M=labels_N[out],
        normalise=Normaliser.of(images.pixels_NHWC[~out_N]),
        sha256=hashlib.sha256(images.pixels_NHWC.tobytes() + images.labels_N.tobytes()).hexdigest(),
    )


def load_public_images(
    task: Task, public_set: str | None, guidance: str | None, consensus: str | None
) -> PublicImages | None:
    """The public set and its targets, checked against each other. Raises IntegrityError."""
    if public_set is None:
        return None
    data = Path(public_set).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    images = decode_image_set(data)
    expected = (task.image.height, task.image.width, task.image.channels)
    if images.info.shape[1:] != expected:
        raise IntegrityError(f"the public set has images of {images.info.shape[1:]}, the task of {expected}")
    consensus_PC = _targets(consensus, sha256, len(images.pixels_NHWC), task.classes)
    return PublicImages(
        pixels_PCHW=as_tensor(images.pixels_NHWC),
        guidance_PG=_targets(guidance, sha256, len(images.pixels_NHWC), None),
        consensus_PC=consensus_PC,
        normalise=Normaliser.of(images.pixels_NHWC),
        sha256=sha256,
    )


def _targets(path: str | None, image_set: str, num_images: int, classes: tuple[str, ...] | None) -> Tensor | None:
    if path is None:
        return None
    targets = decode_targets(Path(path).read_bytes())
    if targets.info.image_set != image_set or len(targets.logits_NC) != num_images:
        raise IntegrityError(f"the targets of {targets.info.model_name!r} were made for another public set")
    if classes is not None and targets.info.classes != classes:
        raise IntegrityError(f"the consensus is over {targets.info.classes}, the task over {classes}")
    if len(targets.info.classes) < 2:
        raise IntegrityError(f"the targets of {targets.info.model_name!r} have fewer than two classes")
    return torch.from_numpy(targets.logits_NC)
