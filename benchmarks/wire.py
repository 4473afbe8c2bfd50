"""What does Ayni cost over a bare encrypted exchange of the same bytes? Run: python -m benchmarks.wire

Four sites send 25 MiB of float32 each and receive the mean, 25 MiB, five times, over loopback with CURVE; nobody
trains. The coordinator is `ayni coordinator serve` and a site is its real agent (ayni_exchange.py): outbox and state
machine in SQLite, content-addressed store, fsync, signed manifests, every update checked, every hash verified.
Beside it, in turns, the same bytes go through bare CURVE sockets and nothing else, in three ways (bare_curve.py).

The clock starts when every site holds the first model and its updates of all rounds, no two the same; it stops when
the last site holds the verified model of the last round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple, get_args

import zmq
from benchmarks import ayni_exchange, bare_curve

from ayni.task import Task

SPAWN = multiprocessing.get_context("spawn")  # every party is a process that imports only what it needs
TIMEOUT_S = 120.0
WAYS = get_args(bare_curve.Way)
KINDS = {**{way: f"bare CURVE, {way}" for way in WAYS}, "ayni": "Ayni"}


class Figures(NamedTuple):
    """Of one run. Bytes are those of all sites in all rounds; Ayni's with protocol and encryption."""

    seconds_per_round: float
    bytes_up: int
    bytes_down: int
    server_peak_bytes: int


def peak_bytes(pid: int | None) -> int:
    """The most memory that a process has held so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def measure(
    sites: list[SpawnProcess], server_pid: int | None, num_rounds: int, start: Any, told: Any, done: Any
) -> Figures:
    """The sites wait at `start`, tell when they ended, and wait with the server at `done`."""
    for site in sites:
        site.start()
    start.wait(TIMEOUT_S)
    started_s = time.monotonic()
    ended = [told.get(timeout=TIMEOUT_S) for _ in sites]
    peak = peak_bytes(server_pid)
    done.wait(TIMEOUT_S)
    for site in sites:
        site.join()
    seconds = max(at_s for at_s, _, _ in ended) - started_s
    return Figures(seconds / num_rounds, sum(up for _, up, _ in ended), sum(down for _, _, down in ended), peak)


def run_bare(way: bare_curve.Way, num_bytes: int, num_sites: int, num_rounds: int) -> Figures:
    start, done, told = SPAWN.Barrier(num_sites + 1), SPAWN.Barrier(num_sites + 2), SPAWN.Queue()
    public, secret = zmq.curve_keypair()
    server = SPAWN.Process(target=bare_curve.serve, args=(way, secret, num_sites, num_bytes, num_rounds, told, done))
    server.start()
    endpoint = told.get(timeout=TIMEOUT_S)
    args = (way, endpoint, public, num_bytes, num_rounds, start, told, done)
    sites = [SPAWN.Process(target=bare_curve.exchange, args=args) for _ in range(num_sites)]
    figures = measure(sites, server.pid, num_rounds, start, told, done)
    server.join()
    return figures


def run_ayni(folder: Path, updates: Path, task: Task, num_sites: int) -> Figures:
    start, done, told = SPAWN.Barrier(num_sites + 1), SPAWN.Barrier(num_sites + 1), SPAWN.Queue()
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    home = folder / "coordinator"
    invitations = ayni_exchange.make_home(home, task, endpoint, num_sites)
    command = [sys.executable, "-m", "ayni.cli", "coordinator", "serve", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()  # it says where it listens
        try:
            sites = [
                SPAWN.Process(
                    target=ayni_exchange.take_part,
                    args=(invitation, folder / f"site-{number}", updates, number, start, told, done),
                )
                for number, invitation in enumerate(invitations)
            ]
            return measure(sites, server.pid, task.training.rounds, start, told, done)
        finally:
            server.terminate()


def run_in_turns(num_turns: int, num_sites: int, num_rounds: int, folder: Path) -> dict[str, list[Figures]]:
    """One after the other again and again, so that whatever else the machine does touches all alike."""
    task, runs = ayni_exchange.wire_task(num_sites, num_rounds), {kind: list[Figures]() for kind in KINDS}
    num_bytes = ayni_exchange.make_updates(folder / "updates", task, num_sites)
    for turn in range(num_turns):
        for way in WAYS:
            runs[way].append(run_bare(way, num_bytes, num_sites, num_rounds))
        with tempfile.TemporaryDirectory(dir=folder) as place:
            runs["ayni"].append(run_ayni(Path(place), folder / "updates", task, num_sites))
        seconds = ", ".join(f"{name} {runs[kind][-1].seconds_per_round:.2f} s" for kind, name in KINDS.items())
        print(f"turn {turn + 1} of {num_turns}: {seconds} a round", file=sys.stderr)
    return runs


def summary(runs: dict[str, list[Figures]], num_sites: int, num_rounds: int) -> dict[str, Any]:
    """Medians with least and most; a ratio is that of two runs of one turn."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    def ratio_to(kind: str) -> dict[str, float]:
        pairs = zip(runs["ayni"], runs[kind], strict=True)
        return spread([ours.seconds_per_round / bare.seconds_per_round for ours, bare in pairs])

    return {
        "sites": num_sites,
        "rounds": num_rounds,
        "turns": len(runs["ayni"]),
        "ratio": {way: ratio_to(way) for way in WAYS},
        **{
            kind: {
                "seconds_per_round": spread([one.seconds_per_round for one in of_kind]),
                "server_peak_mib": spread([one.server_peak_bytes / 2**20 for one in of_kind]),
                "bytes_up": of_kind[0].bytes_up,
                "bytes_down": of_kind[0].bytes_down,
            }
            for kind, of_kind in runs.items()
        },
        "versions": {"python": platform.python_version(), "pyzmq": zmq.__version__, "libzmq": zmq.zmq_version()},
    }


def table(figures: dict[str, Any]) -> str:
    def row(name: str, of: dict[str, float], digits: int, unit: str) -> str:
        return f"{name:42} {of['median']:.{digits}f} ({of['min']:.{digits}f}-{of['max']:.{digits}f}) {unit}"

    lines = [f"{figures['sites']} sites, {figures['rounds']} rounds, {figures['turns']} turns: median (min-max)"]
    for kind, name in KINDS.items():
        one = figures[kind]
        lines.append(row(f"{name}, a round", one["seconds_per_round"], 2, "s"))
        lines.append(row(f"{name}, server's peak memory", one["server_peak_mib"], 0, "MiB"))
        lines.append(f"{name + ', bytes':42} {one['bytes_up']:,} up, {one['bytes_down']:,} down")
    lines += [row(f"ratio Ayni / {KINDS[kind]}", of, 2, "") for kind, of in figures["ratio"].items()]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where files are written; the system's temporary folder if not given"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        runs = run_in_turns(chosen.turns, chosen.sites, chosen.rounds, Path(place))
    figures = summary(runs, chosen.sites, chosen.rounds)
    print(json.dumps(figures, indent=2) if chosen.json else table(figures))


if __name__ == "__main__":
    main()
