"""The teacher is sent once: what the coordinator's meter says after cuts, restarts, later rounds and a new joining.

The meter counts what the coordinator has answered. What was on its way when a line broke is asked for again, and so
counts twice: at most a window of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ayni.errors import LineError, UserError
from ayni.invitation import Invitation
from ayni.keys import CurveKeys
from ayni.site.agent import Agent
from ayni.site.site import Silent, Site
from ayni.site.state import SiteState
from ayni.task import Task, UNetSettings
from ayni.tensors.teacher import decode_teacher
from ayni.tensors.update import encode_change
from ayni.wire import line as wire_line
from ayni.wire.connection import Dial
from ayni.wire.curve import curve_dial
from ayni.wire.line import CHUNK_BYTES, WINDOW, Line, upload
from ayni.wire.messages import Submit
from ayni_coordinator.database import TrafficRow, transaction
from ayni_coordinator.teaching.teach import Lesson, teach
from desk import Desk, served
from relay import Relay
from taught_home import new_home, published, taught_task, write_squares

WIDE = UNetSettings(channels=(160, 320), features=64)  # some megabytes: many chunks
ON_ITS_WAY = WINDOW * (CHUNK_BYTES + 1000)  # what one cut may cost, with the frames around each chunk
FRAMES = 1.05  # bytes on the wire for each byte of a teacher, in chunks of 64 KiB


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Made once; its file is imported by each test's coordinator."""
    folder = tmp_path_factory.mktemp("teacher")
    home = new_home(folder / "centre", task())
    teach(home, Lesson(write_squares(folder / "squares.npz"), steps=1, form="fp16"), lambda what, done, all: None)
    return published(home)


def task() -> Task:
    plain = taught_task()
    assert plain.dual_kd
    settings = msgspec.structs.replace(plain.dual_kd, teacher=WIDE, feature_weight=0.0)
    return msgspec.structs.replace(plain, dual_kd=settings)


@dataclass
class Place:
    """A real coordinator on loopback, and a relay in front of it, for one `with` after another."""

    folder: Path
    desk: Desk
    invitations: dict[str, Invitation]
    relay: Relay | None = None
    sites: dict[str, Site] = field(default_factory=dict)

    @contextmanager
    def serving(self) -> Iterator[Relay]:
        with served(self.desk) as endpoint, Relay(endpoint) as self.relay:
            yield self.relay

    def dial(self, keys: CurveKeys) -> Dial:
        assert self.relay
        return curve_dial(self.relay.endpoint, self.desk.home.keys.curve.public, keys)

    def join(self, name: str, earlier: Path | None = None) -> None:
        home = self.folder / f"home-{name}"
        self.sites[name] = Site.join(self.invitations[name], home, dial=self.dial, earlier=earlier)

    def sync(self, name: str) -> None:
        """What `ayni train` does before each round, by a new agent each time."""
        site = self.sites[name]
        with SiteState(site.home) as state, Line(self.dial(site.keys.curve), state.meter) as line:
            agent = Agent(site.home, site.settings, state, lambda: line, Silent())
            agent.sync(line, agent.ask_round(line).manifest_version)

    def kinds(self, name: str) -> list[str]:
        """Of what lies in a site's folder."""
        there = {path.name for path in (self.sites[name].home / "artefacts").iterdir()}
        return [artefact.kind for artefact in self.desk.listed() if artefact.sha256 in there]

    def answer(self, name: str, number: int) -> None:
        """A round's update without training; returns when the coordinator has averaged and published it."""
        file, site = self.folder / f"{name}.update", self.sites[name]
        change = {key: np.full_like(tensor, 0.01) for key, tensor in self.desk.model().items()}
        file.write_bytes(encode_change(change, density=0.5)[0])
        with Line(self.dial(site.keys.curve), lambda purpose, up, down: None) as line:
            update = upload(line, "update", file)
            submit = Submit(round_number=number, update=update, soft_labels=None, num_examples=3, train_s=1.0)
            line.ask(submit, "control")
        while (now := site.status(ask=True).round) and now.round_number == number:
            pass

    def metered(self, name: str) -> int:
        """Bytes of the teacher that the coordinator has sent to this site, as `TrafficRow` has them. While it serves,
        it writes them itself every five seconds."""
        self.desk.coordinator._flush_traffic(self.desk.now_s)
        with transaction(self.desk.home.engine) as session:
            row = session.get(TrafficRow, (name, "teacher"))
            return row.bytes_down if row else 0

    def has_teacher(self, name: str, data: bytes) -> bool:
        return any(path.read_bytes() == data for path in (self.sites[name].home / "artefacts").iterdir())


