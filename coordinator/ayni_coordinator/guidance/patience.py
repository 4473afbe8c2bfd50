"""Trying again with growing, jittered pauses, for as long as it makes sense and no longer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from ayni.errors import LineError
from ayni_coordinator.guidance.source import TryLaterError

NUM_ATTEMPTS = 6
MAX_PAUSE_S = 30.0
MAX_RETRY_AFTER_S = 600.0

T = TypeVar("T")


def with_patience(attempt: Callable[[], T], *, pause: Callable[[float], None]) -> T:
    """`attempt` up to six times. Pauses of about 0.5, 1, 2, 4, 8 s (times .5 to 1.5), or what the other side asked for.

    Raises LineError when all have failed or the other side asks for more than ten minutes, and lets every
    error but TryLaterError through at once.
    """
    for number in range(NUM_ATTEMPTS):
        try:
            return attempt()
        except TryLaterError as error:
            wait_s = min(MAX_PAUSE_S, 0.5 * 2**number) * random.uniform(0.5, 1.5)
            if error.after_s is not None:
                wait_s = max(0.0, error.after_s)
            if number == NUM_ATTEMPTS - 1 or wait_s > MAX_RETRY_AFTER_S:
                when = "later" if wait_s <= MAX_RETRY_AFTER_S else f"in {wait_s:.0f} s, as it asks"
                raise LineError(
                    f"{error}. Run this again {when}: what was answered is kept and not asked twice."
                ) from None
            pause(wait_s)
    raise AssertionError("not reached")
