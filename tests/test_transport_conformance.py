"""One suite for both transports: what a site and the coordinator may rely on, in memory and over CURVE ZeroMQ."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import pytest
import zmq

from ayni.errors import LineError, NotAdmittedError
from ayni.keys import CurveKeys
from ayni.wire.connection import Admit, Connection, Dial, Frames, Handler
from ayni.wire.curve import CurveServer, curve_dial
from ayni.wire.memory import memory_dial


@dataclass
class Echo:
    """Answers with the peer's key and what it sent; a key that is not in `allowed` gets nothing."""

    allowed: set[bytes] = field(default_factory=set)
    seen: list[bytes] = field(default_factory=list)

    def admit(self, key: bytes) -> bool:
        return key in self.allowed

    def handle(self, key: bytes, frames: Frames) -> Frames | None:
        if key not in self.allowed:
            return None
        self.seen.append(key)
        return [key, *[bytes(frame) for frame in frames]]


Open = Callable[[CurveKeys], Dial]


@contextmanager
def in_memory(echo: Echo) -> Iterator[Open]:
    yield lambda keys: memory_dial(keys.public, echo.admit, echo.handle)


@contextmanager
def serving(keys: CurveKeys, admit: Admit, handle: Handler) -> Iterator[str]:
    """A server in a thread, on a port of its own; yields its endpoint."""
    done = threading.Event()
    with CurveServer("tcp://127.0.0.1:*", keys.secret, admit, handle) as server:
        thread = threading.Thread(target=lambda: server.serve(done.is_set, tick_s=0.02))
        thread.start()
        try:
            yield server.endpoint
        finally:
            done.set()
            thread.join()


@contextmanager
def over_curve(echo: Echo) -> Iterator[Open]:
    server_keys = CurveKeys.generate()
    with serving(server_keys, echo.admit, echo.handle) as endpoint:
        yield lambda keys: curve_dial(endpoint, server_keys.public, keys)


@pytest.fixture(params=[in_memory, over_curve])
def wire(request: pytest.FixtureRequest) -> Iterator[tuple[Echo, Open]]:
    echo = Echo()
    with request.param(echo) as open_line:
        yield echo, open_line


def exchange(connection: Connection, frames: Frames) -> list[bytes]:
    connection.send(frames)
    reply = connection.receive(5)
    assert reply is not None
    return reply


def test_a_reply_carries_the_authenticated_key_and_the_same_bytes(wire: tuple[Echo, Open]) -> None:
    echo, open_line = wire
    keys = CurveKeys.generate()
    echo.allowed.add(keys.public)
    with closing(open_line(keys)()) as line:
        big = bytes(range(256)) * 4096  # 1 MiB, the largest payload
        assert exchange(line, [b"a", b"", big]) == [keys.public, b"a", b"", big]


def test_many_requests_may_be_under_way_and_are_answered_in_order(wire: tuple[Echo, Open]) -> None:
    echo, open_line = wire
    keys = CurveKeys.generate()
    echo.allowed.add(keys.public)
    with closing(open_line(keys)()) as line:
        for number in range(20):
            line.send([b"%d" % number])
        assert [(line.receive(5) or [])[1:] for _ in range(20)] == [[b"%d" % number] for number in range(20)]


def test_two_sites_never_get_each_others_replies(wire: tuple[Echo, Open]) -> None:
    echo, open_line = wire
    north, south = CurveKeys.generate(), CurveKeys.generate()
    echo.allowed |= {north.public, south.public}
    with closing(open_line(north)()) as line_north, closing(open_line(south)()) as line_south:
        line_north.send([b"n"])
        line_south.send([b"s"])
        assert line_south.receive(5) == [south.public, b"s"]
        assert line_north.receive(5) == [north.public, b"n"]


def test_an_unknown_key_is_not_admitted_and_reaches_no_handler(wire: tuple[Echo, Open]) -> None:
    echo, open_line = wire
    with pytest.raises(NotAdmittedError):
        open_line(CurveKeys.generate())()
    assert echo.seen == []


def test_a_key_revoked_on_a_live_line_gets_nothing_more(wire: tuple[Echo, Open]) -> None:
    echo, open_line = wire
    keys, other = CurveKeys.generate(), CurveKeys.generate()
    echo.allowed |= {keys.public, other.public}
    with closing(open_line(keys)()) as line, closing(open_line(other)()) as other_line:
        exchange(line, [b"before"])
        echo.allowed.remove(keys.public)
        line.send([b"after"])
        assert exchange(other_line, [b"still served"]) == [other.public, b"still served"]
        assert line.receive(0.2) is None
    with pytest.raises(NotAdmittedError):
        open_line(keys)()


def test_a_closed_line_says_so_or_is_dialled_again_with_the_same_key(wire: tuple[Echo, Open]) -> None:
    echo, open_line = wire
    keys = CurveKeys.generate()
    echo.allowed.add(keys.public)
    for _ in range(3):  # dial, work, hang up
        with closing(open_line(keys)()) as line:
            assert exchange(line, [b"hello"]) == [keys.public, b"hello"]


def test_no_message_at_all_is_no_message(wire: tuple[Echo, Open]) -> None:
    echo, open_line = wire
    keys = CurveKeys.generate()
    echo.allowed.add(keys.public)
    with closing(open_line(keys)()) as line:
        assert line.receive(0.05) is None


def test_curve_with_the_wrong_server_key_is_said_in_plain_words() -> None:
    echo, keys = Echo(), CurveKeys.generate()
    echo.allowed.add(keys.public)
    server = serving(CurveKeys.generate(), echo.admit, echo.handle)
    with server as endpoint, pytest.raises(NotAdmittedError, match="another key"):
        curve_dial(endpoint, CurveKeys.generate().public, keys)()


def test_curve_admits_nobody_while_the_question_itself_fails() -> None:
    def broken(key: bytes) -> bool:
        raise RuntimeError("the register cannot be read")

    server_keys = CurveKeys.generate()
    server = serving(server_keys, broken, lambda key, frames: frames)
    with server as endpoint, pytest.raises((NotAdmittedError, LineError)):
        curve_dial(endpoint, server_keys.public, CurveKeys.generate())()


def test_where_nothing_listens_is_said_at_once() -> None:
    with socket.socket() as taken:  # bound, so that nobody else listens there, and not listening itself
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(LineError, match="nothing listens"):
            curve_dial(f"tcp://127.0.0.1:{taken.getsockname()[1]}", bytes(32), CurveKeys.generate())()


def test_a_plain_zeromq_peer_without_encryption_reaches_no_handler() -> None:
    echo = Echo()
    with serving(CurveKeys.generate(), echo.admit, echo.handle) as endpoint:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        plain = context.socket(zmq.DEALER)
        plain.setsockopt(zmq.LINGER, 0)
        plain.connect(endpoint)
        plain.send(b"hello")
        assert not plain.poll(300)
        plain.close()
        context.term()
    assert echo.seen == []
