"""A real coordinator process, attacked from its port: with no key, with garbage, and by a site with a valid key."""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from ayni.errors import AyniError, LineError, NotAdmittedError
from ayni.keys import CurveKeys
from ayni.site.site import Site
from ayni.wire.curve import CurveConnection
from ayni.wire.messages import MAX_PAYLOAD_BYTES, GetChunk, GetRound, Leave, new_request, to_frames
from ayni_coordinator.database import transaction
from ayni_coordinator.home import CoordinatorHome, add_artefact
from small_federation import SITES, Federation

BIG = random.Random(0).randbytes(4 << 20)


class Attacked:
    def __init__(self, federation: Federation, process: subprocess.Popen[bytes]) -> None:
        self.folder = federation.folder
        self.site = Site(federation.folder / "clinic-a")
        self.bad = Site(federation.folder / "clinic-b")
        self.endpoint = self.site.settings.endpoint
        self.server_key = self.site.settings.coordinator_key
        self.process = process

    def dial(self, keys: CurveKeys) -> CurveConnection:
        return CurveConnection(self.endpoint, self.server_key, keys)

    def is_still_served(self) -> bool:
        assert self.process.poll() is None, "the coordinator has ended"
        return self.site.status(ask=True).round is not None

    def peak_rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) << 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with Federation(tmp_path_factory.mktemp("hostile"), sites=SITES) as federation:
        home = CoordinatorHome.open(federation.centre)
        with transaction(home.engine) as session:
            add_artefact(home, session, "bundle", "big", 0, BIG)
        home.engine.dispose()
        process = federation.serve()
        for site in SITES:
            federation.join(site)
        yield Attacked(federation, process)
        assert "Traceback" not in federation.log("serve")


def test_garbage_on_the_port_and_lines_that_say_nothing_disturb_nobody(place: Attacked) -> None:
    host, port = place.endpoint.removeprefix("tcp://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(50)]
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10_000, b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(48), b""):
        with socket.create_connection((host, int(port))) as line:
            line.sendall(garbage)
    assert place.is_still_served()
    for line in silent:
        line.close()
    assert place.is_still_served()


def test_strangers_in_numbers_are_refused_and_disturb_nobody(place: Attacked) -> None:
    for _ in range(20):
        with pytest.raises(AyniError):
            place.dial(CurveKeys.generate())
    assert place.is_still_served()


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b""],
        [b"x"] * 1000,
        [bytes(MAX_PAYLOAD_BYTES)] * 3,
        [b"ayni/1", b"\x91" * 10_000],
        [*to_frames(new_request(GetRound())), b"", b"", b""],
    ],
    ids=["empty", "two empty", "a thousand frames", "large frames", "a bomb", "frames too many"],
)
def test_a_message_that_is_none_is_dropped_and_the_line_still_serves(place: Attacked, frames: list[bytes]) -> None:
    line = place.dial(place.bad.keys.curve)
    line.send(frames)
    line.send(to_frames(new_request(GetRound())))
    assert line.receive(10) is not None  # of the good one: there is no other
    assert line.receive(0.1) is None
    line.close()
    assert place.is_still_served()


def test_a_frame_above_the_bound_ends_that_line_only(place: Attacked) -> None:
    line = place.dial(place.bad.keys.curve)
    line.send([b"ayni/1", bytes(MAX_PAYLOAD_BYTES + 5000)])
    with pytest.raises(LineError, match="cut"):
        line.receive(10)
    line.close()
    assert place.is_still_served()


@contextmanager
def raw_line(place: Attacked, site: Site, **options: int | bytes) -> Iterator[zmq.Socket[bytes]]:
    """A ZeroMQ socket with a site's valid key, and whatever else an attacker may set."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys = site.keys.curve
    given = {"CURVE_SERVERKEY": place.server_key, "CURVE_PUBLICKEY": keys.public, "CURVE_SECRETKEY": keys.secret}
    with context, context.socket(zmq.DEALER) as line:
        for name, value in {**given, "LINGER": 0, **options}.items():
            line.setsockopt(getattr(zmq, name), value)
        line.connect(place.endpoint)
        yield line


def test_nobody_is_someone_else_by_saying_so(place: Attacked) -> None:
    """A name in the routing id or in the handshake's metadata is not believed; only the proven key is."""
    liar_site = Site(place.folder / "hospital")
    with raw_line(place, liar_site, ROUTING_ID=b"clinic-a", METADATA=b"X-Site:clinic-a") as liar:
        liar.send_multipart([bytes(frame) for frame in to_frames(new_request(Leave()))])
        assert liar.poll(10_000)
    assert place.is_still_served()  # clinic-a has not left
    with pytest.raises(NotAdmittedError):
        liar_site.status(ask=True)


def test_a_site_that_asks_for_everything_and_reads_nothing_costs_little_memory(place: Attacked) -> None:
    request = [bytes(frame) for frame in to_frames(new_request(GetChunk(
        sha256=hashlib.sha256(BIG).digest(), offset=0, length=MAX_PAYLOAD_BYTES
    )))]  # fmt: skip
    before = place.peak_rss_bytes()
    with raw_line(place, place.bad, RCVHWM=1, RCVBUF=4096) as greedy:
        for _ in range(600):  # 600 MiB, if it were all kept for it
            greedy.send_multipart(request)
        for _ in range(20):
            assert place.is_still_served()
        assert place.peak_rss_bytes() - before < 160 << 20
