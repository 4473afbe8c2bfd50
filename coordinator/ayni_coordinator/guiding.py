"""The one-time guidance becomes an artefact like any other: asked once, stored, signed, listed. First weights may learn
from it, and from the labels of public images, before they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ayni.errors import UserError
from ayni.tensors.image_set import ImageSet, decode_image_set
from ayni.tensors.safe import Array, Floats, decode
from ayni_coordinator.database import ManifestRow, note, transaction
from ayni_coordinator.first_model import begin_with
from ayni_coordinator.home import TRUTH_FILE, CoordinatorHome, add_artefact, find_artefact, publish
from ayni_coordinator.public_set import encoded_truth

CHECKPOINT = "start-checkpoint.safetensors"
OnProgress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


def add_guidance(home: CoordinatorHome, on_progress: OnProgress) -> str:
    """Ask what has not been asked, publish the targets; returns what to tell the person."""
    from ayni_coordinator.guidance.ask import guide

    if home.task.guidance.source == "none":
        return _guided_by_labels(home, on_progress)
    with transaction(home.engine) as session:
        public_set, known = find_artefact(session, "public-set"), find_artefact(session, "targets", "guidance")
    if known:
        _tidy_up(home)
        return "The foundation model's answers are stored already; nothing was asked."
    if public_set is None:
        raise UserError("guidance needs a public set. Set `public_set` in the task and set the federation up anew.")
    images = decode_image_set(home.store.read(public_set.sha256))
    targets = guide(
        home.task, images, public_set.sha256, home.folder, lambda *done: on_progress("asking the model", *done)
    )
    return publish_guidance(home, images, public_set.sha256, targets, on_progress)


def _guided_by_labels(home: CoordinatorHome, on_progress: OnProgress) -> str:
    """Where there is no foundation model: what the labels of public images alone teach."""
    if not home.task.public_set_labelled:
        return "The task names no foundation model; clinics learn without its guidance."
    with transaction(home.engine) as session:
        learnt, public_set = _have_learnt(session), find_artefact(session, "public-set")
    if learnt:
        _tidy_up(home)
        return "The labels of the public images have been used already; nothing was done."
    assert public_set is not None  # a task with labels of a set has the set
    images = decode_image_set(home.store.read(public_set.sha256))
    return publish_guidance(home, images, public_set.sha256, None, on_progress)


def publish_guidance(
    home: CoordinatorHome, images: ImageSet, image_set: str, targets: bytes | None, on_progress: OnProgress
) -> str:
    """List encoded targets, if there are any, of the public set `images` with the SHA-256 `image_set`, its labels if
    the task sends them, and the first weights that learnt, if it wants such: all or nothing. Returns what to tell."""
    first = _first_weights(home, images, image_set, targets, on_progress)
    truth = _truth_of(home) if home.task.fedhelp.label_weight > 0 else None
    num_images, told = images.info.shape[0], []
    with transaction(home.engine) as session:
        if targets is not None:
            add_artefact(home, session, "targets", "guidance", 0, targets)
            told.append(f"the foundation model answered once on {num_images} public images")
        if truth is not None:
            add_artefact(home, session, "targets", "labels", 0, encoded_truth(truth, image_set, home.task))
            told.append(f"the labels of {len(truth)} public images travel to the clinics")
        if first:
            begin_with(home, session, first)
            told.append(f"first weights have learnt for {home.task.fedhelp.start_steps} steps")
        told.append(f"manifest {publish(home, session, time.time())}")
        note(session, time.time(), "coordinator", "; ".join(told))
    _tidy_up(home)
    return told[0][0].upper() + "; ".join(told)[1:] + "."


def _have_learnt(session: Session) -> bool:
    """Setting up lists manifest 1; what was asked and taught is listed in a later one, with all of it or none."""
    return (session.scalar(select(func.max(ManifestRow.version))) or 0) > 1


def _tidy_up(home: CoordinatorHome) -> None:
    """What only teaching needed, once all is listed: a kill between the two leaves it for the next `guide`."""
    for name in (TRUTH_FILE, CHECKPOINT):
        (home.folder / name).unlink(missing_ok=True)


def _truth_of(home: CoordinatorHome) -> Array | None:
    """Raises UserError if labels that the task promises are gone before they have taught."""
    if not home.task.public_set_labelled:
        return None
    try:
        return decode((home.folder / TRUTH_FILE).read_bytes())["truth"]
    except FileNotFoundError:
        raise UserError(
            f"{home.folder / TRUTH_FILE}, the labels of the public set, is gone. Set the federation up anew."
        ) from None


def _first_weights(
    home: CoordinatorHome, images: ImageSet, image_set: str, targets: bytes | None, on_progress: OnProgress
) -> Mapping[str, Floats] | None:
    """Of the small network after `fedhelp.start_steps` here; None for none. What is killed goes on where it was."""
    num_steps = home.task.fedhelp.start_steps
    if not num_steps:
        return None
    from ayni.learning.head_start import taught_weights  # torch: only here, never while serving
    from ayni.learning.site_data import public_images
    from ayni.tensors.targets import decode_targets

    guidance = decode_targets(targets) if targets is not None else None
    public = public_images(images.pixels_NHWC, image_set, home.task, guidance, None, truth=_truth_of(home))
    return taught_weights(
        public, home.task, num_steps, checkpoint=home.folder / CHECKPOINT,
        tell=lambda progress: on_progress(progress.what, progress.step, progress.num_steps),
    )  # fmt: skip


def check_guided(home: CoordinatorHome) -> None:
    """Rounds must not start without the guidance, and the first weights, that the task promises."""
    with transaction(home.engine) as session:
        known, learnt = find_artefact(session, "targets", "guidance"), _have_learnt(session)
    if home.task.public_set_labelled and not learnt:
        raise UserError(
            f"the labels of the public images have not been used yet. Run `ayni coordinator guide {home.folder}` "
            "first; it goes on where it stopped."
        )
    if home.task.guidance.source != "none" and known is None:
        raise UserError(
            f"the foundation model has not answered yet. Run `ayni coordinator guide {home.folder}` first; "
            "it goes on where it stopped."
        )
