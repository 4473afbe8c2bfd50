"""One process at a time in one folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ayni.errors import UserError


@contextmanager
def folder_lock(folder: Path, taken: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """The lock goes with the process, also when it is killed. Raises UserError with the text `taken`."""
    give_up_s = time.monotonic() + patience_s
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= give_up_s:
                    raise UserError(f"{taken} ({folder}). Wait for it to end, or stop it first.") from None
                time.sleep(0.05)
        yield
