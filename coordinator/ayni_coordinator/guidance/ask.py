"""Asks the foundation model about each public image once, ever, and makes the distillation targets of the answers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ayni.errors import UserError
from ayni.task import GuidanceSettings, Kind, Task
from ayni.tensors.image_set import ImageSet
from ayni.tensors.targets import Targets, TargetsInfo, encode_targets
from ayni_coordinator.guidance.answers import AnswerStore
from ayni_coordinator.guidance.outlines import kept_size
from ayni_coordinator.guidance.patience import with_patience
from ayni_coordinator.guidance.source import Logits, Pixels, Source, TryLaterError, open_source

ANSWERS_FILE = "answers.sqlite"
MAX_BATCH_BYTES = 8 << 20  # of the images of one question, and of the outlines that answer it
MAX_OUTLINES_BYTES = 64 << 20  # of one image, as float32
MAX_GUIDANCE_BYTES = 2 << 30  # of all images, as a site holds them in memory: float32, of the images' size

OnProgress = Callable[[int, int], None]  # images answered, images in all (each distinct image once)


def guide(task: Task, images: ImageSet, image_set_sha256: str, home: Path, on_progress: OnProgress) -> bytes:
    """Encoded targets of the task's public set: asks what `home`/answers.sqlite does not know yet.

    Killed and started again, it goes on where it stopped. Raises UserError (settings, the cap on calls, a model
    that does not fit), LineError (an endpoint that is down) and PeerProtocolError (one that broke the contract).
    """
    source = open_source(task.guidance, task.kind, home)
    with AnswerStore(home / ANSWERS_FILE) as answers:
        targets = ask_once(images, image_set_sha256, source, task.guidance, answers, on_progress, kind=task.kind)
        return encode_targets(targets)


def ask_once(
    images: ImageSet,
    image_set_sha256: str,
    source: Source,
    settings: GuidanceSettings,
    answers: AnswerStore,
    on_progress: OnProgress,
    *,
    kind: Kind = "classification",
    pause: Callable[[float], None] = time.sleep,
) -> Targets:
    """Targets for every image of the set, in its order; the `max_classes` classes that the model uses most.

    For a segmentation, dense answers (logits per pixel of each structure) are kept whole: structures do not compete.
    What would not fit a site's memory is refused before the first question. Equal images are asked once.
    `settings.max_calls` caps the images ever asked from this home: a set that would exceed it is refused, too.
    """
    model = answers.model_id(source)
    digests = [image_digest(pixels_HWC) for pixels_HWC in images.pixels_NHWC]
    known = answers.images(model)
    place = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    missing = [digest for digest in dict.fromkeys(digests) if digest not in known]
    if kind == "segmentation":
        _check_room(images, source)
    _check_cap(len(missing), answers.num_asked(), settings.max_calls)
    on_progress(len(place) - len(missing), len(place))
    largest = max(images.pixels_NHWC[0].nbytes, _outlines_bytes(images, source) if kind == "segmentation" else 0)
    batch_size = max(1, min(source.batch_size, MAX_BATCH_BYTES // largest))
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        pixels_BHWC = images.pixels_NHWC[[place[digest] for digest in batch]]
        logits_BC = with_patience(lambda: _ask(source, pixels_BHWC, model, answers, settings.max_calls), pause=pause)  # noqa: B023
        _check_answer(logits_BC, len(batch), source, kind)  # what is stored is stored for ever
        answers.store(model, batch, logits_BC)
        on_progress(len(place) - len(missing) + start + len(batch), len(place))
    logits_NC = answers.read(model, digests)
    _check_answer(logits_NC, len(digests), source, kind)  # or are they from when it did something else?
    dense = kind == "segmentation"
    kept = np.arange(len(source.classes)) if dense else most_used_classes(logits_NC, settings.max_classes)
    info = TargetsInfo(
        source="foundation",
        image_set=image_set_sha256,
        model_name=source.name,
        model_version=source.version,
        licence=source.licence,
        classes=tuple(source.classes[number] for number in kept),
        bits=settings.bits,
        height=logits_NC.shape[2] if dense else 0,
        width=logits_NC.shape[3] if dense else 0,
    )
    return Targets(info, logits_NC[:, kept])


def image_digest(pixels_HWC: Pixels) -> bytes:
    """SHA-256 over the shape and the pixels: what an image is called in the store."""
    header = "x".join(str(size) for size in pixels_HWC.shape) + ";"
    return hashlib.sha256(header.encode() + pixels_HWC.tobytes()).digest()


def most_used_classes(logits_NC: Logits, max_classes: int) -> npt.NDArray[np.int64]:
    """The classes of the highest mean probability over the images, in the model's order; ties: the lower number.

    >>> most_used_classes(np.array([[0.0, 9.0, 1.0], [9.0, 0.0, 1.0]], np.float32), 2).tolist()
    [0, 1]
    """
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    odds_NC = np.exp(shifted_NC)
    mean_C = (odds_NC / odds_NC.sum(axis=1, keepdims=True)).mean(axis=0)
    return np.sort(np.argsort(-mean_C, kind="stable")[:max_classes]).astype(np.int64)


def _ask(source: Source, pixels_BHWC: Pixels, model: int, answers: AnswerStore, max_calls: int) -> Logits:
    """One question: counted before it goes out, taken back only if the source refused it at the door."""
    _check_cap(len(pixels_BHWC), answers.num_asked(), max_calls)  # retries count too
    question = answers.begin_question(model, len(pixels_BHWC))
    try:
        return source.answer(pixels_BHWC)
    except TryLaterError as error:
        if not error.answered_perhaps:
            answers.withdraw_question(question)
        raise


def _outlines_bytes(images: ImageSet, source: Source) -> int:
    """Of one image's outlines, as float32 of the size that is kept."""
    height, width = kept_size(*images.pixels_NHWC.shape[1:3])
    return 4 * len(source.classes) * height * width


def _check_room(images: ImageSet, source: Source) -> None:
    num_images, height, width, _ = images.pixels_NHWC.shape
    at_a_site = 4 * num_images * len(source.classes) * height * width
    if _outlines_bytes(images, source) > MAX_OUTLINES_BYTES or at_a_site > MAX_GUIDANCE_BYTES:
        raise UserError(
            f"{source.name} outlines {len(source.classes)} structures in {num_images} images of {width} x {height}: "
            f"{at_a_site / 1e6:.0f} MB in every clinic's memory; at most {MAX_GUIDANCE_BYTES / 1e6:.0f} MB, and "
            f"{MAX_OUTLINES_BYTES / 1e6:.0f} MB per image, are allowed. Take fewer or smaller public images, or a "
            "model of fewer structures."
        )


def _check_answer(logits_BC: Logits, num_images: int, source: Source, kind: Kind) -> None:
    num_axes = 4 if kind == "segmentation" else 2
    fits = logits_BC.ndim == num_axes and logits_BC.shape[:2] == (num_images, len(source.classes))
    if not fits or not np.isfinite(logits_BC).all():
        raise UserError(
            f"{source.name} {source.version} does not answer a {kind} of {len(source.classes)} classes with finite "
            f"numbers for each: {list(logits_BC.shape)}. A changed model needs a new version."
        )


def _check_cap(num_images: int, num_asked: int, max_calls: int) -> None:
    if num_asked + num_images > max_calls:
        raise UserError(
            f"{num_images} images are to be asked and {num_asked} have been; guidance.max_calls allows {max_calls}. "
            "Raise it in the task, or take a smaller public set."
        )
