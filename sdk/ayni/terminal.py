"""How the command line shows work and results: bars on a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import msgspec

EVERY_S = 10.0  # between progress lines where there is no terminal


def print_json(value: Any) -> None:
    """Bytes come out as base64 text."""
    data = msgspec.json.encode(value, enc_hook=str)
    sys.stdout.write(msgspec.json.format(data, indent=2).decode() + "\n")


class TerminalWatcher:
    """Notes stay, the bar goes. Everything goes to standard error, so that standard output is for results."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1, visible=False)
        self._what, self._said_s = "", time.monotonic()

    def __enter__(self) -> TerminalWatcher:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        if self._console.is_terminal:
            if what != self._what:
                self._bar.reset(self._task, description=what, visible=True)
            self._bar.update(self._task, completed=done, total=max(total, 1))
        elif time.monotonic() - self._said_s >= EVERY_S:
            self._said_s = time.monotonic()
            self.note(f"{what}: {done} of {total}")
        self._what = what


def size_text(num_bytes: int) -> str:
    """
    >>> size_text(1_234_567)
    '1.23 MB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.2f} {unit}"
    return f"{num_bytes} B"
