"""The command line: help with an example everywhere, exit codes that mean something, JSON, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
import typer.main

import ayni
from ayni import cli
from ayni.invitation import Invitation
from ayni.wire import curve, line
from ayni_coordinator.by_hand import new_invitation, revoke_site
from desk import Desk, served
from small_federation import AYNI, free_port, write_xrays

TASK_TOML = """
name = "shadows"
title = "Shadows"
classes = ["clear", "shadow"]
image = { height = 8, width = 8 }
training = { rounds = 2 }
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def run(*arguments: object) -> Result:
    """`ayni ARGUMENTS` in this process; whatever is not an exit is a traceback, and fails the test."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["ayni", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def all_commands() -> list[tuple[tuple[str, ...], Any]]:
    for entry in entry_points(group="ayni.commands"):
        entry.load()(cli.app)
    return list(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize(
    ("path", "command"), all_commands(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_has_a_help_with_an_example(path: tuple[str, ...], command: Any) -> None:
    assert f"Example: ayni {' '.join(path)}" in " ".join((command.help or "").split())
    for parameter in command.params:
        if parameter.name not in ("help", "home"):
            assert getattr(parameter, "help", None), f"{path} {parameter.name} has no help"
    assert run(*path, "--help").code == 0


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version") == Result(0, f"ayni {ayni.__version__}\n", "")


def test_the_command_is_installed_and_ends_as_it_says() -> None:
    done = subprocess.run([*AYNI, "status", "/nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ayni: /nowhere has not joined a federation")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a coordinator at `centre` that is served, and a site at `north` that has joined."""
    folder = tmp_path_factory.mktemp("cli")
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    desk = Desk(folder / "centre", endpoint=endpoint)
    (folder / "task.toml").write_text(TASK_TOML)
    (folder / "garbage.toml").write_bytes(b"\xff\xfe[[[")
    (folder / "wrong-key.toml").write_text(TASK_TOML + "typo = 1\n")
    (folder / "wrong-type.toml").write_text(TASK_TOML.replace("rounds = 2", 'rounds = "two"'))
    (folder / "missing-key.toml").write_text('name = "shadows"\n')
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("years of work")
    write_xrays(folder / "xrays.npz", 0)
    with served(desk, endpoint):
        text = new_invitation(desk.folder, "north", "clinic", 3600).to_string()
        (folder / "used.txt").write_text(text)
        assert run("join", text, folder / "north").code == 0
        yield folder
    desk.close()


WRONG = [
    (2, "is no invitation|should start with", "join hello NEW"),
    (2, "mistyped or cut short", "join AYNI1-ABCDEFGH NEW"),
    (2, "cannot be read", "join @nothing NEW"),
    (2, "weights or distill", "join AYNI1-ABCDEFGH NEW --participation both"),
    (2, "joined already", "join @used.txt north"),
    (2, "not empty", "join @used.txt full"),
    (4, "has been used by 'north'", "join @used.txt NEW"),
    (2, "has not joined", "train NEW"),
    (2, "has not joined", "train full --data xrays.npz"),
    (2, "which images", "train north"),
    (2, "no data at", "train north --data nothing"),
    (2, "labels.csv", "train north --data empty"),
    (2, "no .npz file", "train north --data task.toml"),
    (2, "Invalid value", "train north --threads 0"),
    (2, "no trained model", "evaluate north xrays.npz"),
    (2, "has not joined", "status NEW"),
    (2, "has not joined", "status centre"),
    (2, "has not joined", "leave NEW --yes"),
    (1, "Aborted", "leave north"),
    (2, "has not joined", "site share-expert NEW"),
    (2, "no personal model", "site share-expert north"),
    (2, "no personal model", "site share-expert north --yes"),
    (2, "there is no", "data check nothing"),
    (2, "labels.csv", "data check empty"),
    (2, "task file", "coordinator init NEW --task nothing.toml"),
    (2, "garbage.toml", "coordinator init NEW --task garbage.toml"),
    (2, "unknown field `typo`", "coordinator init NEW --task wrong-key.toml"),
    (2, "training.rounds", "coordinator init NEW --task wrong-type.toml"),
    (2, "missing required field", "coordinator init NEW --task missing-key.toml"),
    (2, "not empty", "coordinator init centre --task task.toml"),
    (2, "looks like tcp://", "coordinator init NEW --task task.toml --endpoint example.org"),
    (2, "database URL", "coordinator init NEW --task task.toml --database nonsense"),
    (2, "store", "coordinator init NEW --task task.toml --store no-such-protocol://x"),
    (2, "not a coordinator's folder", "coordinator invite full x"),
    (2, "cannot be invited", "coordinator invite centre ../x"),
    (2, "cannot be invited", "coordinator invite centre x --role boss"),
    (2, "already", "coordinator invite centre north"),
    (2, "picture", "coordinator invite centre x --qr x.gif"),
    (2, "not a coordinator's folder", "coordinator serve north"),
    (2, "not a coordinator's folder", "coordinator status NEW"),
    (2, "not a coordinator's folder", "coordinator log NEW"),
    (2, "not a coordinator's folder", "coordinator guide NEW"),
    (2, "no site 'nobody'", "coordinator revoke centre nobody"),
    (2, "no round is open", "coordinator round close centre"),
    (2, "no round is open", "coordinator round extend centre 10"),
    (2, "Invalid value", "coordinator round extend centre soon"),
    (2, "not a bundle", "coordinator publish centre empty"),
    (2, "No such command", "trian north"),
]


