"""`ayni simulate --engine ray` with a real Ray on this machine: the same rows as without, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from ayni_coordinator.simulation.results import read_rows
from stand_in_runs import write_experiment
from test_simulate_command import GIVE_UP_S, TESTS, alive, wait_until, workers

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="Ray is an extra of its own")
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, of IPv4 and of IPv6 sockets


def started(folder: Path, function: str, engine: str) -> subprocess.Popen[str]:
    write_experiment(folder)
    (folder / "home").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, TESTS / "stand_in_runs.py", folder, function, "--engine", engine, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), "HOME": str(folder / "home"), "TMPDIR": tempfile.gettempdir()},
    )  # fmt: skip


def of_ray() -> set[str]:
    """Its folders and its processes on this machine."""
    folders = {path.name for path in Path(tempfile.gettempdir()).glob("ayni-ray-*")}
    return folders | {
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if alive(int(path.parent.name)) and "ayni-ray-" in command_line(path)
    }


def listening(root: int) -> dict[str, set[str]]:
    """The local addresses (hexadecimal, as the kernel writes them) on which processes below `root` listen, by name."""
    address_of: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        address_of |= {f"socket:[{row[9]}]": row[1].split(":")[0] for row in rows if row[3] == "0A"}
    parents = {int(path.parent.name): parent(path) for path in Path("/proc").glob("[0-9]*/stat")}
    below = {root}
    while more := {pid for pid, its in parents.items() if its in below} - below:
        below |= more
    found: dict[str, set[str]] = {}
    for pid in below:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            open_files = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found.setdefault(name, set()).update(address_of[file] for file in open_files & set(address_of))
    return found


def parent(path: Path) -> int:
    try:
        return int(path.read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def command_line(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_ray_gives_the_same_as_processes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before, told = of_ray(), {}
    for engine in ("processes", "ray"):
        out, err = started(tmp_path / engine, "goes_wrong_in_every_way", engine).communicate()
        assert "Traceback" not in err
        told[engine] = json.loads(out)
    rows = [read_rows(tmp_path / engine / "out" / "results.json") for engine in told]
    assert len(rows[0]) == 10  # five runs at two sites
    assert rows[0] == rows[1]
    messages = [{(one["task"], one["method"]): one["message"] for one in told[engine]["failed"]} for engine in told]
    assert messages[0].pop(("skin", "local")).startswith("its process was killed by SIGKILL")
    assert messages[1].pop(("skin", "local")).startswith("Ray: WorkerCrashedError")
    assert messages[0] == messages[1] == {
        ("lungs", "local"): "ZeroDivisionError: a slip",
        ("skin", "fedavg"): "image 7 is no image; take it out.",
    }  # fmt: skip
    for engine in told:
        surroundings = [json.loads(path.read_text()) for path in (tmp_path / engine / "told").iterdir()]
        assert len({pid for pid, _ in surroundings}) == 5  # a process for each run
        assert {threads for _, threads in surroundings} == {"1"}
        assert "in goes_wrong" in (tmp_path / engine / "out" / "logs" / "lungs" / "local" / "1.log").read_text()
    assert of_ray() == before
    assert list((tmp_path / "ray" / "home").iterdir()) == []  # Ray would keep a password there


def test_ctrl_c_ends_ray_and_all_that_it_started(tmp_path: Path) -> None:
    before = of_ray()
    with started(tmp_path, "slow", "ray") as command:
        try:
            wait_until((tmp_path / "out" / "rows" / "lungs" / "local" / "0.json").exists)
            wait_until(lambda: len(workers(tmp_path)) == 3)
            listens = listening(command.pid)
        finally:
            command.send_signal(signal.SIGINT)
        _, told = command.communicate(timeout=GIVE_UP_S)
    assert {"raylet", "gcs_server"} <= set(listens)
    assert listens["raylet"]
    assert listens["gcs_server"]
    assert set().union(*listens.values()) <= LOOPBACK  # nobody outside this machine can even ask
    assert command.returncode == 130
    assert "stopped: 1 of 8 runs have ended" in told
    assert "Traceback" not in told
    wait_until(lambda: not any(alive(pid) for pid in workers(tmp_path)))
    assert of_ray() == before
    assert len(read_rows(tmp_path / "out" / "results.json")) == 2
