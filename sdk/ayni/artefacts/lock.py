"""One process at a time in one folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ayni.errors import UserError


@contextmanager
def folder_lock(folder: Path, taken: str) -> Iterator[None]:
    """The lock goes with the process, also when it is killed. Raises UserError with the text `taken`."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{taken} ({folder}). Wait for it to end, or stop it first.") from None
        yield
