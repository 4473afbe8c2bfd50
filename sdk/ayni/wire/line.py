"""A site's line to the coordinator: asks, retries, moves files in chunks, counts bytes.

Every request is safe to repeat, so a lost reply or a cut is answered by dialling again and asking again.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ayni.artefacts.files import flush_folder
from ayni.errors import DamagedError, IntegrityError, LineError, PeerProtocolError, RefusedError
from ayni.wire.connection import Connection, Dial
from ayni.wire.curve import HANDSHAKE_BYTES_DOWN, HANDSHAKE_BYTES_UP, wire_bytes
from ayni.wire.messages import (
    Chunk,
    GetChunk,
    GetUpload,
    PutChunk,
    Refusal,
    ReplyBody,
    Request,
    RequestBody,
    UploadIs,
    UploadKind,
    new_request,
    parse_reply,
    to_frames,
)

REPLY_TIMEOUT_S = 20.0
NUM_ATTEMPTS = 4  # within one call; who trains tries again later (site.py), who types a command is told
CHUNK_BYTES = 64 << 10  # 64 KiB x window 4 fills 850 kbit/s at 300 ms round trip
LARGEST_CHUNK_BYTES = 1 << 20
FAST_CHUNK_S = 0.25  # chunks that come faster than this may be larger
WINDOW = 4

Meter = Callable[[str, int, int], None]  # purpose, bytes up, bytes down
OnBytes = Callable[[int, int], None]  # bytes so far, bytes in all
Payload = bytes | memoryview
Body = TypeVar("Body", bound=RequestBody)


class Line:
    """Dials when it is first used and hangs up at the end of a `with`."""

    def __init__(self, dial: Dial, meter: Meter) -> None:
        self._dial, self._meter = dial, meter
        self._connection: Connection | None = None

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def ask(self, body: RequestBody, purpose: str, payload: bytes = b"") -> tuple[ReplyBody, bytes]:
        """One request, one reply. Raises RefusedError if the coordinator says no, LineError if it cannot be reached."""
        _, reply, received = next(self.ask_many([(body, payload)], purpose))
        return reply, received

    def ask_many(
        self, requests: Iterable[tuple[Body, Payload]], purpose: str
    ) -> Iterator[tuple[Body, ReplyBody, bytes]]:
        """Keep up to `WINDOW` requests under way; replies come in the order of the requests."""
        waiting: deque[tuple[Request, Body, Payload]] = deque()
        replies: dict[bytes, tuple[ReplyBody, bytes]] = {}
        todo = iter(requests)
        attempts_left = NUM_ATTEMPTS
        exhausted = False
        while True:
            try:
                if self._connection is None:  # after a cut: ask again what has no answer
                    for item in waiting:
                        if item[0].id not in replies:
                            self._send(item, purpose)
                while len(waiting) < WINDOW and not exhausted:
                    following = next(todo, None)
                    if following is None:
                        exhausted = True
                        break
                    item = (new_request(following[0]), *following)
                    waiting.append(item)
                    self._send(item, purpose)
                if not waiting:
                    return
                self._receive(replies, purpose)
                attempts_left = NUM_ATTEMPTS
            except LineError:
                attempts_left -= 1
                self.hang_up()
                if not attempts_left:
                    raise
                time.sleep(random.uniform(0.1, 0.5) * 2 ** (NUM_ATTEMPTS - attempts_left))
                continue
            while waiting and waiting[0][0].id in replies:
                request, body, _ = waiting.popleft()
                reply, received = replies.pop(request.id)
                if isinstance(reply, Refusal):
                    raise RefusedError(reply.code, reply.message)
                yield body, reply, received

    def _send(self, item: tuple[Request, Body, Payload], purpose: str) -> None:
        if not self._connection:
            self._connection = self._dial()
            self._meter("handshake", HANDSHAKE_BYTES_UP, HANDSHAKE_BYTES_DOWN)
        frames = to_frames(item[0], item[2])
        self._connection.send(frames)
        self._meter(purpose, wire_bytes(frames), 0)

    def _receive(self, replies: dict[bytes, tuple[ReplyBody, bytes]], purpose: str) -> None:
        if not self._connection:
            raise LineError("the line to the coordinator is down")
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while time.monotonic() < deadline:
            frames = self._connection.receive(min(1.0, REPLY_TIMEOUT_S))
            if frames is None:
                continue
            self._meter(purpose, 0, wire_bytes(frames))
            try:
                reply, payload = parse_reply(frames)
            except PeerProtocolError as error:
                raise RefusedError("bad-reply", f"the coordinator's answer cannot be read: {error}.") from None
            replies[reply.id] = (reply.body, bytes(payload))
            return
        raise LineError(f"the coordinator did not answer within {REPLY_TIMEOUT_S:.0f} seconds; it is safe to try again")


def download(
    line: Line, sha256: bytes, num_bytes: int, path: Path, purpose: str, on_bytes: OnBytes = lambda done, total: None
) -> None:
    """Fetch an artefact to `path`; goes on where an earlier try was cut; nothing stands there before it is verified.

    Raises IntegrityError if the bytes are not the ones that the manifest promised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    hasher = hashlib.sha256()
    with part.open("a+b") as file:
        file.seek(0)
        while block := file.read(LARGEST_CHUNK_BYTES):
            hasher.update(block)
        have = file.tell()
        if have > num_bytes:
            file.truncate(0)
            have, hasher = 0, hashlib.sha256()
        size, sent_s = CHUNK_BYTES, deque[float]()

        def chunks() -> Iterator[tuple[GetChunk, bytes]]:
            offset = have
            while offset < num_bytes:
                length = min(size, num_bytes - offset)
                sent_s.append(time.monotonic())
                yield GetChunk(sha256=sha256, offset=offset, length=length), b""
                offset += length

        done = have
        for asked, reply, payload in line.ask_many(chunks(), purpose):
            if not isinstance(reply, Chunk) or reply.offset != asked.offset or len(payload) != asked.length:
                raise IntegrityError("the coordinator sent another part than was asked for; nothing was used")
            file.write(payload)
            hasher.update(payload)
            done += len(payload)
            if time.monotonic() - sent_s.popleft() < FAST_CHUNK_S:
                size = min(2 * size, LARGEST_CHUNK_BYTES)
            on_bytes(done, num_bytes)
        file.flush()
        os.fsync(file.fileno())
    if hasher.digest() != sha256:
        part.unlink()
        raise DamagedError(f"artefact {sha256.hex()[:12]} arrived damaged and was thrown away.")
    part.replace(path)
    flush_folder(path.parent)


