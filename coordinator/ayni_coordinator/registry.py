"""Who may come in: invitations and sites, each change in one transaction with its line in the audit log."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from ayni.errors import RefusedError, UserError
from ayni.invitation import Invitation
from ayni.keys import Certificate, fingerprint
from ayni.task import Role
from ayni.wire.messages import Join, Joined
from ayni_coordinator.database import InvitationRow, SiteRow, note
from ayni_coordinator.home import CoordinatorHome


def invite(
    home: CoordinatorHome, session: Session, *, site: str, role: Role, valid_s: float, now_s: float
) -> Invitation:
    """One invitation for one site. The register keeps its public key and expiry only."""
    row = session.get(SiteRow, site)
    if row and row.state == "active":
        raise UserError(f"there is a site {site!r} already. Choose another name, or revoke it first.")
    if row:
        raise UserError(f"the name {site!r} was used by a site that is now {row.state}. Choose another name.")
    for earlier in session.scalars(select(InvitationRow).where(InvitationRow.site == site)):
        earlier.state = "withdrawn"
    invitation = Invitation.new(home.keys.curve.public, home.config.endpoint, int(now_s + valid_s))
    session.add(InvitationRow(key=invitation.keys.public, site=site, role=role, expires_s=invitation.expires_s))
    note(session, now_s, "coordinator", f"invited {role} {site!r}, valid for {valid_s / 3600:.1f} hours")
    return invitation


def join(home: CoordinatorHome, session: Session, invitation_key: bytes, asked: Join, now_s: float) -> Joined:
    """Register a site's keys. A lost reply may be asked for again; other keys with the same invitation may not."""
    if home.task.dual_kd and asked.participation != "weights":
        raise RefusedError(
            "not-allowed",
            "this federation's task has a teacher (dual_kd), and its sites' small networks must travel: join with "
            "--participation weights. The invitation can still be used.",
        )
    invitation = session.get(InvitationRow, invitation_key)
    if invitation is None or invitation.state == "withdrawn" or invitation.expires_s < now_s:
        raise RefusedError("not-allowed", "this key can only be used to join, with a valid invitation")
    site = session.get(SiteRow, invitation.site)
    if site is None:
        same_key = session.scalars(select(SiteRow).where(SiteRow.curve_key == asked.curve_key)).first()
        temporary = session.get(InvitationRow, asked.curve_key)  # half of such a key has been in an e-mail
        if same_key or temporary or home.keys.curve.public == asked.curve_key:
            raise RefusedError(
                "not-allowed", f"these keys belong to another site. Join {invitation.site!r} from a new folder."
            )
        site = SiteRow(
            name=invitation.site, role=invitation.role, participation=asked.participation, curve_key=asked.curve_key,
            signing_key=asked.signing_key, joined_s=now_s, last_seen_s=now_s, state="active",
        )  # fmt: skip
        session.add(site)
        invitation.state = "used"
        note(
            session, now_s, site.name,
            f"joined as {site.role}, takes part by {site.participation}, signing key {fingerprint(asked.signing_key)}",
        )  # fmt: skip
    elif site.state != "active":
        raise RefusedError(
            "not-allowed", f"site {site.name!r} is {site.state}. Ask the coordinator for a new invitation."
        )
    elif (site.curve_key, site.signing_key) != (asked.curve_key, asked.signing_key):
        raise RefusedError(
            "used-invitation", f"this invitation has been used by {site.name!r}. Ask the coordinator for a new one."
        )
    certificate = Certificate(
        site=site.name,
        role=site.role,  # type: ignore[arg-type]
        task=home.task.name,
        signing_key=site.signing_key,
        issued_s=int(site.joined_s),
    )
    return Joined(
        site=site.name,
        role=site.role,  # type: ignore[arg-type]
        task=home.task.name,
        coordinator_signing_key=home.keys.signing_public,
        certificate=certificate.signed_by(home.keys.signing),
    )


def withdraw(session: Session, name: str, now_s: float) -> bool:
    """Take back the invitation of a site that has not joined; false if there is none."""
    query = select(InvitationRow).where(InvitationRow.site == name, InvitationRow.state == "open")
    invited = session.scalars(query).all()
    for invitation in invited:
        invitation.state = "withdrawn"
        note(session, now_s, "coordinator", f"withdrew the invitation of {name!r}")
    return bool(invited)


def end_site(session: Session, name: str, *, state: str, who: str, now_s: float) -> None:
    """`state` is "left" or "revoked". What the site gave before stays counted; it is asked for nothing more."""
    site = session.get(SiteRow, name)
    if site is None:
        raise UserError(f"there is no site {name!r}. `ayni coordinator sites` lists them.")
    if site.state != "active":
        raise UserError(f"site {name!r} is {site.state} already.")
    site.state = state
    note(session, now_s, who, f"site {name!r} is {state}; its key is no longer admitted")


def admitted_keys(session: Session, now_s: float) -> tuple[dict[bytes, str], set[bytes]]:
    """Keys of active sites with their names, and keys of invitations that can still be used (or asked again)."""
    sites = {row.curve_key: row.name for row in session.scalars(select(SiteRow).where(SiteRow.state == "active"))}
    open_invitations = select(InvitationRow).where(
        InvitationRow.state.in_(("open", "used")), InvitationRow.expires_s >= now_s
    )
    gone = set(session.scalars(select(SiteRow.name).where(SiteRow.state != "active")))
    return sites, {row.key for row in session.scalars(open_invitations) if row.site not in gone}
