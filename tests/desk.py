"""A coordinator without sockets: sites ask it through the memory transport, and the clock is the test's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ayni.artefacts.manifest import Manifest, verified_manifest
from ayni.errors import NotAdmittedError
from ayni.invitation import Invitation
from ayni.keys import CurveKeys, SiteKeys
from ayni.task import ImageSettings, NetworkSettings, ResNetSettings, Role, RoundSettings, Task, TrafficSettings
from ayni.task import TrainingSettings as Training
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.tensors.targets import Targets, TargetsInfo, encode_targets
from ayni.tensors.update import encode_change, encode_whole
from ayni.wire.connection import Frames
from ayni.wire.curve import CurveServer
from ayni.wire.line import Line, upload
from ayni.wire.memory import memory_dial
from ayni.wire.messages import GetManifest, GetRound, Join, Joined, RoundIs, Submit, UploadKind
from ayni_coordinator import registry
from ayni_coordinator.database import transaction
from ayni_coordinator.home import CoordinatorHome, create_home
from ayni_coordinator.service import Coordinator

ENDPOINT = "tcp://127.0.0.1:7700"
DEADLINE_S = 3600.0
SMALL = ResNetSettings(layers=(1, 1, 1, 1), planes=(8, 8, 8, 8))
TASK = Task(
    name="shadows",
    title="Shadows on small squares",
    classes=("clear", "shadow"),
    image=ImageSettings(height=8, width=8),
    networks=NetworkSettings(small=SMALL, large=SMALL),
    training=Training(rounds=3, steps_per_round=2),
    traffic=TrafficSettings(form="fp32"),
    round=RoundSettings(deadline_s=DEADLINE_S, quorum=2, wait_for_sites=3),
)


def task_with(**changes: Any) -> Task:
    """`TASK` with other settings; nested ones are given as `round={"quorum": 1}`."""
    nested = {
        name: msgspec.structs.replace(getattr(TASK, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return msgspec.structs.replace(TASK, **nested)


def write_public_set(path: Path, num_images: int = 6) -> Path:
    pixels_NHW = np.random.default_rng(0).integers(0, 256, (num_images, 8, 8), dtype=np.uint8)
    np.savez(path, images=pixels_NHW)
    return path


class Desk:
    """The coordinator of one federation and the keys of its sites, by name."""

    def __init__(self, folder: Path, task: Task = TASK, *, endpoint: str = ENDPOINT, **options: Any) -> None:
        self.folder = folder
        if not folder.exists():
            create_home(folder, task, endpoint=endpoint, bind=endpoint, **options)
        self.home = CoordinatorHome.open(folder)
        self.now_s = time.time()
        self.coordinator = Coordinator(self.home, self.now_s)
        self.keys: dict[str, SiteKeys] = {}
        self.submits: dict[str, Submit] = {}

    def restarted(self) -> Desk:
        """Another process on the same folder. (Tests of faults kill real ones.)"""
        self.close()
        again = Desk(self.folder)
        again.now_s, again.keys = self.now_s, self.keys
        return again

    def close(self) -> None:
        self.coordinator.close(self.now_s)
        self.home.engine.dispose()

    # Coming in

    def invite(self, site: str, role: Role = "clinic", valid_s: float = 3600.0) -> Invitation:
        with transaction(self.home.engine) as session:
            invitation = registry.invite(self.home, session, site=site, role=role, valid_s=valid_s, now_s=self.now_s)
        self.pass_time(1)  # the register is read again
        return invitation

    def join(self, site: str, role: Role = "clinic", participation: str = "weights") -> None:
        keys = SiteKeys.load_or_create(self.folder.parent / site)
        asked = Join(curve_key=keys.curve.public, signing_key=keys.signing_public, participation=participation)  # type: ignore[arg-type]
        with self.line(self.invite(site, role).keys) as line:
            reply, _ = line.ask(asked, "join")
        assert isinstance(reply, Joined)
        self.keys[site] = keys

    def line(self, keys: CurveKeys) -> Line:
        handle = lambda key, frames: self.coordinator.handle(key, frames, self.now_s)  # noqa: E731
        return Line(memory_dial(keys.public, self.coordinator.admit, handle), lambda purpose, up, down: None)

    def is_admitted(self, keys: CurveKeys) -> bool:
        try:
            self.line(keys).ask(GetRound(), "control")
        except NotAdmittedError:
            return False
        return True

    # Asking

    def ask(self, site: str, body: Any, payload: bytes = b"") -> Any:
        with self.line(self.keys[site].curve) as line:
            return line.ask(body, "control", payload)[0]

    def round(self, site: str) -> RoundIs:
        reply = self.ask(site, GetRound())
        assert isinstance(reply, RoundIs)
        return reply

    def manifest(self, site: str) -> Manifest:
        with self.line(self.keys[site].curve) as line:
            _, signed = line.ask(GetManifest(have_version=0), "manifest")
        return verified_manifest(signed, self.home.keys.signing_public, known=None)

    def put(self, site: str, data: bytes, kind: UploadKind = "update") -> bytes:
        path = self.folder.parent / f"{site}.{kind}"
        path.write_bytes(data)
        with self.line(self.keys[site].curve) as line:
            return upload(line, kind, path)

    def answer(self, site: str, number: int, add: float = 0.0, num_examples: int = 10) -> str:
        """Answer with the global model plus `add` everywhere; returns the outcome."""
        change = {name: np.full_like(tensor, add) for name, tensor in self.model().items()}
        whole = {name: tensor + change[name] for name, tensor in self.model().items()}
        sparse = self.home.task.traffic.form == "sparse"
        update = self.put(site, encode_change(change, density=0.5)[0] if sparse else encode_whole(whole, "fp32"))
        submit = Submit(round_number=number, update=update, soft_labels=None, num_examples=num_examples, train_s=1.0)
        self.submits[site] = submit
        return str(self.ask(site, submit).outcome)

    def soft_labels(self, logits_NC: Floats) -> bytes:
        image_set = next(artefact for artefact in self.listed() if artefact.kind == "public-set")
        info = TargetsInfo(
            source="hospital", image_set=image_set.sha256, model_name="m", model_version="round 1", licence="",
            classes=self.home.task.classes, bits=8,
        )  # fmt: skip
        return encode_targets(Targets(info, logits_NC))

    # Time, and what is stored

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.coordinator.tick(self.now_s)

    def average(self) -> None:
        """Until the closed round is published; a tick is all that the real loop does, too."""
        site = next(iter(self.keys))
        while self.round(site).phase == "closed":
            self.pass_time(1)

    def listed(self) -> Any:
        from ayni_coordinator.federation import listed_artefacts

        with transaction(self.home.engine) as session:
            return listed_artefacts(session)

    def model(self) -> dict[str, Floats]:
        from ayni_coordinator.federation import current_round

        with transaction(self.home.engine) as session:
            data = self.home.store.read(current_round(session).global_sha256)
        return {name: np.asarray(tensor, np.float32) for name, tensor in safe.decode(data).items()}

    def log(self) -> list[str]:
        from ayni_coordinator.views import audit_lines

        return [f"{line.who}: {line.what}" for line in audit_lines(self.folder)]


@contextmanager
def served(desk: Desk, bind: str = "tcp://127.0.0.1:*", clock: Callable[[], float] = time.time) -> Iterator[str]:
    """The endpoint of a coordinator that serves in a thread, as `ayni coordinator serve` does in its process."""
    done, coordinator = threading.Event(), desk.coordinator

    def handle(key: bytes, frames: Frames) -> Frames | None:
        return coordinator.handle(key, frames, clock())

    with CurveServer(bind, desk.home.keys.curve.secret, coordinator.admit, handle) as server:
        thread = threading.Thread(
            target=lambda: server.serve(done.is_set, lambda: coordinator.tick(clock()), tick_s=0.02)
        )
        thread.start()
        try:
            yield server.endpoint
        finally:
            done.set()
            thread.join()
