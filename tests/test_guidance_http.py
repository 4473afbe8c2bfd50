"""The HTTP source against a real server on 127.0.0.1 that fails in the ways that servers do."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ayni.errors import LineError, PeerProtocolError, UserError
from ayni.task import GuidanceSettings, ImageSettings, Kind, Task, TrainingSettings
from ayni.tensors import safe
from ayni.tensors.image_set import ImageSet, ImageSetInfo, encode_image_set
from ayni.tensors.targets import decode_targets
from ayni_coordinator.guidance import guide
from ayni_coordinator.guidance.answers import AnswerStore
from ayni_coordinator.guidance.ask import ask_once
from ayni_coordinator.guidance.models.http import HttpEndpoint
from ayni_coordinator.guidance.source import open_source

ABOUT = {"name": "teacher", "version": "1", "licence": "CC0-1.0", "classes": ["a", "b"]}
SHA = "cd" * 32
KIND: Kind = "classification"

Fault = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Logits are the first pixel and its negative. The server's faults are used up first, one for each request."""

    server: Server

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers["Authorization"])
        if self.server.about_faults:
            return self.server.about_faults.pop(0)(self)
        return self.reply(json.dumps(self.server.about).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        pixels_BHWC = safe.decode(body)["pixels"]
        self.server.asked.append([int(value) for value in pixels_BHWC[:, 0, 0, 0].tolist()])
        if self.server.faults:
            return self.server.faults.pop(0)(self)
        first_B = pixels_BHWC[:, 0, 0, 0].astype(np.float32)
        return self.reply(safe.encode({"logits": np.stack([first_B, -first_B], axis=1)}))

    def reply(self, body: bytes, status: int = 200, promised: int | None = None, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.about: object = ABOUT
        self.about_faults: list[Fault] = []
        self.faults: list[Fault] = []
        self.asked: list[list[int]] = []
        self.tokens: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        yield running


def status(code: int, **headers: str) -> Fault:
    return lambda handler: handler.reply(b"secret of the server", code, headers=headers)


def body(data: bytes) -> Fault:
    return lambda handler: handler.reply(data)


def dies_in_the_middle(handler: Handler) -> None:
    handler.reply(b"half of it", promised=1000)
    handler.close_connection = True


def hangs_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def image_set(num_images: int) -> ImageSet:
    pixels = np.zeros((num_images, 8, 8, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(num_images)
    return ImageSet(ImageSetInfo(name="public", licence="CC0-1.0", shape=pixels.shape), pixels)


def ask(server: Server, home: Path, num_images: int, token: str = "") -> tuple[list[float], list[float], int]:
    """Asks for so many images: the first logits, the pauses that were made, the images ever counted."""
    pauses: list[float] = []
    source = HttpEndpoint(server.url, token=token, pause=pauses.append)
    with AnswerStore(home / "answers.sqlite") as answers:
        images, settings = image_set(num_images), GuidanceSettings(source="http")
        targets = ask_once(images, SHA, source, settings, answers, lambda *_: None, pause=pauses.append)
        return targets.logits_NC[:, 0].tolist(), pauses, answers.num_asked()


def test_forty_images_are_asked_in_batches_of_sixteen(server: Server, tmp_path: Path) -> None:
    logits, pauses, num_asked = ask(server, tmp_path, 40)
    assert logits == [float(number) for number in range(40)]
    assert [len(batch) for batch in server.asked] == [16, 16, 8]
    assert (pauses, num_asked) == ([], 40)


@pytest.mark.parametrize(
    ("fault", "counted"),
    [
        (status(500), 4),
        (status(502), 4),
        (status(408), 4),
        (dies_in_the_middle, 4),
        (hangs_up, 4),
        (status(429), 2),
        (status(503), 2),
    ],
)
def test_a_failure_that_passes_is_tried_again(server: Server, tmp_path: Path, fault: Fault, counted: int) -> None:
    """Two images, one failure: counted twice unless the endpoint refused at the door."""
    server.faults = [fault]
    logits, pauses, num_asked = ask(server, tmp_path, 2)
    assert logits == [0, 1]
    assert len(pauses) == 1
    assert 0.25 <= pauses[0] <= 0.75
    assert num_asked == counted


def test_about_is_tried_again_too(server: Server, tmp_path: Path) -> None:
    server.about_faults = [status(503), hangs_up]
    assert len(ask(server, tmp_path, 1)[1]) == 2


def test_retry_after_is_kept_in_seconds_and_as_a_date(server: Server, tmp_path: Path) -> None:
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.faults = [status(429, Retry_After="17"), status(503, Retry_After=past), status(429, Retry_After="soon")]
    _, pauses, _ = ask(server, tmp_path, 1)
    assert pauses[:2] == [17.0, 0.0]
    assert 1.0 <= pauses[2] <= 3.0  # not understood: the third own pause, 2 s times .5 to 1.5


def test_six_failures_are_enough_and_the_next_run_goes_on(server: Server, tmp_path: Path) -> None:
    ask(server, tmp_path, 16)
    server.faults = [status(500)] * 6
    with pytest.raises(LineError, match=r"answered 500\. Run this again later: what was answered is kept"):
        ask(server, tmp_path, 20)
    server.asked.clear()
    assert ask(server, tmp_path, 20)[0] == [float(number) for number in range(20)]
    assert server.asked == [[16, 17, 18, 19]]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(400), "answered 400"),
        (status(401), "AYNI_GUIDANCE_TOKEN"),
        (status(302, Location="http://127.0.0.1:1/"), "has moved"),
    ],
)
def test_a_no_is_a_no(server: Server, tmp_path: Path, fault: Fault, message: str) -> None:
    server.faults = [fault]
    with pytest.raises(UserError, match=message) as caught:
        ask(server, tmp_path, 1)
    assert len(server.asked) == 1
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"garbage" * 10,
        b"\xff" * 5_000_000,
        safe.encode({"logits": np.zeros((3, 2), np.float32)}),
        safe.encode({"logits": np.zeros((2, 3), np.float32)}),
        safe.encode({"logits": np.zeros((2, 2), np.int64)}),
        safe.encode({"answers": np.zeros((2, 2), np.float32)}),
        safe.encode({"logits": np.full((2, 2), np.nan, np.float32)}),
        safe.encode({"logits": np.full((2, 2), 1e300, np.float64)}),
    ],
    ids=["empty", "garbage", "too long", "images", "classes", "integers", "name", "NaN", "overflow"],
)
def test_a_reply_against_the_contract_is_not_used_and_not_asked_again(
    server: Server, tmp_path: Path, reply: bytes
) -> None:
    server.faults = [body(reply)]
    with pytest.raises(PeerProtocolError, match="broke the guidance contract"):
        ask(server, tmp_path, 2)
    assert len(server.asked) == 1
    assert ask(server, tmp_path, 2)[0] == [0, 1]  # nothing of it was stored


