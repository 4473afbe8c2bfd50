"""The foundation model's answers, kept for ever: one small SQLite file in the coordinator's home.

`asked` is written before a question goes out and `answer` after it came back, so that a process killed in between
has counted the question. The file is held exclusively while it is open: two processes cannot ask the same thing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from ayni.errors import IntegrityError, UserError
from ayni_coordinator.guidance.source import Logits, Source

FORMAT = 2  # 1 had answers of one axis only, and no column for their shape
_TABLES = """
CREATE TABLE IF NOT EXISTS model (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, licence TEXT NOT NULL, classes TEXT NOT NULL,
    UNIQUE (name, version));
CREATE TABLE IF NOT EXISTS answer (
    model INTEGER NOT NULL REFERENCES model, image BLOB NOT NULL, logits BLOB NOT NULL,
    shape TEXT NOT NULL DEFAULT '', PRIMARY KEY (model, image));
CREATE TABLE IF NOT EXISTS asked (
    id INTEGER PRIMARY KEY, model INTEGER NOT NULL REFERENCES model, num_images INTEGER NOT NULL, at TEXT NOT NULL);
"""


class AnswerStore(AbstractContextManager["AnswerStore"]):
    """Answers are float32 logits, [C] or [S, h, w], under (SHA-256 of the image, model, version).

    Use it as a context manager.
    """

    def __init__(self, path: Path, *, wait_s: float = 2.0) -> None:
        """Raises UserError if another process holds the file, IntegrityError if it is damaged."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found not in (0, 1, FORMAT):
                raise UserError(f"{path} was written by a newer Ayni (format {found}). Update Ayni.")
            tables = "ALTER TABLE answer ADD COLUMN shape TEXT NOT NULL DEFAULT '';" if found == 1 else _TABLES
            self._db.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {FORMAT}; COMMIT;")
        except sqlite3.OperationalError as error:
            self._db.close()
            raise UserError(f"{path} cannot be used now ({error}). Is another `ayni` asking? Wait for it.") from None
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise IntegrityError(f"{path} is damaged ({error}). Restore it from a backup, or move it away.") from None
        except UserError:
            self._db.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    def model_id(self, source: Source) -> int:
        """The number of this model here. Raises UserError if the same name and version once had other classes."""
        classes = msgspec.json.encode(source.classes).decode()
        with self._db:
            self._db.execute(
                "INSERT INTO model (name, version, licence, classes) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (source.name, source.version, source.licence, classes),
            )
            query = "SELECT id, classes FROM model WHERE name = ? AND version = ?"
            model, stored = self._db.execute(query, (source.name, source.version)).fetchone()
        if stored != classes:
            raise UserError(
                f"{source.name} {source.version} has other classes now than when it was first asked. "
                "A changed model needs a new version."
            )
        return int(model)

    def num_asked(self) -> int:
        """Images that any model was ever asked about from this home, answered or not."""
        (total,) = self._db.execute("SELECT coalesce(sum(num_images), 0) FROM asked").fetchone()
        return int(total)

    def begin_question(self, model: int, num_images: int) -> int:
        """Count the images before they go out. Returns the question's number for `withdraw_question`."""
        row = (model, num_images, datetime.now(UTC).isoformat(timespec="seconds"))
        question = self._db.execute("INSERT INTO asked (model, num_images, at) VALUES (?, ?, ?)", row).lastrowid
        assert question is not None
        return question

    def withdraw_question(self, question: int) -> None:
        """The source refused at the door: the question was not asked."""
        self._db.execute("DELETE FROM asked WHERE id = ?", (question,))

    def store(self, model: int, images: Sequence[bytes], logits_BC: Logits) -> None:
        """All of a batch or none of it; durable when this returns."""
        shape = "x".join(str(size) for size in logits_BC.shape[1:])
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            answers = zip(images, logits_BC.astype("<f4"), strict=True)
            rows = [(model, image, logits.tobytes(), shape) for image, logits in answers]
            self._db.executemany("INSERT INTO answer (model, image, logits, shape) VALUES (?, ?, ?, ?)", rows)

    def images(self, model: int) -> set[bytes]:
        """The images that this model has answered."""
        return {image for (image,) in self._db.execute("SELECT image FROM answer WHERE model = ?", (model,))}

    def read(self, model: int, images: Sequence[bytes]) -> Logits:
        """logits_NC (or [N, S, h, w], if they are dense) of answered images, in their order.

        Raises UserError if some are of another shape than others: the model did not keep to one kind of answer.
        """
        query = "SELECT logits, shape FROM answer WHERE model = ? AND image = ?"
        rows = [self._db.execute(query, (model, image)).fetchone() for image in images]
        answered = [_array(logits, shape) for logits, shape in rows]
        if len({one.shape for one in answered}) > 1:
            raise UserError("the model answered these images in different ways. A changed model needs a new version.")
        return np.stack(answered).astype(np.float32)


def _array(logits: bytes, shape: str) -> Logits:
    values: Logits = np.frombuffer(logits, "<f4")
    return values.reshape([int(size) for size in shape.split("x")]) if shape else values  # none: from format 1
