"""The rounds of a federation as stored states: open -> closed (inputs fixed) -> published. Kill it anywhere.

Every transition is one transaction. A closed round has an ordered list of hashes; averaging it is a pure function,
so a coordinator that was killed in the middle computes the same bits again.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ayni.errors import RefusedError
from ayni.task import Task
from ayni.wire.messages import Phase, RoundIs, Submit, Submitted
from ayni_coordinator.aggregation import RoundInputs, SiteInput, aggregate
from ayni_coordinator.database import AnswerRow, ArtefactRow, ManifestRow, RoundRow, SiteRow, note
from ayni_coordinator.home import CoordinatorHome, find_artefact, list_artefact, publish
from ayni_coordinator.rounds import RoundFacts, decide, retry_after_s


def current_round(session: Session) -> RoundRow:
    newest = session.scalars(select(RoundRow).order_by(RoundRow.number.desc())).first()
    assert newest is not None  # round 0 is made with the home
    return newest


def active_sites(session: Session) -> list[SiteRow]:
    return list(session.scalars(select(SiteRow).where(SiteRow.state == "active").order_by(SiteRow.name)))


def answers_of(session: Session, round_number: int) -> dict[str, AnswerRow]:
    return {row.site: row for row in session.scalars(select(AnswerRow).where(AnswerRow.round_number == round_number))}


def advance(home: CoordinatorHome, session: Session, now_s: float) -> RoundRow | None:
    """Move the state as far as time and answers allow; returns a closed round that waits to be averaged."""
    newest = current_round(session)
    if newest.state == "published":
        if newest.number < home.task.training.rounds and (
            newest.number > 0 or len(active_sites(session)) >= home.task.round.wait_for_sites
        ):
            open_round(home, session, newest.number + 1, now_s)
        return None
    if newest.state == "closed":
        return newest
    answers = answers_of(session, newest.number)
    wanted = [site.name for site in active_sites(session) if _state(answers, site.name) == "wanted"]
    num_counted = sum(answer.state == "counted" for answer in answers.values())
    facts = RoundFacts(newest.deadline_s, len(wanted), num_counted, home.task.round.quorum, newest.close_by_hand)
    match decide(facts, now_s):
        case "close":
            close_round(home, session, newest, wanted, now_s)
            return newest
        case "extend":
            newest.deadline_s = now_s + home.task.round.deadline_s
            note(
                session,
                now_s,
                "coordinator",
                f"round {newest.number}: deadline passed with {num_counted} of {facts.quorum} answers needed; extended",
            )
        case "wait":
            pass
    return None


def _state(answers: dict[str, AnswerRow], site: str) -> str:
    return answers[site].state if site in answers else "wanted"


def open_round(home: CoordinatorHome, session: Session, number: int, now_s: float) -> None:
    before = current_round(session)
    session.add(
        RoundRow(
            number=number,
            state="open",
            opened_s=now_s,
            deadline_s=now_s + home.task.round.deadline_s,
            global_sha256=before.global_sha256,
            residual_sha256=before.residual_sha256,
            digest=before.digest,
            published_s=None,
        )
    )
    note(session, now_s, "coordinator", f"round {number} of {home.task.training.rounds} is open")


def close_round(home: CoordinatorHome, session: Session, row: RoundRow, missed: list[str], now_s: float) -> None:
    """Fix what is averaged: the counted answers in the order of the sites' names."""
    answers = answers_of(session, row.number)
    for site in missed:
        session.add(AnswerRow(round_number=row.number, site=site, state="missed", answered_s=None))
    image_set = find_artefact(session, "public-set")
    inputs = RoundInputs(
        round_number=row.number,
        global_sha256=row.global_sha256,
        residual_sha256=row.residual_sha256,
        image_set=image_set.sha256 if image_set else "",
        sites=tuple(
            SiteInput(site=name, update=answer.update, soft_labels=answer.soft_labels, num_examples=answer.num_examples)
            for name, answer in sorted(answers.items())
            if answer.state == "counted"
        ),
    )
    row.state, row.inputs = "closed", msgspec.json.encode(inputs)
    told = f"round {row.number} closed with {len(inputs.sites)} answers"
    note(session, now_s, "coordinator", told + (f"; without {', '.join(missed)}" if missed else ""))


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A round's result with every part in the store: hashes in hex or empty, and the bytes of what is listed."""

    whole: str
    residual: str
    published: str
    published_bytes: int
    name: str
    digest: str
    consensus: str
    consensus_bytes: int


def average_round(home: CoordinatorHome, inputs: RoundInputs) -> StoredResult:
    """Average, and put the result on the disk; the database is not touched. Raises IntegrityError."""
    result = aggregate(inputs, home.task, home.store.read)
    whole = home.store.put(result.whole)
    published = whole if result.published is result.whole else ""
    return StoredResult(
        whole=whole,
        residual=home.store.put(result.residual) if result.residual else "",
        published=published or (home.store.put(result.published) if result.published else ""),
        published_bytes=len(result.published),
        name=result.name,
        digest=result.digest,
        consensus=home.store.put(result.consensus) if result.consensus else "",
        consensus_bytes=len(result.consensus or b""),
    )


