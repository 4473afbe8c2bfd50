"""What a routed bundle is packed from: the newest global model and the experts that sites share now.

The export package finds this by the entry point `ayni.experts`; it knows no coordinator.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from ayni.errors import IntegrityError, UserError
from ayni.learning.batches import Normaliser
from ayni.tensors import safe
from ayni.tensors.expert import Expert, ExpertInfo, decode_expert
from ayni.tensors.image_set import decode_image_set
from ayni_coordinator import experts, federation
from ayni_coordinator.database import ExpertRow, transaction
from ayni_coordinator.home import CoordinatorHome, find_artefact
from ayni_export.routed.source import Federation


def read_federation(folder: Path) -> Federation:
    """Raises UserError if `folder` is no coordinator's, or nobody shares anything; IntegrityError for damaged files."""
    home = CoordinatorHome.open(folder)
    with transaction(home.engine) as session:
        shared = [_read(home, row) for row in experts.shared_by(session).values()]
        if not shared:
            raise UserError(
                "no site shares its personal model now, so there is nothing to route between. A site agrees with "
                "`ayni site share-expert HOME`, if the task has [personal] and the federation has finished."
            )
        newest = federation.current_round(session).number
        global_model = _global(home, session, shared)
    return Federation(home.task, newest, (global_model, *shared), home.keys.signing)


def _read(home: CoordinatorHome, row: ExpertRow) -> Expert:
    path = experts.path_of(home, row.site)
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise IntegrityError(f"{path} is missing or damaged. Ask {row.site!r} to share its expert again.")
    return decode_expert(data)


def _global(home: CoordinatorHome, session: Session, shared: list[Expert]) -> Expert:
    """Without statistics: nobody may say what all sites' images look like together."""
    newest = federation.current_round(session)
    tensors = safe.decode(home.store.read(newest.global_sha256))
    public_set = find_artefact(session, "public-set")
    if public_set:
        normalise = Normaliser.of(decode_image_set(home.store.read(public_set.sha256)).pixels_NHWC)
    else:  # each site has its own: between them
        shares = np.array([expert.info.num_train for expert in shared], np.float64)
        both = [np.average([getattr(e.info, k) for e in shared], 0, shares) for k in ("pixel_mean", "pixel_std")]
        normalise = Normaliser(*(tuple(round(float(value), 4) for value in values) for values in both))
    answers = federation.answers_of(session, newest.number).values()
    info = ExpertInfo(
        site=experts.GLOBAL,
        task=home.task.name,
        rounds=newest.number,
        decay=0.0,
        num_train=sum(answer.num_examples for answer in answers if answer.state == "counted"),
        pixel_mean=normalise.mean,
        pixel_std=normalise.std,
    )
    return Expert(info, {name: np.array(tensor, np.float32) for name, tensor in tensors.items()})
