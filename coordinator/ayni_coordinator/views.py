"""What a person or a program reads about a federation: only what is stored."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy import func, select

from ayni.errors import UserError
from ayni_coordinator import experts, federation
from ayni_coordinator.database import AuditRow, SiteRow, TrafficRow, transaction
from ayni_coordinator.guiding import check_guided
from ayni_coordinator.home import CoordinatorHome
from ayni_coordinator.teaching.publish import check_taught


class SiteView(msgspec.Struct, frozen=True, kw_only=True):
    """`this_round`: wanted, counted, late, missed, or "-" when no round is under way or the site is gone."""

    name: str
    role: str
    state: str
    participation: str
    last_seen: str
    this_round: str
    expert_since: str  # when it agreed to share its personal model, or empty
    bytes_up: int
    bytes_down: int


class FederationView(msgspec.Struct, frozen=True, kw_only=True):
    """`phase`: waiting (for sites to join), open, closed (being averaged), finished. `to_do`: what must be done before
    it can be served, or empty."""

    task: str
    phase: str
    round_number: int
    num_rounds: int
    deadline_in_s: float
    quorum: int
    to_do: str
    sites: list[SiteView]


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    at: str
    who: str
    what: str


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def federation_view(folder: Path) -> FederationView:
    home = CoordinatorHome.open(folder)
    with transaction(home.engine) as session:
        now = federation.describe_round(home, session, "", time.time())
        answers = federation.answers_of(session, now.round_number)
        sums = select(TrafficRow.site, func.sum(TrafficRow.bytes_up), func.sum(TrafficRow.bytes_down))
        traffic = {site: (up, down) for site, up, down in session.execute(sums.group_by(TrafficRow.site))}
        shared = experts.shared_by(session)
        views = []
        for row in session.scalars(select(SiteRow).order_by(SiteRow.name)):
            wanted = "wanted" if row.state == "active" and now.phase == "open" else "-"
            answer = answers.get(row.name)
            up, down = traffic.get(row.name, (0, 0))
            views.append(
                SiteView(
                    name=row.name,
                    role=row.role,
                    state=row.state,
                    participation=row.participation,
                    last_seen=_utc(row.last_seen_s),
                    this_round=answer.state if answer else wanted,
                    expert_since=_utc(shared[row.name].shared_s) if row.name in shared else "",
                    bytes_up=up,
                    bytes_down=down,
                )
            )
    return FederationView(
        task=home.task.name,
        phase=now.phase,
        round_number=now.round_number,
        num_rounds=now.num_rounds,
        deadline_in_s=now.deadline_in_s,
        quorum=home.task.round.quorum,
        to_do=_to_do(home),
        sites=views,
    )


def _to_do(home: CoordinatorHome) -> str:
    try:
        check_guided(home)
        check_taught(home)
    except UserError as error:
        return str(error)
    return ""


def audit_lines(folder: Path) -> list[AuditLine]:
    home = CoordinatorHome.open(folder)
    with transaction(home.engine) as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.id))
        return [AuditLine(at=_utc(row.at_s), who=row.who, what=row.what) for row in rows]
