"""The transport interface: how frames reach the coordinator and how its replies come back.

Two implementations, `memory` and `curve`, pass one conformance suite (tests/test_transport_conformance.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

Frames = Sequence[bytes | memoryview]

# The coordinator's side: the key that the transport has authenticated and the frames it sent; None sends nothing.
Handler = Callable[[bytes, Frames], Frames | None]
# Whether a key is let in at all. Asked at the door, and again by the handler on every message.
Admit = Callable[[bytes], bool]


class Connection(Protocol):
    """The site's side. Many requests may be under way; replies carry their request's number."""

    def send(self, frames: Frames) -> None:
        """Raises LineError if the line is down."""

    def receive(self, timeout_s: float) -> list[bytes] | None:
        """The next reply, or None after `timeout_s`. Raises LineError if the line went down."""

    def close(self) -> None: ...


# Raises LineError if nobody answers there, NotAdmittedError if the key is not let in.
Dial = Callable[[], Connection]
