"""What a site remembers between dials: its settings, its outbox, what it has received and paid for in bytes."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ayni.artefacts.files import write_atomic
from ayni.artefacts.manifest import Manifest, verified_manifest
from ayni.errors import UserError
from ayni.keys import Key
from ayni.task import Participation, Role

SETTINGS_FILE = "site.json"
MANIFEST_FILE = "manifest.signed"


class SiteSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Written once by joining; `num_threads`, `memory_mb` and `data` may be changed by `ayni train`."""

    endpoint: str
    coordinator_key: Key
    coordinator_signing_key: Key
    site: str
    role: Role
    task: str
    participation: Participation
    num_threads: int = 1
    memory_mb: int = 0
    data: str = ""


def read_settings(home: Path) -> SiteSettings:
    try:
        return msgspec.json.decode((home / SETTINGS_FILE).read_bytes(), type=SiteSettings)
    except FileNotFoundError:
        raise UserError(f"{home} has not joined a federation. Use `ayni join INVITATION {home}` first.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{home / SETTINGS_FILE} is damaged ({error}). Restore it, or join again elsewhere.") from None


def write_settings(home: Path, settings: SiteSettings) -> None:
    write_atomic(home / SETTINGS_FILE, msgspec.json.format(msgspec.json.encode(settings)) + b"\n", mode=0o600)


@dataclass(frozen=True, slots=True)
class Answer:
    """A trained round on its way: file names in HOME/outbox, empty if there is none."""

    round_number: int
    update: str
    soft_labels: str
    num_examples: int
    train_s: float


class SiteState:
    """HOME/site.sqlite: every change is flushed to the disk before the call returns."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._database = sqlite3.connect(home / "site.sqlite", isolation_level=None)
        self._database.executescript(
            """
            PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000;
            CREATE TABLE IF NOT EXISTS outbox (
                round_number INTEGER PRIMARY KEY, update_file TEXT NOT NULL, soft_labels_file TEXT NOT NULL,
                num_examples INTEGER NOT NULL, train_s REAL NOT NULL, outcome TEXT NOT NULL DEFAULT '');
            CREATE TABLE IF NOT EXISTS traffic (
                purpose TEXT PRIMARY KEY, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL);
            """
        )
        self._unflushed: dict[str, tuple[int, int]] = {}
        self._flushed_s = time.monotonic()

    def close(self) -> None:
        self.flush_traffic()
        self._database.close()

    def __enter__(self) -> SiteState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Outbox: trained rounds that wait for the coordinator's acknowledgement

    def put_answer(self, answer: Answer) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO outbox (round_number, update_file, soft_labels_file, num_examples, train_s) "
            "VALUES (?, ?, ?, ?, ?)",
            (answer.round_number, answer.update, answer.soft_labels, answer.num_examples, answer.train_s),
        )

    def pending_answers(self) -> list[Answer]:
        rows = self._database.execute(
            "SELECT round_number, update_file, soft_labels_file, num_examples, train_s FROM outbox "
            "WHERE outcome = '' ORDER BY round_number"
        )
        return [Answer(*row) for row in rows]

    def has_answer(self, round_number: int) -> bool:
        query = "SELECT 1 FROM outbox WHERE round_number = ?"
        return self._database.execute(query, (round_number,)).fetchone() is not None

    def acknowledge(self, round_number: int, outcome: str) -> None:
        self._database.execute("UPDATE outbox SET outcome = ? WHERE round_number = ?", (outcome, round_number))

    def outcomes(self) -> dict[int, str]:
        """Round -> counted, late, or empty while it waits to be sent."""
        return dict(self._database.execute("SELECT round_number, outcome FROM outbox ORDER BY round_number"))

    # Traffic

    def meter(self, purpose: str, bytes_up: int, bytes_down: int) -> None:
        up, down = self._unflushed.get(purpose, (0, 0))
        self._unflushed[purpose] = (up + bytes_up, down + bytes_down)

    def flush_traffic(self, *, every_s: float = 0.0) -> None:
        """Write the counts, all at once, unless they were written less than `every_s` ago."""
        if time.monotonic() - self._flushed_s < every_s or not self._unflushed:
            return
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO traffic VALUES (?, ?, ?) ON CONFLICT (purpose) DO UPDATE SET "
            "bytes_up = bytes_up + excluded.bytes_up, bytes_down = bytes_down + excluded.bytes_down",
            [(purpose, up, down) for purpose, (up, down) in self._unflushed.items()],
        )
        self._database.execute("COMMIT")
        self._flushed_s = time.monotonic()
        self._unflushed.clear()

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Purpose -> bytes up, bytes down, as they were on the line (without TCP and IP)."""
        self.flush_traffic()
        rows = self._database.execute("SELECT purpose, bytes_up, bytes_down FROM traffic ORDER BY purpose")
        return {purpose: (up, down) for purpose, up, down in rows}

    # Manifest

    def manifest(self, coordinator_signing_key: bytes) -> Manifest | None:
        path = self._home / MANIFEST_FILE
        return verified_manifest(path.read_bytes(), coordinator_signing_key, known=None) if path.exists() else None

    def store_manifest(self, signed: bytes) -> None:
        write_atomic(self._home / MANIFEST_FILE, signed)
