"""When a round closes: a plain function of what is known, time included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Decision = Literal["wait", "close", "extend"]


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """What the decision depends on. `num_wanted` counts active sites that have not answered yet."""

    deadline_s: float
    num_wanted: int
    num_counted: int
    quorum: int
    close_by_hand: bool


def decide(facts: RoundFacts, now_s: float) -> Decision:
    """Close when nobody is waited for any more, at the deadline with a quorum, or by hand with one answer at least.

    A deadline without a quorum is extended: nothing is averaged from too few sites because a line was down.

    >>> decide(RoundFacts(deadline_s=100, num_wanted=1, num_counted=2, quorum=2, close_by_hand=False), now_s=101)
    'close'
    """
    if facts.num_counted == 0:
        return "extend" if now_s >= facts.deadline_s else "wait"
    if facts.close_by_hand or (facts.num_wanted == 0 and facts.num_counted >= facts.quorum):
        return "close"
    if now_s < facts.deadline_s:
        return "wait"
    return "close" if facts.num_counted >= facts.quorum else "extend"


def retry_after_s(phase: str, waited_s: float, num_sites: int) -> float:
    """When a site that waits should ask again, `waited_s` after the round was opened (or the last one published).

    In proportion to what it has waited: often in rounds of seconds, every five minutes in rounds of days, and a
    round of a day costs some forty questions. All sites together ask at most about a hundred times a second.
    """
    shortest_s = max(0.05, num_sites / 100)
    patience_s = waited_s / (20 if waited_s < 10 else 5)
    return shortest_s if phase == "closed" else max(shortest_s, min(patience_s, 300.0))