@pytest.mark.parametrize(("code", "told", "command"), WRONG, ids=[command for *_, command in WRONG])
def test_a_mistake_is_said_in_a_sentence_or_two(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: str, command: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody answers a question
    result = run(*command.replace("NEW", str(tmp_path / "new")).split())
    text = " ".join(result.err.replace("│", "").split())
    assert result.code == code, text
    assert any(part in text for part in told.split("|")), text
    assert "Traceback" not in text
    assert len(text) < 600
    assert result.out == "" or "?" in result.out
    assert not (tmp_path / "new" / "site.json").exists()
    assert not (tmp_path / "new" / "coordinator.toml").exists()


def test_json_is_json(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    status = json.loads(run("status", "north", "--json", "--ask").out)
    assert (status["site"], status["role"], status["rounds"], status["round"]["phase"]) == (
        "north",
        "clinic",
        {},
        "waiting",
    )
    assert {finding["what"] for finding in json.loads(run("doctor", "north", "--json").out)} >= {"line", "key", "clock"}
    view = json.loads(run("coordinator", "status", "centre", "--json").out)
    assert (view["phase"], [site["name"] for site in view["sites"]]) == ("waiting", ["north"])
    assert json.loads(run("coordinator", "sites", "centre", "--json").out)[0]["state"] == "active"
    assert json.loads(run("coordinator", "log", "centre", "--json").out)[0]["who"] == "coordinator"
    invited = json.loads(run("coordinator", "invite", "centre", "guest", "--json").out)
    assert Invitation.from_string(invited["invitation"]).expires_s > time.time()
    assert Path(invited["qr"]).read_bytes().startswith(b"\x89PNG")
    assert json.loads(run("data", "check", "xrays.npz", "--json").out)["num_images"] == 60


def test_an_invitation_goes_to_standard_output_alone(place: Path) -> None:
    made = run("coordinator", "invite", place / "centre", "guest", "--qr", place / "guest.svg")
    assert Invitation.from_string(made.out).coordinator_key
    assert made.out.count("\n") == 1
    assert "works once" in made.err
    assert b"<svg" in (place / "guest.svg").read_bytes()
    assert (place / "guest.svg").stat().st_mode & 0o077 == 0


def test_a_line_that_is_down_ends_with_5(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "DIAL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(line, "NUM_ATTEMPTS", 1)
    dead = Invitation.new(bytes(range(32)), f"tcp://127.0.0.1:{free_port()}", int(time.time()) + 3600)
    result = run("join", dead.to_string(), tmp_path / "home")
    assert result.code == 5
    assert "Traceback" not in result.err


def test_a_revoked_site_ends_with_4_and_doctor_says_what_to_do(place: Path) -> None:
    text = new_invitation(place / "centre", "south", "clinic", 3600).to_string()
    assert run("join", text, place / "south").code == 0
    assert run("doctor", place / "south").code == 0
    revoke_site(place / "centre", "south")
    while run("status", place / "south", "--ask").code == 0:
        pass  # the coordinator reads its register twice a second
    for command in ("status", "train", "leave"):
        more = {"status": "--ask", "train": f"--data={place / 'xrays.npz'}", "leave": "--yes"}[command]
        result = run(command, place / "south", more)
        assert result.code == 4
        assert "Ask the coordinator for a new invitation" in result.err
    found = run("doctor", place / "south")
    assert found.code == 1
    assert "FAIL key" in found.out
    assert "ok   line" in found.out


def test_doctor_finds_a_dead_line_a_damaged_key_and_a_wrong_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve, "DIAL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(line, "NUM_ATTEMPTS", 1)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    desk = Desk(tmp_path / "centre", endpoint=endpoint)
    text = new_invitation(desk.folder, "north", "clinic", 3600).to_string()
    with served(desk, endpoint, clock=lambda: time.time() + 1800):
        assert run("join", text, tmp_path / "north").code == 0
        slow = run("doctor", tmp_path / "north")
    assert slow.code == 1
    assert "FAIL clock: 1800 s behind the coordinator's" in slow.out.replace("1799", "1800")
    assert "timedatectl" in slow.out
    dead = run("doctor", tmp_path / "north")
    assert (dead.code, "FAIL line" in dead.out, "firewall" in dead.out) == (1, True, True)
    (tmp_path / "north" / "keys" / "curve.key").write_bytes(b"short")
    damaged = run("doctor", tmp_path / "north")
    assert (damaged.code, "FAIL site folder: a key file" in damaged.out, "restore" in damaged.out) == (1, True, True)
    desk.close()


def test_a_second_coordinator_is_told_that_the_port_or_the_folder_is_taken(place: Path, tmp_path: Path) -> None:
    taken = msgspec.toml.decode((place / "centre" / "coordinator.toml").read_bytes())["endpoint"]
    made = run("coordinator", "init", tmp_path / "other", "--task", place / "task.toml", "--endpoint", taken)
    assert made.code == 0
    port = subprocess.run([*AYNI, "coordinator", "serve", tmp_path / "other"], capture_output=True, text=True)
    assert port.returncode == 2
    assert "Address already in use" in port.stderr
    assert "Traceback" not in port.stderr
