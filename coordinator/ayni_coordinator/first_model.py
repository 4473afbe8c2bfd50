"""The small network that round 1 begins with, listed before any round is open."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy.orm import Session

from ayni.errors import UserError
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.tensors.update import encode_whole
from ayni_coordinator.database import ArtefactRow, note
from ayni_coordinator.federation import current_round
from ayni_coordinator.home import CoordinatorHome, add_artefact


def begin_with(home: CoordinatorHome, session: Session, weights: Mapping[str, Floats]) -> None:
    """Round 0's model, in place of fresh weights; half precision must hold these exactly, as it does fresh ones.

    Raises UserError if the first round has opened.
    """
    begun = current_round(session)
    if begun.number > 0:
        raise UserError(f"round {begun.number} has opened with other first weights. Set up another federation.")
    session.query(ArtefactRow).filter(ArtefactRow.kind == "model").delete()
    form = "fp32" if home.task.traffic.form == "fp32" else "fp16"
    begun.digest = safe.digest(weights)
    begun.global_sha256 = home.store.put(encode_whole(weights, "fp32"))
    add_artefact(home, session, "model", "whole", 0, encode_whole(weights, form), digest=begun.digest)
    note(session, time.time(), "coordinator", f"round 1 begins with a network that learned here, {begun.digest[:12]}")