@pytest.fixture
def place(tmp_path: Path, teacher: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(wire_line, "FAST_CHUNK_S", 0.0)  # chunks stay at 64 KiB, as on a slow line
    home = new_home(tmp_path / "centre", task())
    (tmp_path / "teacher").write_bytes(teacher)
    teach(home, Lesson(None, tmp_path / "teacher", form="fp16"), lambda what, done, all: None)
    assert published(home) == teacher
    assert len(teacher) > 5 * ON_ITS_WAY  # else a bound would say nothing
    desk = Desk(home)
    place = Place(tmp_path, desk, {name: desk.invite(name) for name in ("near", "back", "new")})
    yield place
    place.desk.close()


def test_a_teacher_travels_once_whatever_happens(place: Place, teacher: bytes) -> None:
    with place.serving() as relay:
        place.join("near")
        relay.cut("down", after_bytes=len(teacher) // 2)
        place.sync("near")
        assert relay.num_dialled >= 3  # to join, to fetch, and after the cut; a busy machine may dial once more
        assert place.has_teacher("near", teacher)
        place.sync("near")  # by an agent that begins anew
    after_cut = place.metered("near")
    assert len(teacher) < after_cut < FRAMES * len(teacher) + ON_ITS_WAY
    place.desk = place.desk.restarted()
    with place.serving():
        place.sync("near")
        place.answer("near", 1)
        place.sync("near")  # for round 2
        assert {a.kind for a in place.desk.listed() if a.round_number == 1} == {"model"}
        assert place.has_teacher("near", teacher)
    assert place.metered("near") == after_cut


def test_asking_for_the_task_fetches_nothing_else(place: Place) -> None:
    with place.serving():
        place.join("near")
        assert place.sites["near"].task().dual_kd
    assert place.kinds("near") == ["task"]
    assert place.metered("near") == 0


def test_a_site_whose_agent_ends_while_it_fetches_goes_on(
    place: Place, teacher: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_line, "NUM_ATTEMPTS", 1)  # the first cut ends it
    with place.serving() as relay:
        place.join("near")
        relay.cut("down", after_bytes=len(teacher) // 2)
        with pytest.raises(LineError):
            place.sync("near")
        (part,) = (place.sites["near"].home / "artefacts").glob("*.part")
        assert part.stat().st_size > len(teacher) // 2 - 2 * ON_ITS_WAY
        place.sync("near")
        assert place.has_teacher("near", teacher)
    assert place.metered("near") < FRAMES * len(teacher) + ON_ITS_WAY


def test_who_joins_anew_need_not_fetch_it_again(place: Place, teacher: bytes) -> None:
    with place.serving():
        place.join("near")
        place.sync("near")
        home = place.sites["near"].home
        place.sites["near"].leave()
        with pytest.raises(UserError, match="--reuse"):
            Site.join(place.invitations["back"], home, dial=place.dial)
        with pytest.raises(UserError, match="nothing that a site has fetched"):
            place.join("back", earlier=place.folder / "nowhere")
        place.join("back", earlier=home)
        place.sync("back")
        assert place.has_teacher("back", teacher)
        place.join("new")  # the control: without `earlier` it is fetched
        place.sync("new")
    assert place.metered("back") == 0
    assert len(teacher) < place.metered("near") == place.metered("new") < FRAMES * len(teacher)


def test_what_was_damaged_on_the_disk_is_fetched_anew(place: Place, teacher: bytes) -> None:
    with place.serving():
        place.join("near")
        place.sync("near")
        folder = place.sites["near"].home / "artefacts"
        (file,) = (path for path in folder.iterdir() if path.read_bytes() == teacher)
        file.write_bytes(teacher[:-1] + bytes([teacher[-1] ^ 1]))
        place.join("back", earlier=place.sites["near"].home)
        place.sync("back")
        assert place.has_teacher("back", teacher)
    assert place.metered("back") > len(teacher)


def test_the_teacher_of_these_tests_is_one(teacher: bytes) -> None:
    assert decode_teacher(teacher).info.network == WIDE
