"""What the coordinator remembers, as tables. SQLite by default; PostgreSQL is another URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import DDL, BigInteger, ForeignKey, LargeBinary, create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from ayni.errors import AyniError, UserError


class DatabaseError(AyniError):
    """The database cannot do its work now (disk full, locked, gone); nothing was half written."""


class Base(DeclarativeBase):
    pass


class InvitationRow(Base):
    """`state`: open, used, withdrawn. Only the public half of the temporary key is stored."""

    __tablename__ = "invitations"
    key: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    site: Mapped[str] = mapped_column(unique=False)
    role: Mapped[str]
    expires_s: Mapped[int]
    state: Mapped[str] = mapped_column(default="open")


class SiteRow(Base):
    """`state`: active, left, revoked."""

    __tablename__ = "sites"
    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    participation: Mapped[str]
    curve_key: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    signing_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    state: Mapped[str] = mapped_column(default="active")
    joined_s: Mapped[float]
    last_seen_s: Mapped[float]


class ArtefactRow(Base):
    """One line of the manifest."""

    __tablename__ = "artefacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    round_number: Mapped[int]
    sha256: Mapped[str]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(default="")


class ManifestRow(Base):
    __tablename__ = "manifests"
    version: Mapped[int] = mapped_column(primary_key=True)
    signed: Mapped[bytes] = mapped_column(LargeBinary)


class RoundRow(Base):
    """`state`: open, closed, published. A closed round has its `inputs` fixed: what is averaged, in which order.

    Round 0 is the start: published with the first weights. `global_sha256` is the whole model in fp32 and
    `residual_sha256` what the published changes have left out so far; neither is distributed.
    """

    __tablename__ = "rounds"
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    opened_s: Mapped[float]
    deadline_s: Mapped[float]
    close_by_hand: Mapped[bool] = mapped_column(default=False)
    inputs: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    global_sha256: Mapped[str] = mapped_column(default="")
    residual_sha256: Mapped[str] = mapped_column(default="")
    digest: Mapped[str] = mapped_column(default="")
    published_s: Mapped[float | None]


class AnswerRow(Base):
    """The state of one site in one round: wanted, counted, late, missed."""

    __tablename__ = "answers"
    round_number: Mapped[int] = mapped_column(ForeignKey("rounds.number"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    state: Mapped[str]
    update: Mapped[str] = mapped_column(default="")
    soft_labels: Mapped[str] = mapped_column(default="")
    num_examples: Mapped[int] = mapped_column(default=0)
    train_s: Mapped[float] = mapped_column(default=0.0)
    answered_s: Mapped[float | None]


class ExpertRow(Base):
    """A personal model that a site agreed to share (HOME/experts/SITE.expert). `state`: shared, withdrawn."""

    __tablename__ = "experts"
    site: Mapped[str] = mapped_column(ForeignKey("sites.name"), primary_key=True)
    state: Mapped[str]
    sha256: Mapped[str]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    rounds: Mapped[int]
    num_cases: Mapped[int]
    shared_s: Mapped[float]


class TrafficRow(Base):
    __tablename__ = "traffic"
    site: Mapped[str] = mapped_column(primary_key=True)
    purpose: Mapped[str] = mapped_column(primary_key=True)
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_down: Mapped[int] = mapped_column(BigInteger, default=0)


class AuditRow(Base):
    """Append-only: SQLite itself refuses to change or delete a line (elsewhere, grant INSERT and SELECT only)."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    at_s: Mapped[float]
    who: Mapped[str]
    what: Mapped[str]


for _verb in ("UPDATE", "DELETE"):
    event.listen(
        AuditRow.__table__,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER audit_no_{_verb.lower()} BEFORE {_verb} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )


def open_database(url: str) -> Engine:
    """SQLite with a write-ahead log and full flushes: NORMAL can lose an acknowledged answer at a power cut."""
    try:
        engine = create_engine(url)
    except (SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
        raise UserError(f"the database URL cannot be used: {error}. Check coordinator.toml.") from None
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_up(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # we say BEGIN IMMEDIATE ourselves
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        Base.metadata.create_all(engine)
    except SQLAlchemyError as error:
        told = str(error).splitlines()[0]  # the others are a link for programmers
        raise UserError(
            f"the database {engine.url!r} cannot be opened: {told}. Check the URL in coordinator.toml."
        ) from None
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """All of it or nothing of it is written. Raises DatabaseError."""
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session
    except OperationalError as error:
        told = str(error.orig)
        raise DatabaseError(f"the database cannot be used: {told}. Is the disk full or read-only?") from None


def note(session: Session, now_s: float, who: str, what: str) -> None:
    """A line in the audit log, in the same transaction as what it tells."""
    session.add(AuditRow(at_s=now_s, who=who, what=what))
