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
from torch.nn import functional

from ayni.data.folder import LABELS_FILE
from ayni.data.masks import load_segmented
from ayni.data.pairs import IMAGES, MASKS
from ayni.data.read import DATASET_FILE, load_images
from ayni.errors import DataError, IntegrityError
from ayni.jobs import SiteContext
from ayni.learning.batches import Normaliser, as_tensor, seed_of
from ayni.task import Task
from ayni.tensors.image_set import ImageSet, decode_image_set
from ayni.tensors.targets import Targets, decode_targets
from ayni.tensors.truth import PublicTruth, Values, decode_truth

Pixels = npt.NDArray[np.uint8]
Truth = npt.NDArray[np.int64] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class OwnImages:
    """N training and M held-out images, 8-bit [., C, H, W], and their truth: class numbers [.], or masks
    [., S, H, W] of 0 and 1; and U images of which the truth is not known. Of volumes all have one axis more, D before
    H. `sha256` is of pixels and truth."""

    train_NCHW: Tensor
    train_truth: Tensor
    holdout_MCHW: Tensor
    holdout_truth: Tensor
    unlabelled_UCHW: Tensor
    normalise: Normaliser
    sha256: str

    def count(self, truth: Tensor, classes: tuple[str, ...]) -> dict[str, int]:
        """Images of each class, or in which each structure occurs."""
        if truth.ndim >= 4:
            return {name: int(truth[:, number].flatten(1).any(dim=1).sum()) for number, name in enumerate(classes)}
        return {name: int((truth == number).sum()) for number, name in enumerate(classes)}


@dataclass(frozen=True)
class PublicImages:
    """P public images, 8-bit [P, C, H, W], and what teachers answered: logits [P, G] and [P, classes], or maps
    [P, ., H, W] of them; and the truth of the first L of them, as in OwnImages, at the centre and where it travels."""

    pixels_PCHW: Tensor
    guidance: Tensor | None
    consensus: Tensor | None
    normalise: Normaliser
    sha256: str
    truth: Tensor | None = None


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
    marks = [data, data / LABELS_FILE, data / DATASET_FILE, data / IMAGES, data / MASKS]
    return max((mark.stat().st_mtime_ns for mark in marks if mark.exists()), default=0)


@functools.lru_cache(maxsize=1)
def _read_own_images(data: Path, site: str, task: Task, stamp: int) -> OwnImages:
    few_labels = task.dual_kd is not None
    if task.kind == "segmentation":
        segmented = load_segmented(data, task.image, task.classes, unlabelled=few_labels)
        return own_images(segmented.pixels_NHWC, segmented.masks_NSHW, task, site, unlabelled=segmented.unlabelled)
    images = load_images(data, task.image, task.classes, unlabelled=few_labels)
    if len(np.unique(images.labels_N)) < 2:
        raise DataError(f"{data} holds images of one class only. Add images of the others: {', '.join(task.classes)}.")
    return own_images(images.pixels_NHWC, images.labels_N, task, site, unlabelled=images.unlabelled)


def own_images(
    pixels_NHWC: Pixels, truth: Truth, task: Task, site: str, *, unlabelled: Pixels | None = None
) -> OwnImages:
    """A site's images with a part held out: of each class, or of all images if the truth are masks."""
    if unlabelled is None:
        unlabelled = pixels_NHWC[:0]
    strata_N = truth.astype(np.int64) if truth.ndim == 1 else np.zeros(len(truth), np.int64)
    out_N = held_out(strata_N, task.training.holdout_fraction, seed=seed_of(task.seed, site, "hold-out"))
    pixels_NCHW, truths = as_tensor(pixels_NHWC), torch.from_numpy(np.ascontiguousarray(truth))
    keep, out = torch.from_numpy(~out_N), torch.from_numpy(out_N)
    return OwnImages(
        train_NCHW=pixels_NCHW[keep],
        train_truth=truths[keep],
        holdout_MCHW=pixels_NCHW[out],
        holdout_truth=truths[out],
        unlabelled_UCHW=as_tensor(unlabelled),
        normalise=Normaliser.of(pixels_NHWC[~out_N]),
        sha256=hashlib.sha256(pixels_NHWC.tobytes() + truth.tobytes() + unlabelled.tobytes()).hexdigest(),
    )


def load_public_images(
    task: Task, public_set: str | None, guidance: str | None, consensus: str | None, labels: str | None = None
) -> PublicImages | None:
    """The public set and its targets, checked against each other. Raises IntegrityError."""
    if public_set is None:
        return None
    data = Path(public_set).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    images = decode_image_set(data)
    expected = (*task.image.size, task.image.channels)
    if images.info.shape[1:] != expected:
        raise IntegrityError(f"the public set has images of {images.info.shape[1:]}, the task of {expected}")
    truth = _truth_of(decode_truth(Path(labels).read_bytes()), sha256, images, task) if labels else None
    return public_images(images.pixels_NHWC, sha256, task, _read(guidance), _read(consensus), truth=truth)


def _truth_of(truth: PublicTruth, image_set: str, images: ImageSet, task: Task) -> Values:
    num_images, *size, _ = images.info.shape
    of_one = (len(task.classes), *size) if task.kind == "segmentation" else ()
    if truth.info.image_set != image_set or truth.info.classes != task.classes:
        raise IntegrityError("the labels were made for another public set, or other classes")
    if len(truth.values) > num_images or truth.values.shape[1:] != of_one:
        raise IntegrityError(f"labels of shape {list(truth.values.shape)} for {num_images} public images")
    return truth.values


def _read(path: str | None) -> Targets | None:
    return decode_targets(Path(path).read_bytes()) if path else None


def public_images(
    pixels_PHWC: Pixels,
    sha256: str,
    task: Task,
    guidance: Targets | None,
    consensus: Targets | None,
    *,
    truth: npt.NDArray[np.generic] | None = None,
) -> PublicImages:
    """The set whose artefact has this SHA-256, and what teachers said of it. Raises IntegrityError."""
    return PublicImages(
        pixels_PCHW=as_tensor(pixels_PHWC),
        guidance=_answers_of(guidance, sha256, len(pixels_PHWC), task, None),
        consensus=_answers_of(consensus, sha256, len(pixels_PHWC), task, task.classes),
        normalise=Normaliser.of(pixels_PHWC),
        sha256=sha256,
        truth=None if truth is None else torch.from_numpy(truth.copy()),
    )


def _answers_of(
    targets: Targets | None, image_set: str, num_images: int, task: Task, classes: tuple[str, ...] | None
) -> Tensor | None:
    """Logits [P, G], or maps [P, G, (D,) H, W] of the images' size."""
    if targets is None:
        return None
    info, name = targets.info, targets.info.model_name
    if info.image_set != image_set or len(targets.logits_NC) != num_images:
        raise IntegrityError(f"the targets of {name!r} were made for another public set")
    if classes is not None and info.classes != classes:
        raise IntegrityError(f"the consensus is over {info.classes}, the task over {classes}")
    dense = task.kind == "segmentation"
    if (info.height > 0, info.depth > 0) != (dense, dense and task.image.depth > 0):
        raise IntegrityError(f"the targets of {name!r} are not for {task.kind}")
    answers = torch.from_numpy(targets.logits_NC)
    if info.height:
        mode = "trilinear" if task.image.depth else "bilinear"
        return functional.interpolate(answers, size=task.image.size, mode=mode, align_corners=False)
    if len(info.classes) < 2:
        raise IntegrityError(f"the targets of {name!r} have fewer than two classes")
    return answers
