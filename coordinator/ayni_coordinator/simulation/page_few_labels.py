"""The page's section on tasks where a site has few labels: who gains most from unlabelled images, and at what price."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ayni.task import Role
from ayni_coordinator.simulation.evidence import TaskEvidence
from ayni_coordinator.simulation.markdown import NOTHING, difference_text, listed, plain, signed, table
from ayni_coordinator.simulation.method_titles import title_of
from ayni_coordinator.simulation.page_tables import ALONE, bytes_text, metric_name, named
from ayni_coordinator.simulation.statistics import Estimate, paired_difference

TAUGHT, SUPERVISED, POOLED = "dual_kd", "fedavg", "pooled"
RIVALS = ("mean_teacher", "fixmatch", "pseudo_label")
LEAST_SHARE = 2 / 3
ROLES: tuple[Role, ...] = ("clinic", "hospital")


def is_of_few_labels(evidence: TaskEvidence) -> bool:
    return TAUGHT in evidence.methods


def few_labels_section(everything: Sequence[TaskEvidence]) -> Iterator[str]:
    """Paragraphs; none where no task has few labels."""
    tasks = [evidence for evidence in everything if is_of_few_labels(evidence)]
    if not tasks:
        return
    yield "## Few labels"
    yield (
        "All sites, small and large, have a few labelled images and others without labels; the mean is over all of "
        f"them here. *Of the way* is the mean gain over `{ALONE}` as a share of what `{POOLED}` gains, which has all "
        "images in one place with all labels, the centre's too; at the small sites alone, where all of these methods "
        f"train the same network (a large site's is large in `{ALONE}` and `{POOLED}`, and small in `{TAUGHT}` and "
        "its rivals)."
    )
    for evidence in tasks:
        yield f"### {plain(evidence.task)}"
        yield _table(evidence)
        for subject in _subjects(evidence):
            yield "\n".join([f"By {named(subject)}:", "", *(f"- {line}" for line in _verdicts(evidence, subject))])
    yield "### What a teacher costs"
    yield (
        f"Bytes of a small site. The teacher is sent once, before the first round; what it takes is what `{TAUGHT}` "
        f"receives more than `{SUPERVISED}`, whose students travel alike. *A round* is without it."
    )
    header = ["task", "the teacher, once", "a round, up and down", f"CPU s a round, `{SUPERVISED}`", f"`{TAUGHT}`"]
    yield table(header, [_cost_row(evidence) for evidence in tasks])


def _cells(evidence: TaskEvidence, method: str, roles: Sequence[Role] = ROLES) -> dict[tuple[int, str], float]:
    return {key: value for role in roles for key, value in evidence.cells(method, role).items()}


def lead(evidence: TaskEvidence, method: str, other: str, roles: Sequence[Role] = ROLES) -> Estimate | None:
    """Paired, over all sites of these roles."""
    return paired_difference(_cells(evidence, method, roles), _cells(evidence, other, roles))


def share_of_the_way(evidence: TaskEvidence, method: str) -> float | None:
    """From alone to pooled, at the small sites; None where pooled gains nothing."""
    gain, room = lead(evidence, method, ALONE, ("clinic",)), lead(evidence, POOLED, ALONE, ("clinic",))
    return None if gain is None or room is None or room.mean <= 0 else gain.mean / room.mean


def _subjects(evidence: TaskEvidence) -> list[str]:
    """Dual distillation as published, and what improves on it."""
    others = [name for name in evidence.methods if name.startswith("ayni_") and title_of(name).kind == "ours"]
    return [TAUGHT, *others]


def _table(evidence: TaskEvidence) -> str:
    digits = evidence.digits(evidence.metric)
    header = ["method", metric_name(evidence.metric), f"over `{ALONE}`", f"over `{SUPERVISED}`"]
    rows = []
    for method in evidence.methods:
        cells = _cells(evidence, method)
        texts = [difference_text(lead(evidence, method, other), digits) for other in (ALONE, SUPERVISED)]
        mean = f"{sum(cells.values()) / len(cells):.{digits}f}" if cells else NOTHING
        way = share_of_the_way(evidence, method)
        share = NOTHING if way is None else f"{way:.2f}".replace("-", "−")
        own = [text if method != other else NOTHING for text, other in zip(texts, (ALONE, SUPERVISED), strict=True)]
        rows.append([named(method), mean, *own, share])
    return table([*header, "of the way (small sites)"], rows)


def _verdicts(evidence: TaskEvidence, subject: str) -> Iterator[str]:
    digits = evidence.digits(evidence.metric)
    leads = {rival: found for rival in RIVALS if (found := lead(evidence, subject, rival))}
    if leads:
        told = [f"{named(rival)} {difference_text(found, digits)}" for rival, found in leads.items()]
        behind = any(found.mean <= 0 for found in leads.values())
        sure = all(found.above_zero for found in leads.values())
        answer = "does not hold" if behind else "**holds**" if sure else "not shown"
        yield f"Ahead of every rival that learns from unlabelled images: {answer}: over {listed(told)}."
    share = share_of_the_way(evidence, subject)
    if share is not None:
        answer = "**holds**" if share >= LEAST_SHARE else "does not hold"
        yield f"At least two thirds of the way from alone to pooled: {answer}: {share:.2f}.".replace("-", "−")


def best_rival_lead(evidence: TaskEvidence, subject: str) -> tuple[str, float] | None:
    """The rival that comes nearest, and how far ahead of it the method is."""
    leads = [(found.mean, rival) for rival in RIVALS if (found := lead(evidence, subject, rival))]
    return (min(leads)[1], min(leads)[0]) if leads else None


def lead_grows_section(everything: Sequence[TaskEvidence]) -> Iterator[str]:
    """How the lead over the nearest rival changes with the number of labels: tasks named like `name_4`, `name_8`."""
    families: dict[str, list[tuple[int, TaskEvidence]]] = {}
    for evidence in everything:
        name, _, number = evidence.task.rpartition("_")
        if is_of_few_labels(evidence) and name and number.isdecimal():
            families.setdefault(name, []).append((int(number), evidence))
    for name, found in families.items():
        if len(found) < 2:
            continue
        ordered = [evidence for _, evidence in sorted(found, key=lambda one: one[0])]
        numbers = sorted(number for number, _ in found)
        yield f"### {plain(name)}: the lead over the nearest rival, by the number of labels a site"
        subjects = [s for s in _subjects(ordered[0]) if all(s in evidence.methods for evidence in ordered)]
        rows = []
        for subject in subjects:
            leads = [best_rival_lead(evidence, subject) for evidence in ordered]
            digits = ordered[0].digits(ordered[0].metric)
            texts = [NOTHING if one is None else f"{signed(one[1], digits)} ({named(one[0])})" for one in leads]
            means = [one[1] for one in leads if one is not None]
            grows = "**yes**" if len(means) > 1 and means[0] > means[1] else "no"
            rows.append([named(subject), *texts, grows])
        wider = f"wider with {numbers[0]} than with {numbers[1]}"
        yield table(["method", *(f"{number} labels" for number in numbers), wider], rows)


def _cost_row(evidence: TaskEvidence) -> list[str]:
    with_teacher, without = (_mean_bytes(evidence, method, down=True) for method in (TAUGHT, SUPERVISED))
    up = _mean_bytes(evidence, TAUGHT, down=False)
    known = with_teacher is not None and without is not None and up is not None
    rounds = max((row.rounds for row in evidence.of(TAUGHT, "clinic")), default=0) or 1
    seconds = [evidence.round_seconds(method) for method in (SUPERVISED, TAUGHT)]
    return [
        plain(evidence.task),
        bytes_text(with_teacher - without) if known and with_teacher and without else NOTHING,
        bytes_text((without + up) / rounds) if known and without is not None and up is not None else NOTHING,
        *(NOTHING if one is None else f"{one:.2g}" for one in seconds),
    ]


def _mean_bytes(evidence: TaskEvidence, method: str, *, down: bool) -> float | None:
    rows = evidence.of(method, "clinic")
    return sum(row.bytes_down if down else row.bytes_up for row in rows) / len(rows) if rows else None
