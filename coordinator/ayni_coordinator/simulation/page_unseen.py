"""What held at sites that never trained: every way to answer there against the global model, over all tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ayni_coordinator.simulation import page_tables
from ayni_coordinator.simulation.evidence import TaskEvidence
from ayni_coordinator.simulation.markdown import NOTHING, difference_text, plain, signed, table
from ayni_coordinator.simulation.method_titles import in_page_order, title_of
from ayni_coordinator.simulation.page_claims import LOSS_LIMIT
from ayni_coordinator.simulation.page_tables import named
from ayni_coordinator.simulation.statistics import paired_difference

GLOBAL, SOUP, ORACLE, ORACLE_HALF = "global", "soup", "oracle", "oracle_half"
LEAST_SHARE = 1 / 3  # of the way from the global model to the best expert
DIGITS = 3


def unseen_section(everything: Sequence[TaskEvidence]) -> Iterator[str]:
    """Nothing if no task has a site that never trained."""
    tables = [(evidence, page_tables.unseen_table(evidence)) for evidence in everything]
    if not any(text for _, text in tables):
        return
    yield "## Sites that never trained"
    ways = in_page_order(row.method for evidence in everything for row in evidence.rows if row.role == "unseen")
    yield (
        "Over all tasks, in points of each one's main metric; a site of a task counts once. *Of the way* is the mean "
        f"gain over `{GLOBAL}` as a share of what `{ORACLE}`, the best expert by the labels, gains. *Worst site* is "
        f"the mean over seeds at the site that loses most against `{GLOBAL}`."
    )
    header = ["way", f"over `{GLOBAL}`", f"over `{SOUP}`", "of the way", "worst site"]
    yield table(header, [_row(everything, way) for way in ways if way != GLOBAL])
    for way in ways:
        if title_of(way).kind == "ours":
            yield "\n".join([f"By {named(way)}:", "", *(f"- {line}" for line in _verdicts(everything, way))])
    for evidence, text in tables:
        if text:
            yield f"### {plain(evidence.task)}"
            seeds = sorted({row.seed for row in evidence.rows if row.role == "unseen"})
            yield f"Seeds of the sites that never trained: {', '.join(map(str, seeds))}."
            yield text


def _cells(everything: Sequence[TaskEvidence], way: str) -> dict[tuple[int, str], float]:
    """(seed, task and site) -> figure, of all tasks."""
    return {
        (seed, f"{evidence.task}: {site}"): value
        for evidence in everything
        for (seed, site), value in evidence.cells(way, "unseen").items()
    }


def _row(everything: Sequence[TaskEvidence], way: str) -> list[str]:
    ours = _cells(everything, way)
    texts = [
        NOTHING if way == other else difference_text(paired_difference(ours, _cells(everything, other)), DIGITS)
        for other in (GLOBAL, SOUP)
    ]
    share, worst = share_of_the_way(everything, way), worst_loss(everything, way)
    return [
        named(way),
        *texts,
        NOTHING if share is None else _ratio(share),
        NOTHING if worst is None else f"{signed(worst[1], DIGITS)} ({plain(worst[0])})",
    ]


def share_of_the_way(everything: Sequence[TaskEvidence], way: str, to: str = ORACLE) -> float | None:
    """From the global model to the best expert; None where nothing is to be gained, or a figure is missing."""
    usual, best = _cells(everything, GLOBAL), _cells(everything, to)
    gain, room = paired_difference(_cells(everything, way), usual), paired_difference(best, usual)
    if gain is None or room is None or room.mean <= 0:
        return None
    return gain.mean / room.mean


def _ratio(share: float) -> str:
    return f"{share:.2f}".replace("-", "−")


def worst_loss(everything: Sequence[TaskEvidence], way: str) -> tuple[str, float] | None:
    """The site with the least mean difference to the global model, and that."""
    ours, usual = _cells(everything, way), _cells(everything, GLOBAL)
    by_site: dict[str, list[float]] = {}
    for key in sorted(ours.keys() & usual.keys()):
        by_site.setdefault(key[1], []).append(ours[key] - usual[key])
    if not by_site:
        return None
    means = {site: sum(values) / len(values) for site, values in by_site.items()}
    worst = min(means, key=lambda site: means[site])
    return worst, means[worst]


def _verdicts(everything: Sequence[TaskEvidence], way: str) -> Iterator[str]:
    ours = _cells(everything, way)
    for other, what in ((GLOBAL, "the global model"), (SOUP, "the mean of all weights")):
        lead = paired_difference(ours, _cells(everything, other))
        if lead is not None:
            answer = "**holds**" if lead.above_zero else "not shown" if lead.mean > 0 else "does not hold"
            yield f"Ahead of {what}: {answer}: {difference_text(lead, DIGITS)}."
    for to, which in ((ORACLE, "the best expert"), (ORACLE_HALF, "the best expert by the other half's labels")):
        share = share_of_the_way(everything, way, to)
        if share is not None:
            answer = "**holds**" if share >= LEAST_SHARE else "does not hold"
            each = ((evidence.task, share_of_the_way([evidence], way, to)) for evidence in everything)
            by_task = ", ".join(f"{plain(task)} {_ratio(part)}" for task, part in each if part is not None)
            yield f"At least a third of the way to {which}: {answer}: {_ratio(share)} ({by_task})."
    worst = worst_loss(everything, way)
    if worst is not None:
        answer = "**holds**" if worst[1] >= -LOSS_LIMIT else "does not hold"
        text = f"{plain(worst[0])} with {signed(worst[1], DIGITS + 1)}"
        yield f"On no site worse than the global model by more than {LOSS_LIMIT}: {answer}: {text}."
