"""Artefacts on their way up: parts go to one file per site and hash, verified and flushed before they count."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ayni.errors import RefusedError
from ayni_coordinator.store import ArtefactStore

MAX_UNHASHED_PARTS = 4


@dataclass(slots=True)
class _Upload:
    file: BinaryIO
    hasher: hashlib._Hash
    received_bytes: int
    hashing: deque[Future[None]] = field(default_factory=deque)  # parts that are written and not hashed yet, in order

    def add(self, part: bytes | memoryview, hash_thread: ThreadPoolExecutor) -> None:
        """Hashing takes longer than writing, so it is done beside it; few parts wait for it in memory."""
        self.file.write(part)
        self.received_bytes += len(part)
        self.hashing.append(hash_thread.submit(self.hasher.update, part))
        if len(self.hashing) > MAX_UNHASHED_PARTS:
            self.hashing.popleft().result()

    def sha256(self) -> str:
        while self.hashing:
            self.hashing.popleft().result()
        return self.hasher.hexdigest()


class Uploads:
    """`max_bytes` bounds one artefact. A site has a few uploads under way at most; older ones are let go.

    It also puts a few artefacts in one round at most: an answer has two, and no site may fill the disk for all.
    """

    MAX_OPEN_PER_SITE = 4
    MAX_STORED_PER_SITE = 8

    def __init__(self, folder: Path, store: ArtefactStore, max_bytes: int) -> None:
        self._folder, self._store, self.max_bytes = folder, store, max_bytes
        self._open: dict[tuple[str, str], _Upload] = {}
        self._num_stored: Counter[str] = Counter()
        self._hash_thread = ThreadPoolExecutor(1, thread_name_prefix="ayni-hash")
        folder.mkdir(parents=True, exist_ok=True)

    def received(self, site: str, sha256: str) -> tuple[int, bool]:
        """Bytes that have arrived, and whether the whole is stored."""
        if self._store.has(sha256) and not self._path(site, sha256).exists():
            return 0, True
        return self._resume(site, sha256).received_bytes, False

    def put(self, site: str, sha256: str, offset: int, total_bytes: int, part: bytes | memoryview) -> tuple[int, bool]:
        """Parts come in order; a repeated one is ignored. Raises RefusedError if it is too large or damaged."""
        try:
            return self._put(site, sha256, offset, total_bytes, part)
        except OSError as error:
            self._let_go(site, sha256)
            raise RefusedError("busy", f"the coordinator cannot store an artefact now ({error.strerror})") from error

    def _put(self, site: str, sha256: str, offset: int, total_bytes: int, part: bytes | memoryview) -> tuple[int, bool]:
        if total_bytes > self.max_bytes or offset + len(part) > total_bytes:
            raise RefusedError("too-large", f"an artefact of {total_bytes} bytes; this task allows {self.max_bytes}")
        if self._store.has(sha256) and (site, sha256) not in self._open:
            return total_bytes, True
        if self._num_stored[site] >= self.MAX_STORED_PER_SITE:
            raise RefusedError(
                "too-large", f"{site!r} has put {self._num_stored[site]} artefacts in this round already"
            )
        upload = self._resume(site, sha256)
        if offset == upload.received_bytes:
            upload.add(part, self._hash_thread)
        if upload.received_bytes < total_bytes:
            return upload.received_bytes, False
        self._finish(site, sha256, upload)
        return total_bytes, True

    def _path(self, site: str, sha256: str) -> Path:
        return self._folder / f"{site}.{sha256}.part"

    def _resume(self, site: str, sha256: str) -> _Upload:
        if (site, sha256) not in self._open:
            mine = [key for key in self._open if key[0] == site]
            for key in mine[: max(0, len(mine) - self.MAX_OPEN_PER_SITE + 1)]:
                self._let_go(*key)
            file = self._path(site, sha256).open("a+b")
            file.seek(0)
            self._open[site, sha256] = _Upload(file, hashlib.file_digest(file, "sha256"), file.tell())
        return self._open[site, sha256]

    def _finish(self, site: str, sha256: str, upload: _Upload) -> None:
        del self._open[site, sha256]
        with upload.file as file:
            file.flush()
            os.fsync(file.fileno())
        path = self._path(site, sha256)
        if upload.sha256() != sha256:
            path.unlink()
            raise RefusedError("busy", "the artefact arrived damaged and was thrown away; it can be sent again")
        self._store.adopt(path, sha256)
        self._num_stored[site] += 1

    def _let_go(self, site: str, sha256: str) -> None:
        if upload := self._open.pop((site, sha256), None):
            with suppress(OSError):  # closing writes what could not be written before
                upload.file.close()
        self._path(site, sha256).unlink(missing_ok=True)

    def start_anew(self) -> None:
        """A round is over: what has arrived in part is of no use to anybody."""
        for key in list(self._open):
            self._let_go(*key)
        for stray in self._folder.glob("*.part"):
            stray.unlink()
        self._num_stored.clear()

    def close(self) -> None:
        for upload in self._open.values():
            upload.file.close()
        self._open.clear()
        self._hash_thread.shutdown()
