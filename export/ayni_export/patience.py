"""How far a long piece of work is, said only once it has taken two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ayni.terminal import TerminalWatcher

PATIENCE_S = 2.0
Watch = Callable[[str, int, int], None]  # what is done, how many of it, of how many


class Patience:
    """`say` as often as you like."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._watcher: TerminalWatcher | None = None

    def __enter__(self) -> Patience:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._watcher is not None:
            self._watcher.__exit__(kind, error, at)

    def say(self, what: str, done: int, total: int) -> None:
        from ayni.terminal import TerminalWatcher

        if self._watcher is None and time.monotonic() - self._start_s > PATIENCE_S:
            self._watcher = TerminalWatcher().__enter__()
        if self._watcher is not None:
            self._watcher.progress(what, done, total)
