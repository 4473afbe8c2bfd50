"""The teacher as an artefact: listed in the manifest before the first round, and never changed after it has opened."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy.orm import Session

from ayni.errors import UserError
from ayni.tensors.safe import Floats
from ayni.terminal import size_text
from ayni_coordinator.database import ArtefactRow, note, transaction
from ayni_coordinator.federation import current_round
from ayni_coordinator.first_model import begin_with
from ayni_coordinator.home import CoordinatorHome, add_artefact, find_artefact, publish


def check_taught(home: CoordinatorHome) -> None:
    """Rounds must not start without the teacher that the task promises."""
    if home.task.dual_kd is None:
        return
    with transaction(home.engine) as session:
        known = find_artefact(session, "teacher")
    if known is None:
        raise UserError(
            f"the task has a section [dual_kd], and there is no teacher yet. Run `ayni coordinator teach {home.folder} "
            "--data LABELLED` first, or give it a trained one with --import FILE."
        )


def check_may_teach(home: CoordinatorHome) -> None:
    """Raises UserError if the task has no teacher, or the sites may have it already."""
    if home.task.dual_kd is None:
        raise UserError(
            "this federation's task has no section [dual_kd], so no site would fetch a teacher. Add the section to the "
            "task's file, and set up a federation with it."
        )
    with transaction(home.engine) as session:
        _check_not_begun(session)


def _check_not_begun(session: Session) -> None:
    number = current_round(session).number
    if number > 0 and find_artefact(session, "teacher"):
        raise UserError(
            f"round {number} has opened, and the sites have the teacher already: it is sent once and stays the same. "
            "For another teacher set up another federation."
        )


def publish_teacher(
    home: CoordinatorHome, data: bytes, name: str, words: str, first: Mapping[str, Floats] | None = None
) -> str:
    """List it in the next manifest, in place of an earlier one; `words` go to the audit log. Returns what to tell.
    `first` are weights of the small network that round 1 begins with, in place of fresh ones.

    Raises UserError if the first round has opened meanwhile.
    """
    with transaction(home.engine) as session:
        _check_not_begun(session)
        session.query(ArtefactRow).filter(ArtefactRow.kind == "teacher").delete()
        add_artefact(home, session, "teacher", name, 0, data)
        if first:
            begin_with(home, session, first)
        version = publish(home, session, time.time())
        note(session, time.time(), "coordinator", f"the teacher {name!r} is in manifest {version}: {words}")
    return f"{words}. Each site fetches {size_text(len(data))} once. It is in manifest {version}."
