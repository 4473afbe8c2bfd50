"""The transport inside one process: for simulations and tests, with the same admission as the real one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ayni.errors import LineError, NotAdmittedError
from ayni.wire.connection import Admit, Connection, Dial, Frames, Handler


@dataclass(slots=True)
class MemoryConnection:
    """Calls the handler at once; the replies wait in a queue."""

    public_key: bytes
    admit: Admit
    handler: Handler
    replies: deque[list[bytes]] = field(default_factory=deque)
    closed: bool = False

    def send(self, frames: Frames) -> None:
        if self.closed:
            raise LineError("the line is closed")
        reply = self.handler(self.public_key, [bytes(frame) for frame in frames])
        if reply is not None:
            self.replies.append([bytes(frame) for frame in reply])

    def receive(self, timeout_s: float) -> list[bytes] | None:
        if self.closed:
            raise LineError("the line is closed")
        return self.replies.popleft() if self.replies else None

    def close(self) -> None:
        self.closed = True


def memory_dial(public_key: bytes, admit: Admit, handler: Handler) -> Dial:
    def dial() -> Connection:
        if not admit(public_key):
            raise NotAdmittedError("the coordinator does not admit this key")
        return MemoryConnection(public_key, admit, handler)

    return dial
