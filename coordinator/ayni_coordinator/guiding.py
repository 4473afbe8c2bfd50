"""The one-time guidance becomes an artefact like any other: asked once, stored, signed, listed."""

from __future__ import annotations

import time
from collections.abc import Callable

from ayni.errors import UserError
from ayni.tensors.image_set import decode_image_set
from ayni_coordinator.database import note, transaction
from ayni_coordinator.home import CoordinatorHome, add_artefact, find_artefact, publish


def add_guidance(home: CoordinatorHome, on_progress: Callable[[int, int], None]) -> str:
    """Ask what has not been asked, publish the targets; returns what to tell the person."""
    from ayni_coordinator.guidance.ask import guide

    if home.task.guidance.source == "none":
        return "The task names no foundation model; clinics learn without its guidance."
    with transaction(home.engine) as session:
        public_set, known = find_artefact(session, "public-set"), find_artefact(session, "targets", "guidance")
    if known:
        return "The foundation model's answers are stored already; nothing was asked."
    if public_set is None:
        raise UserError("guidance needs a public set. Set `public_set` in the task and set the federation up anew.")
    images = decode_image_set(home.store.read(public_set.sha256))
    targets = guide(home.task, images, public_set.sha256, home.folder, on_progress)
    with transaction(home.engine) as session:
        add_artefact(home, session, "targets", "guidance", 0, targets)
        version = publish(home, session, time.time())
        told = f"the foundation model answered once on {images.info.shape[0]} public images; manifest {version}"
        note(session, time.time(), "coordinator", told)
    return told[0].upper() + told[1:] + "."


def check_guided(home: CoordinatorHome) -> None:
    """Rounds must not start without the guidance that the task promises."""
    with transaction(home.engine) as session:
        known = find_artefact(session, "targets", "guidance")
    if home.task.guidance.source != "none" and known is None:
        raise UserError(
            f"the foundation model has not answered yet. Run `ayni coordinator guide {home.folder}` first; "
            "it goes on where it stopped."
        )
