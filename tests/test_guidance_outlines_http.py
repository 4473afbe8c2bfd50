"""Outlines from behind HTTP: the guide's own endpoint as a process, endpoints that break the contract, a federation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ayni.errors import PeerProtocolError, UserError
from ayni.learning.state import TrainingFolder, read_state
from ayni.task import GuidanceSettings, ImageSettings, Kind, NetworkSettings, Task, TrainingSettings, UNetSettings
from ayni.tensors import safe
from ayni.tensors.image_set import ImageSet, ImageSetInfo
from ayni.tensors.targets import decode_targets
from ayni_coordinator.database import transaction
from ayni_coordinator.guidance import guide
from ayni_coordinator.guidance.answers import AnswerStore
from ayni_coordinator.guidance.models.http import HttpEndpoint
from ayni_coordinator.guidance.source import open_source
from ayni_coordinator.home import CoordinatorHome, find_artefact
from small_federation import AYNI, ENVIRONMENT, Federation
from test_guidance_http import Handler, Server, body, dies_in_the_middle, serving, status
from test_simulation_same_as_wire import write_masks

GUIDE = Path(__file__).parent.parent / "docs" / "guidance.md"
SHA = "ab" * 32
ABOUT = {"name": "outliner", "version": "1", "licence": "CC0-1.0", "kind": "segmentation", "classes": ["a", "b", "c"]}
UNETS = NetworkSettings(small=UNetSettings(channels=(4, 8)), large=UNetSettings(channels=(6, 12), residual_units=1))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Its /about names three structures."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        running.about = ABOUT
        yield running


@contextmanager
def endpoint_of_the_guide() -> Iterator[str]:
    """Its address, while its process runs."""
    (code,) = re.findall(r"```python\n(# endpoint\.py.*?)```", GUIDE.read_text(), re.DOTALL)
    command = [sys.executable, "-c", code, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def images_of(side: int, *values: int) -> ImageSet:
    pixels = np.stack([np.full((side, side, 1), value, np.uint8) for value in values])
    return ImageSet(ImageSetInfo(name="public", licence="CC0-1.0", shape=pixels.shape), pixels)


def task(url: str, side: int, kind: Kind = "segmentation", **guidance: object) -> Task:
    return Task(
        name="bright",
        title="Bright",
        kind=kind,
        classes=("one", "other"),
        image=ImageSettings(height=side, width=side),
        training=TrainingSettings(rounds=1),
        guidance=GuidanceSettings(source="http", model=url, **guidance),  # type: ignore[arg-type]
    )


def num_asked(home: Path) -> int:
    with AnswerStore(home / "answers.sqlite") as store:
        return store.num_asked()


def test_the_endpoint_in_the_guide_outlines_and_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    images = images_of(96, *range(0, 250, 10))
    steps: list[tuple[int, int]] = []
    with endpoint_of_the_guide() as url:
        first = guide(task(url, 96, bits=16), images, SHA, tmp_path, lambda *step: steps.append(step))
        assert guide(task(url, 96, bits=16), images, SHA, tmp_path, lambda *step: steps.append(step)) == first
    assert steps == [(0, 25), (16, 25), (25, 25), (25, 25)]
    assert num_asked(tmp_path) == 25
    targets = decode_targets(first)
    assert (targets.info.classes, targets.info.shape) == (("bright", "dark"), (2, 48, 48))
    expected = 16 * (np.arange(0, 250, 10) / 255 - 0.5)
    assert np.abs(targets.logits_NC[:, 0] - expected[:, None, None]).max() < 0.005
    assert np.abs(targets.logits_NC[:, 1] + expected[:, None, None]).max() < 0.005


def outlines(value: float, height: int = 8, width: int = 8, num_images: int = 2, kind: str = "<f4") -> bytes:
    return safe.encode({"logits": np.full((num_images, 3, height, width), value).astype(kind)})


def test_what_passes_is_tried_again_and_logits_are_kept_between_bounds(server: Server, tmp_path: Path) -> None:
    pauses: list[float] = []
    source = HttpEndpoint(server.url, "segmentation", pause=pauses.append)
    server.faults = [body(outlines(1e30)), body(outlines(-1e5, 16, 16, kind="<f8"))]
    assert np.unique(source.answer(images_of(8, 1, 2).pixels_NHWC)).tolist() == [8]
    assert source.answer(images_of(16, 1, 2).pixels_NHWC).shape == (2, 3, 16, 16)
    server.faults = [status(500), status(503, Retry_After="0"), dies_in_the_middle, body(outlines(1.5))]
    images = images_of(8, 1, 2)
    targets = decode_targets(guide(task(server.url, 8), images, SHA, tmp_path, lambda *_: None))
    assert np.unique(targets.logits_NC).tolist() == [1.5]
    assert num_asked(tmp_path) == 3 * 2  # all but those that the endpoint refused at the door


@pytest.mark.parametrize(
    "reply",
    [
        safe.encode({"logits": np.zeros((2, 3), np.float32)}),
        outlines(0, 4, 4),
        outlines(0, 9, 8),
        outlines(0, num_images=1),
        outlines(0, kind="<i4"),
        outlines(np.nan),
        outlines(1e300, kind="<f8"),
        b"\xff" * (8 * 2 * 3 * 64 + safe.MAX_HEADER_BYTES + 1),
    ],
    ids=["classes", "half", "higher", "images", "integers", "NaN", "overflow", "too long"],
)
def test_outlines_against_the_contract_are_not_used(server: Server, tmp_path: Path, reply: bytes) -> None:
    server.faults = [body(reply)]
    with pytest.raises(PeerProtocolError, match="broke the guidance contract"):
        guide(task(server.url, 8), images_of(8, 1, 2), SHA, tmp_path, lambda *_: None)
    assert len(server.asked) == 1
    server.faults = [body(outlines(1))]
    guide(task(server.url, 8), images_of(8, 1, 2), SHA, tmp_path, lambda *_: None)  # nothing of it was stored


def test_an_endless_reply_is_cut_off(server: Server, tmp_path: Path) -> None:
    sent: list[int] = []

    def never_stops(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        try:
            while len(sent) < 1000:
                handler.wfile.write(b"\0" * (1 << 20))
                sent.append(1)
        except OSError:
            return

    server.faults = [never_stops]
    with pytest.raises(PeerProtocolError, match="a reply of more than"):
        guide(task(server.url, 8), images_of(8, 1, 2), SHA, tmp_path, lambda *_: None)
    assert len(sent) < 50  # MB: 4 may be a header, the rest lies in sockets


def test_an_endpoint_with_too_many_structures_gets_no_image(server: Server, tmp_path: Path) -> None:
    server.about = ABOUT | {"classes": [str(number) for number in range(5000)]}
    with pytest.raises(UserError, match="outlines 5000 structures in 2 images of 128 x 128"):
        guide(task(server.url, 128), images_of(128, 1, 2), SHA, tmp_path, lambda *_: None)
    assert server.asked == []


def test_a_question_holds_no_more_images_than_its_answer_may_have_maps(server: Server, tmp_path: Path) -> None:
    """100 structures of 64 x 64 in 4 bytes are 1.6 MB, and a question may bring 8 MiB: five images."""
    server.about = ABOUT | {"classes": [str(number) for number in range(100)]}

    def answers(handler: Handler) -> None:
        num_images = len(server.asked[-1])
        handler.reply(safe.encode({"logits": np.zeros((num_images, 100, 64, 64), np.float16)}))

    server.faults = [answers] * 2
    guide(task(server.url, 64), images_of(64, *range(7)), SHA, tmp_path, lambda *_: None)
    assert [len(batch) for batch in server.asked] == [5, 2]


@pytest.mark.parametrize(
    ("about", "kind", "guidance", "words"),
    [
        ({}, "classification", {}, "outlines structures; the task is a classification"),
        ({"kind": "classification"}, "segmentation", {}, "tells classes; the task is a segmentation"),
        ({}, "segmentation", {"classes": ("a", "b")}, r"wants guidance\.classes \['a', 'b'\].* \['a', 'b', 'c'\]"),
        ({}, "segmentation", {"output": "probabilities"}, "an endpoint answers with logits"),
    ],
)
def test_an_endpoint_that_does_not_fit_the_task_is_told_why(
    server: Server, tmp_path: Path, about: dict[str, object], kind: Kind, guidance: dict[str, object], words: str
) -> None:
    server.about = ABOUT | about
    settings = task(server.url, 8, **guidance).guidance  # type: ignore[arg-type]
    with pytest.raises(UserError, match=words):
        open_source(settings, kind, tmp_path)


@pytest.mark.slow
def test_a_federation_learns_outlines_of_other_structures_than_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint outlines two structures, the federation one: a clinic has a head for each."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with endpoint_of_the_guide() as url:
        changes = {"kind": "segmentation", "classes": ("rectangle",), "networks": UNETS}
        guidance = GuidanceSettings(source="http", model=url)
        sites = ("hospital", "clinic-a")
        with Federation(
            tmp_path, rounds=1, sites=sites, write_data=write_masks, guidance=guidance, **changes
        ) as federation:
            command = [*AYNI, "coordinator", "guide", str(federation.centre)]
            told = subprocess.run(command, env=ENVIRONMENT | os.environ, capture_output=True, text=True, check=True)
            assert "answered once on 24 public images" in told.stdout
            federation.serve()
            for site in sites:
                federation.join(site)
            for site, process in [(site, federation.train(site)) for site in sites]:
                assert process.wait() == 0, federation.log(site)
            assert federation.digest(1)
            home = CoordinatorHome.open(federation.centre)
            with transaction(home.engine) as session:
                listed = find_artefact(session, "targets", "guidance")
                assert listed is not None
                shape = decode_targets(home.store.read(listed.sha256)).info.shape
            home.engine.dispose()
            assert shape == (2, 28, 28)
            state = read_state(TrainingFolder(federation.folder / "clinic-a").state_after(1))
            assert state
            assert set(state.info.loss_sums) == {"private", "public"}
            heads = {name: len(t) for name, t in state.tensors.items() if "head" in name and name.endswith("bias")}
            assert set(heads.values()) == {1, 2}, heads