def upload(line: Line, kind: UploadKind, path: Path, on_bytes: OnBytes = lambda done, total: None) -> bytes:
    """Put an artefact; returns its SHA-256. Goes on where an earlier try was cut."""
    with path.open("rb") as file:  # mapped: read once for the hash, and sent from where it lies
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    sha256, num_bytes = hashlib.sha256(content).digest(), len(content)
    reply, _ = line.ask(GetUpload(sha256=sha256), kind)
    if not isinstance(reply, UploadIs):
        raise PeerProtocolError("the coordinator did not say how much has arrived")
    if reply.stored:
        return sha256
    start = min(reply.received_bytes, num_bytes - 1)  # if all has arrived, one more byte makes it count

    def chunks() -> Iterator[tuple[PutChunk, memoryview]]:
        size, offset = CHUNK_BYTES, start
        while offset < num_bytes:
            before_s = time.monotonic()
            part = content[offset : offset + size]
            yield PutChunk(kind=kind, sha256=sha256, offset=offset, total_bytes=num_bytes), part
            offset += len(part)
            if time.monotonic() - before_s < FAST_CHUNK_S:
                size = min(2 * size, LARGEST_CHUNK_BYTES)

    stored = False
    for _, answer, _ in line.ask_many(chunks(), kind):
        if not isinstance(answer, UploadIs):
            raise PeerProtocolError("the coordinator did not acknowledge a part")
        stored = answer.stored
        on_bytes(min(answer.received_bytes, num_bytes), num_bytes)
    if not stored:
        raise LineError("the coordinator has not received the whole artefact; trying again will go on where it stopped")
    return sha256