def publish_round(home: CoordinatorHome, session: Session, number: int, result: StoredResult, now_s: float) -> None:
    """Make the result the newest model, sign the new manifest and open the next round, all at once."""
    row = session.get(RoundRow, number)
    if row is None or row.state != "closed":
        return  # published before a restart
    row.global_sha256, row.residual_sha256 = result.whole, result.residual
    row.digest, row.state, row.published_s = result.digest, "published", now_s
    if result.published:
        if result.name == "whole":  # what came before it is of no use to anybody now
            session.query(ArtefactRow).filter(ArtefactRow.kind == "model").delete()
        size = result.published_bytes
        list_artefact(session, "model", result.name, number, result.published, size, digest=result.digest)
    if result.consensus:
        session.query(ArtefactRow).filter(ArtefactRow.kind == "targets", ArtefactRow.name == "consensus").delete()
        list_artefact(session, "targets", "consensus", number, result.consensus, result.consensus_bytes)
    version = publish(home, session, now_s)
    note(session, now_s, "coordinator", f"round {number} published as manifest {version}, model {result.digest[:12]}")
    if number == home.task.training.rounds:
        note(session, now_s, "coordinator", f"finished after {number} rounds")
    advance(home, session, now_s)


def is_open(session: Session, round_number: int) -> bool:
    newest = current_round(session)
    return newest.number == round_number and newest.state == "open"


def answer_round(session: Session, site: str, asked: Submit, now_s: float) -> Submitted:
    """Count a site's answer once; a repetition is told the same, a late one is told so."""
    newest = current_round(session)
    row = session.get(AnswerRow, (asked.round_number, site))
    update, soft_labels = (sha.hex() if sha else "" for sha in (asked.update, asked.soft_labels))
    if row and row.state == "late":
        return Submitted(round_number=asked.round_number, outcome="late")
    if row and row.state == "counted":
        if (row.update, row.soft_labels) != (update, soft_labels):
            raise RefusedError("not-allowed", f"round {asked.round_number} has another answer of this site already")
        return Submitted(round_number=asked.round_number, outcome="counted")
    if asked.round_number > newest.number or asked.round_number == 0:
        raise RefusedError("bad-request", f"round {asked.round_number} is not open yet")
    counted = is_open(session, asked.round_number)
    if row is None:
        row = AnswerRow(round_number=asked.round_number, site=site)
        session.add(row)
    row.state, row.answered_s = "counted" if counted else "late", now_s
    row.num_examples, row.train_s = asked.num_examples, asked.train_s
    if counted:
        row.update, row.soft_labels = update, soft_labels
        note(session, now_s, site, f"answered round {asked.round_number} after {asked.train_s:.1f} s of training")
        return Submitted(round_number=asked.round_number, outcome="counted")
    note(session, now_s, site, f"answered round {asked.round_number} too late; not used")
    return Submitted(round_number=asked.round_number, outcome="late")


@dataclass(frozen=True, slots=True)
class Standing:
    """How the federation stands, the same for all sites. `answers` has the state of each site that answered."""

    phase: Phase
    round_number: int
    since_s: float  # when this phase began, or what it waits for was last done
    deadline_s: float
    manifest_version: int
    num_sites: int
    answers: dict[str, str]


def standing(home: CoordinatorHome, session: Session) -> Standing:
    """Nothing is claimed that is not stored."""
    newest = current_round(session)
    is_over = newest.state == "published" and newest.number == home.task.training.rounds
    phase = "finished" if is_over else "waiting" if newest.state == "published" else newest.state
    sites = active_sites(session)
    since_s = newest.published_s or newest.opened_s
    if phase == "waiting":  # who waits for others asks often when one has just come
        since_s = max([since_s, *(site.joined_s for site in sites)])
    return Standing(
        phase=phase,  # type: ignore[arg-type]
        round_number=newest.number,
        since_s=since_s,
        deadline_s=newest.deadline_s,
        manifest_version=session.scalar(select(func.max(ManifestRow.version))) or 0,
        num_sites=len(sites),
        answers={site: answer.state for site, answer in answers_of(session, newest.number).items()},
    )


def seen_from(site: str, now: Standing, task: Task, now_s: float) -> RoundIs:
    return RoundIs(
        phase=now.phase,
        round_number=now.round_number,
        num_rounds=task.training.rounds,
        wanted=now.phase == "open" and now.answers.get(site, "wanted") == "wanted",
        deadline_in_s=max(0.0, now.deadline_s - now_s),
        retry_after_s=retry_after_s(now.phase, max(0.0, now_s - now.since_s), now.num_sites),
        manifest_version=now.manifest_version,
        num_sites=now.num_sites,
        num_answered=sum(state == "counted" for state in now.answers.values()),
        now_s=now_s,
    )


def describe_round(home: CoordinatorHome, session: Session, site: str, now_s: float) -> RoundIs:
    """How the federation stands, seen from one site."""
    return seen_from(site, standing(home, session), home.task, now_s)


def listed_artefacts(session: Session) -> list[ArtefactRow]:
    return list(session.scalars(select(ArtefactRow)))


def referenced(session: Session) -> set[str]:
    """Every hash that something still needs: the manifest, the newest two rounds and their answers."""
    newest = current_round(session).number
    rounds = session.scalars(select(RoundRow).where(RoundRow.number >= newest - 1)).all()
    answers = session.scalars(select(AnswerRow).where(AnswerRow.round_number >= newest - 1)).all()
    kept = {sha for row in rounds for sha in (row.global_sha256, row.residual_sha256)}
    kept |= {sha for row in answers for sha in (row.update, row.soft_labels)}
    return (kept | set(session.scalars(select(ArtefactRow.sha256)))) - {""}
