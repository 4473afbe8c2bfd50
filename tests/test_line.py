"""A site's line over real encrypted sockets through a relay: cut, silent, lost replies; bytes counted at the relay."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ayni.errors import IntegrityError, LineError, NotAdmittedError, RefusedError
from ayni.invitation import Invitation
from ayni.keys import CurveKeys, SiteKeys
from ayni.site.site import Site
from ayni.tensors.update import encode_whole
from ayni.wire import curve, line
from ayni.wire.connection import Connection, Frames
from ayni.wire.curve import curve_dial
from ayni.wire.line import CHUNK_BYTES, LARGEST_CHUNK_BYTES, WINDOW, Line, download, upload
from ayni.wire.messages import GetRound, RoundIs, Submit
from ayni_coordinator.database import transaction
from ayni_coordinator.home import add_artefact
from desk import Desk, served
from relay import Relay

BIG = random.Random(0).randbytes(16 << 20)
BIG_SHA = hashlib.sha256(BIG).digest()
IN_FLIGHT = WINDOW * (LARGEST_CHUNK_BYTES + 1000)  # what a cut may cost
Meter = dict[str, tuple[int, int]]


class Served:
    """A real coordinator on a loopback port behind a relay, with three sites joined and round 1 open."""

    def __init__(self, desk: Desk, relay: Relay) -> None:
        self.desk, self.relay, self.traffic = desk, relay, Meter()

    def meter(self, purpose: str, up: int, down: int) -> None:
        before = self.traffic.get(purpose, (0, 0))
        self.traffic[purpose] = (before[0] + up, before[1] + down)

    def line(self, keys: CurveKeys | None = None) -> Line:
        keys = keys or self.desk.keys["north"].curve
        return Line(curve_dial(self.relay.endpoint, self.desk.home.keys.curve.public, keys), self.meter)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Served]:
    desk = Desk(tmp_path / "centre")
    for site in ("north", "south", "west"):
        desk.join(site)
    with transaction(desk.home.engine) as session:
        add_artefact(desk.home, session, "bundle", "big", 0, BIG)
    desk.invited = desk.invite("east")  # type: ignore[attr-defined]
    desk.coordinator._uploads.max_bytes = len(BIG)
    with served(desk) as endpoint, Relay(endpoint) as relay:
        yield Served(desk, relay)
    desk.close()


def fetch(place: Served, to: Path) -> None:
    with place.line() as line:
        download(line, BIG_SHA, len(BIG), to, "bundle")


def test_a_download_that_is_cut_goes_on_where_it_was(place: Served, tmp_path: Path) -> None:
    place.relay.cut("down", after_bytes=10 << 20)
    fetch(place, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG
    assert place.relay.num_dialled > 1
    assert place.relay.passed["down"] < len(BIG) + IN_FLIGHT  # anew it would have been 26 MiB


def test_a_download_goes_on_in_another_process_without_the_first_part(
    place: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "NUM_ATTEMPTS", 1)
    place.relay.cut("down", after_bytes=10 << 20)
    with pytest.raises(LineError):
        fetch(place, tmp_path / "big")
    assert not (tmp_path / "big").exists()
    have = (tmp_path / "big.part").stat().st_size
    assert have > (10 << 20) - IN_FLIGHT
    before = place.relay.passed["down"]
    fetch(place, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG
    assert place.relay.passed["down"] - before < (len(BIG) - have) * 1.02


def test_a_download_whose_last_step_was_cut_needs_no_byte_more(place: Served, tmp_path: Path) -> None:
    (tmp_path / "big.part").write_bytes(BIG)  # killed between the last byte and the rename
    fetch(place, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG
    assert place.relay.passed["down"] == 0


@pytest.mark.parametrize("damage", ["part", "part too long", "store"])
def test_a_damaged_artefact_is_thrown_away_and_fetched_anew(place: Served, tmp_path: Path, damage: str) -> None:
    stored = place.desk.folder / "store" / BIG_SHA.hex()
    if damage == "store":
        stored.write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    else:
        (tmp_path / "big.part").write_bytes(b"?" + BIG[1:1000] if damage == "part" else BIG + b"?")
    if damage != "part too long":  # that one is seen before anything is asked
        with pytest.raises(IntegrityError, match="thrown away"):
            fetch(place, tmp_path / "big")
        assert list(tmp_path.glob("big*")) == []
    stored.write_bytes(BIG)
    fetch(place, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG


def test_an_upload_that_is_cut_goes_on_where_it_was(place: Served, tmp_path: Path) -> None:
    data = BIG[::-1]
    (tmp_path / "update").write_bytes(data)
    place.relay.cut("up", after_bytes=10 << 20)
    with place.line() as line:
        assert upload(line, "update", tmp_path / "update") == hashlib.sha256(data).digest()
    assert place.relay.num_dialled > 1
    assert place.relay.passed["up"] < len(data) + IN_FLIGHT
    assert bytes(place.desk.home.store.read(hashlib.sha256(data).hexdigest())) == data


def test_an_upload_goes_on_in_another_process_without_the_first_part(
    place: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "NUM_ATTEMPTS", 1)
    (tmp_path / "update").write_bytes(BIG[::-1])
    place.relay.cut("up", after_bytes=10 << 20)
    with place.line() as first, pytest.raises(LineError):
        upload(first, "update", tmp_path / "update")
    before = place.relay.passed["up"]
    with place.line() as second:
        upload(second, "update", tmp_path / "update")
    assert place.relay.passed["up"] - before < len(BIG) - (10 << 20) + IN_FLIGHT


def test_a_lost_reply_is_asked_for_again_and_the_answer_counts_once(place: Served, tmp_path: Path) -> None:
    (tmp_path / "update").write_bytes(encode_whole(place.desk.model(), "fp32"))
    with place.line() as line:
        update = upload(line, "update", tmp_path / "update")
        place.relay.cut("down", after_bytes=0)  # the request passes, the reply does not
        reply, _ = line.ask(
            Submit(round_number=1, update=update, soft_labels=None, num_examples=5, train_s=1.0), "control"
        )
        now, _ = line.ask(GetRound(), "control")
    assert reply.outcome == "counted"  # type: ignore[union-attr]
    assert isinstance(now, RoundIs)
    assert (now.num_answered, now.phase) == (1, "open")
    assert place.relay.num_dialled > 1
    assert sum(text.startswith("north: answered") for text in place.desk.log()) == 1


def test_joining_survives_a_lost_reply(place: Served, tmp_path: Path) -> None:
    given: Invitation = place.desk.invited  # type: ignore[attr-defined]
    through_relay = Invitation(given.secret, given.coordinator_key, given.expires_s, place.relay.endpoint)
    # The handshake has passed after 301 bytes down; what comes then is the reply.
    place.relay.cut("down", after_bytes=curve.HANDSHAKE_BYTES_DOWN)
    site = Site.join(through_relay, tmp_path / "east")
    assert site.settings.site == "east"
    assert place.relay.num_dialled > 1
    assert sum("east: joined" in text for text in place.desk.log()) == 1
    assert site.status(ask=True).round is not None


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_line_that_goes_silent_is_given_up_and_dialled_anew(
    place: Served, monkeypatch: pytest.MonkeyPatch, way: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(line, "REPLY_TIMEOUT_S", 1.0)
    with place.line() as half_open:
        half_open.ask(GetRound(), "control")
        place.relay.go_silent(way, after_bytes=0)  # type: ignore[arg-type]
        reply, _ = half_open.ask(GetRound(), "control")
    assert isinstance(reply, RoundIs)
    assert place.relay.num_dialled > 1


def test_a_download_that_goes_silent_half_way_goes_on(
    place: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(line, "REPLY_TIMEOUT_S", 1.0)
    place.relay.go_silent("down", after_bytes=8 << 20)
    fetch(place, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG
    assert place.relay.passed["down"] < len(BIG) + IN_FLIGHT


def test_a_line_that_stays_down_is_said_with_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "DIAL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(line, "NUM_ATTEMPTS", 2)
    dead = curve_dial("tcp://127.0.0.1:9", CurveKeys.generate().public, CurveKeys.generate())
    with Line(dead, lambda purpose, up, down: None) as nobody, pytest.raises(LineError, match="outgoing connections"):
        nobody.ask(GetRound(), "control")


def test_a_refused_key_is_said_at_once_and_not_tried_again(place: Served, tmp_path: Path) -> None:
    with place.line(SiteKeys.load_or_create(tmp_path / "stranger").curve) as stranger, pytest.raises(NotAdmittedError):
        stranger.ask(GetRound(), "control")
    assert place.relay.num_dialled == 1


def test_a_refusal_leaves_the_line_usable(place: Served, tmp_path: Path) -> None:
    with place.line() as one_line:
        with pytest.raises(RefusedError):
            download(one_line, bytes(32), 10, tmp_path / "nothing", "other")
        assert isinstance(one_line.ask(GetRound(), "control")[0], RoundIs)
    assert place.relay.num_dialled == 1


@pytest.mark.parametrize("what", ["small questions", "a download", "an upload", "dialling"])
def test_the_sites_own_count_of_bytes_is_that_of_the_relay(place: Served, tmp_path: Path, what: str) -> None:
    if what == "dialling":
        for _ in range(5):
            with place.line() as one_line:
                one_line.ask(GetRound(), "control")
    else:
        with place.line() as one_line:
            if what == "small questions":
                for _ in range(200):
                    one_line.ask(GetRound(), "control")
            elif what == "a download":
                download(one_line, BIG_SHA, len(BIG), tmp_path / "big", "bundle")
            else:
                (tmp_path / "update").write_bytes(BIG[::-1])
                upload(one_line, "update", tmp_path / "update")
    up, down = (sum(pair[side] for pair in place.traffic.values()) for side in (0, 1))
    assert (up, down) == (place.relay.passed["up"], place.relay.passed["down"])


def test_no_more_chunks_are_under_way_than_the_window(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "centre")
    desk.join("north")
    with transaction(desk.home.engine) as session:
        add_artefact(desk.home, session, "bundle", "big", 0, BIG)
    desk.pass_time(1)
    under_way, most = 0, 0
    real_dial = desk.line(desk.keys["north"].curve)._dial

    class Counting:
        def __init__(self) -> None:
            self._connection = real_dial()

        def send(self, frames: Frames) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            self._connection.send(frames)

        def receive(self, timeout_s: float) -> list[bytes] | None:
            nonlocal under_way
            under_way -= 1
            return self._connection.receive(timeout_s)

        def close(self) -> None:
            self._connection.close()

    def dial() -> Connection:
        return Counting()

    with Line(dial, lambda purpose, up, down: None) as counted:
        download(counted, BIG_SHA, len(BIG), tmp_path / "big", "bundle")
    assert most == WINDOW
    assert len(BIG) > 2 * WINDOW * CHUNK_BYTES
    desk.close()
