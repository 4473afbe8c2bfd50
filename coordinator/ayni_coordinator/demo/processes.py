"""The demo's parties are real processes of the real command line. Whatever is started here is ended here, by its id."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from ayni.errors import AyniError

NUM_AT_ONCE = max(2, min(6, os.cpu_count() or 2))
POLL_S = 0.5


class Processes:
    """Runs `ayni ...` as child processes, each with a log file of its own."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True)

    def start(self, name: str, *arguments: str | Path) -> None:
        """In the background; `stop` or the end of the `with` ends it."""
        with self.log(name).open("ab") as log:
            command = [sys.executable, "-m", "ayni.cli", *map(str, arguments)]
            self._running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def run(self, name: str, *arguments: str | Path) -> str:
        """To its end; returns its standard output. Raises AyniError with the last words of its log."""
        with self.log(name).open("ab") as log:
            command = [sys.executable, "-m", "ayni.cli", *map(str, arguments)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, check=False)
            log.write(done.stdout)
        if done.returncode:
            raise self._failed(name, done.returncode)
        return done.stdout.decode()

    def run_all(self, jobs: Iterable[tuple[str, list[str | Path]]], on_done: Callable[[str], None]) -> dict[str, str]:
        """As many at once as there are processors; standard output by name."""

        def one(job: tuple[str, list[str | Path]]) -> tuple[str, str]:
            output = self.run(job[0], *job[1])
            on_done(job[0])
            return job[0], output

        with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
            return dict(pool.map(one, jobs))

    def wait(self, names: Iterable[str], watch: Callable[[], None]) -> None:
        """Until all of these have ended well; every other process must go on meanwhile."""
        waiting = set(names)
        while waiting:
            for name, process in list(self._running.items()):
                code = process.poll()
                if code is None:
                    continue
                if code or name not in waiting:
                    raise self._failed(name, code)
                waiting.discard(name)
                del self._running[name]
            watch()
            time.sleep(POLL_S)

    def stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _failed(self, name: str, code: int) -> AyniError:
        words = self.log(name).read_text(errors="replace").strip().splitlines()
        last = words[-1] if words else "it said nothing"
        return AyniError(f"{name} ended with exit code {code}: {last} (all of it: {self.log(name)})")

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in list(self._running):
            self.stop(name)
