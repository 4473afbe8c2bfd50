"""The personal models that sites agreed to share: checked, kept as HOME/experts/SITE.expert, and gone when taken back.

A row says what a site agreed to; a file without such a row is no expert, and is removed when the coordinator starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from ayni.artefacts.files import flush_folder, write_atomic
from ayni.errors import IntegrityError, RefusedError
from ayni.tensors import safe
from ayni.tensors.expert import Expert, decode_expert
from ayni_coordinator import federation
from ayni_coordinator.database import ExpertRow, SiteRow, note
from ayni_coordinator.home import CoordinatorHome

GLOBAL = "global"  # what the global model is called among experts; no site's expert can be


def path_of(home: CoordinatorHome, site: str) -> Path:
    return home.folder / "experts" / f"{site}.expert"


def shares(home: CoordinatorHome, session: Session, site: str, sha256: str) -> bool:
    """Whether it shares this very expert already."""
    row = session.get(ExpertRow, site)
    return row is not None and (row.state, row.sha256) == ("shared", sha256) and path_of(home, site).exists()


def share(
    home: CoordinatorHome,
    session: Session,
    site: str,
    data: safe.Bytes,
    shapes: Mapping[str, tuple[int, ...]],
    now_s: float,
) -> None:
    """Take up a site's expert in place of the one before. Raises RefusedError if the site may not, or it is none."""
    row = session.get(SiteRow, site)
    if home.task.personal is None or row is None or row.participation != "weights" or site == GLOBAL:
        raise RefusedError("not-allowed", f"{site!r} has no personal model of this federation's network to share")
    try:
        expert = _checked(decode_expert(data), home, session, site, shapes)
    except IntegrityError as error:
        raise RefusedError("bad-artefact", f"the expert of {site!r} was not taken: {error}") from None
    info, sha256 = expert.info, hashlib.sha256(data).hexdigest()
    write_atomic(path_of(home, site), data)
    shared = session.get(ExpertRow, site)
    if shared is None:
        shared = ExpertRow(site=site)
        session.add(shared)
    shared.state, shared.sha256, shared.num_bytes = "shared", sha256, len(data)
    shared.rounds, shared.num_cases, shared.shared_s = info.rounds, info.num_cases, now_s
    seen = f"statistics of {info.num_cases} images" if info.num_cases else "no statistics"
    note(
        session, now_s, site,
        f"agreed to be an expert: its personal model after {info.rounds} rounds, {seen}, SHA-256 {sha256[:12]}",
    )  # fmt: skip


def _checked(
    expert: Expert, home: CoordinatorHome, session: Session, site: str, shapes: Mapping[str, tuple[int, ...]]
) -> Expert:
    info, task = expert.info, home.task
    if (info.site, info.task) != (site, task.name):
        raise IntegrityError(f"it says that it is {info.site!r}'s, of the task {info.task!r}")
    if len(info.pixel_mean) != task.image.channels or info.rounds > task.training.rounds:
        raise IntegrityError("its normalisation or its number of rounds is not this task's")
    newest = federation.current_round(session).digest
    if info.reference_digest not in ("", newest):
        raise IntegrityError("its statistics were made in an older global model; share it again")
    safe.check_like(expert.weights, shapes)
    return expert


def withdraw(home: CoordinatorHome, session: Session, site: str, *, who: str, now_s: float) -> None:
    """The file goes first: whatever happens then, it is in no later bundle. Harmless if nothing is shared."""
    path_of(home, site).unlink(missing_ok=True)
    row = session.get(ExpertRow, site)
    if row is None or row.state != "shared":
        return
    flush_folder(path_of(home, site).parent)
    row.state = "withdrawn"
    note(session, now_s, who, f"site {site!r} is no expert any more; later bundles are made without it")


def shared_by(session: Session) -> dict[str, ExpertRow]:
    """What active sites share, by their names in order."""
    query = select(ExpertRow).join(SiteRow, SiteRow.name == ExpertRow.site)
    found = session.scalars(
        query.where(ExpertRow.state == "shared", SiteRow.state == "active").order_by(ExpertRow.site)
    )
    return {row.site: row for row in found}


def remove_strays(home: CoordinatorHome, session: Session) -> None:
    """Files that no row speaks of: what a kill left behind, or a person put there."""
    agreed = {path_of(home, site) for site in shared_by(session)}
    for path in (home.folder / "experts").glob("*.expert"):
        if path not in agreed:
            path.unlink()