@pytest.mark.parametrize(
    "about", [[], {}, {**ABOUT, "classes": ["one"]}, {**ABOUT, "name": ""}, {**ABOUT, "version": 1}]
)
def test_an_about_against_the_contract_is_refused(server: Server, tmp_path: Path, about: object) -> None:
    server.about = about
    with pytest.raises(PeerProtocolError, match="/about"):
        ask(server, tmp_path, 1)


def test_a_task_can_pin_the_version(server: Server) -> None:
    assert open_source(GuidanceSettings(source="http", model=server.url, version="1"), KIND, Path()).version == "1"
    with pytest.raises(UserError, match=r"guidance\.version '2'"):
        open_source(GuidanceSettings(source="http", model=server.url, version="2"), KIND, Path())


def test_the_token_is_sent_and_never_told(server: Server, tmp_path: Path) -> None:
    server.faults = [status(403)]
    with pytest.raises(UserError) as caught:
        ask(server, tmp_path, 1, token="tell-nobody")
    assert server.tokens == ["Bearer tell-nobody"]
    assert "tell-nobody" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.org",
        "file:///etc/passwd",
        "https://user:word@example.org",
        "https://example.org/?key=1",
        "http://[",
    ],
)
def test_only_a_plain_url_is_taken(url: str) -> None:
    with pytest.raises(UserError, match="plain http or https URL"):
        HttpEndpoint(url)


