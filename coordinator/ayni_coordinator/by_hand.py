"""What a person does to a federation by hand, each with its line in the audit log."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from ayni.errors import UserError
from ayni.invitation import Invitation
from ayni.task import Name, Role
from ayni_coordinator import experts, federation, registry
from ayni_coordinator.database import RoundRow, note, transaction
from ayni_coordinator.home import CoordinatorHome


def new_invitation(folder: Path, site: str, role: str, valid_s: float) -> Invitation:
    """Raises UserError for a name or role that cannot be."""
    try:
        msgspec.convert(site, Name)
        checked_role: Role = msgspec.convert(role, Role)
    except msgspec.ValidationError:
        raise UserError(
            f"{site!r} as {role!r} cannot be invited: a name has letters, digits, '.', '_' and '-'; "
            "a role is clinic or hospital."
        ) from None
    home, now_s = CoordinatorHome.open(folder), time.time()
    with transaction(home.engine) as session:
        return registry.invite(home, session, site=site, role=checked_role, valid_s=valid_s, now_s=now_s)


def revoke_site(folder: Path, site: str) -> None:
    home = CoordinatorHome.open(folder)
    with transaction(home.engine) as session:
        if not registry.withdraw(session, site, time.time()):
            registry.end_site(session, site, state="revoked", who="coordinator", now_s=time.time())
            experts.withdraw(home, session, site, who="coordinator", now_s=time.time())


def _open_round(newest: RoundRow) -> RoundRow:
    if newest.state != "open":
        raise UserError(f"no round is open; round {newest.number} is {newest.state}.")
    return newest


def close_by_hand(folder: Path) -> str:
    """Takes effect as soon as the coordinator serves."""
    home = CoordinatorHome.open(folder)
    with transaction(home.engine) as session:
        newest = _open_round(federation.current_round(session))
        counted = sum(answer.state == "counted" for answer in federation.answers_of(session, newest.number).values())
        if not counted:
            raise UserError(f"round {newest.number} has no answer yet; there would be nothing to average. Extend it.")
        newest.close_by_hand = True
        note(session, time.time(), "coordinator", f"round {newest.number} is to be closed by hand")
        return f"Round {newest.number} closes with {counted} answers as soon as the coordinator serves."


def extend_by_hand(folder: Path, more_s: float) -> str:
    home = CoordinatorHome.open(folder)
    with transaction(home.engine) as session:
        newest = _open_round(federation.current_round(session))
        newest.deadline_s = time.time() + more_s
        note(session, time.time(), "coordinator", f"round {newest.number} has {more_s / 60:g} more minutes by hand")
        return f"Round {newest.number} is open for {more_s / 60:g} minutes from now."