def test_a_token_does_not_travel_over_plain_http() -> None:
    with pytest.raises(UserError, match="https"):
        HttpEndpoint("http://models.example.org", token="tell-nobody")


def test_nobody_at_the_address_is_a_line_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        pauses: list[float] = []
        with pytest.raises(LineError, match="cannot be reached"):
            HttpEndpoint(f"http://127.0.0.1:{unused.getsockname()[1]}", pause=pauses.append)
    assert len(pauses) == 5


def test_a_server_that_never_answers_is_given_up(server: Server, tmp_path: Path) -> None:
    silent = threading.Event()

    def says_nothing(handler: Handler) -> None:
        silent.wait(30)
        hangs_up(handler)

    server.about_faults = [says_nothing] * 6
    try:
        with pytest.raises(LineError, match="broke off in the middle"):
            HttpEndpoint(server.url, timeout_s=0.05, pause=lambda wait_s: None)
    finally:
        silent.set()


RUN_GUIDE = """
import sys
from pathlib import Path
from ayni.task import Task
from ayni.tensors.image_set import decode_image_set
from ayni_coordinator.guidance import guide
home = Path(sys.argv[1])
task, images = Task.from_json((home / "task.json").read_bytes()), decode_image_set((home / "images").read_bytes())
guide(task, images, "cd" * 32, home, lambda done, total: None)
"""


def test_a_process_killed_while_it_asks_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    """50 images in batches of 16: killed with the third batch in flight, 16 images are asked, and counted, twice."""
    asked_third, may_answer = threading.Event(), threading.Event()

    def holds(handler: Handler) -> None:
        asked_third.set()
        may_answer.wait(60)
        hangs_up(handler)

    def answers(handler: Handler) -> None:
        first_B = np.array(handler.server.asked[-1], np.float32)
        handler.reply(safe.encode({"logits": np.stack([first_B, -first_B], axis=1)}))

    server.faults = [answers, answers, holds]
    task, images = http_task(server.url), image_set(50)
    (tmp_path / "task.json").write_bytes(task.to_json())
    (tmp_path / "images").write_bytes(encode_image_set(images))
    child = subprocess.Popen([sys.executable, "-c", RUN_GUIDE, str(tmp_path)])
    try:
        assert asked_third.wait(60)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        may_answer.set()
    targets = decode_targets(guide(task, images, SHA, tmp_path, lambda *_: None))
    assert np.allclose(targets.logits_NC[:, 0], np.arange(50))
    assert server.asked[2] == server.asked[3]  # the batch in flight
    assert sum(map(len, server.asked)) == 50 + 16
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        assert store.num_asked() == 50 + 16
    guide(task, images, SHA, tmp_path, lambda *_: None)
    assert sum(map(len, server.asked)) == 50 + 16  # the second run asks nothing


def http_task(url: str) -> Task:
    return Task(
        name="xray",
        title="X-rays",
        classes=("normal", "pneumonia"),
        image=ImageSettings(height=8, width=8),
        training=TrainingSettings(rounds=1),
        guidance=GuidanceSettings(source="http", model=url, bits=16),
    )


def test_the_server_in_the_guide_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the documented example: (1 - mean, mean) of pixels in 0..1."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    guide_text = (Path(__file__).parent.parent / "docs" / "guidance.md").read_text()
    code = re.findall(r"```python\n(.*?)```", guide_text, re.DOTALL)[0]
    (tmp_path / "server.py").write_text(code)
    command = [sys.executable, str(tmp_path / "server.py"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            pixels = np.stack([np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 255, np.uint8)])
            images = ImageSet(ImageSetInfo(name="public", licence="CC0-1.0", shape=pixels.shape), pixels)
            task = http_task(process.stdout.readline().strip())
            targets = decode_targets(guide(task, images, SHA, tmp_path / "home", lambda *_: None))
        finally:
            process.kill()
    assert targets.logits_NC.tolist() == [[1, 0], [0, 1]]
    assert targets.info.classes == ("dark", "bright")
