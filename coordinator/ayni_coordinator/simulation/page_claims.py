"""What held and what did not, in plain sentences made from the figures alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ayni.task import Role
from ayni_coordinator.simulation.evidence import TaskEvidence
from ayni_coordinator.simulation.markdown import difference_text, listed, plain, signed, table
from ayni_coordinator.simulation.method_titles import in_page_order, title_of
from ayni_coordinator.simulation.page_tables import ALONE, OURS, bytes_text, named
from ayni_coordinator.simulation.statistics import Estimate

LOSS_LIMIT = 0.005  # of AUC; half a Dice point
SAME_BYTES = 1.05  # up to a twentieth more bytes counts as no more: headers and rounding settle no claim

SIZES: dict[Role, str] = {"clinic": "small", "hospital": "large"}
EFFECTS = ("helped", "did harm", "was worth nothing that shows", "cannot be judged from one seed")

Answer = Literal["holds", "not shown", "does not hold", "cannot be said"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`not shown`: the mean is on the claim's side, but the interval leaves room for the contrary."""

    answer: Answer
    because: str


@dataclass(frozen=True, slots=True)
class Claim:
    says: str
    judge: Callable[[TaskEvidence, str], Verdict]


def ahead_of_alone(evidence: TaskEvidence, method: str) -> Verdict:
    gain = evidence.difference(method, ALONE, "clinic")
    if gain is None:
        return Verdict("cannot be said", f"{named(method)} and {named(ALONE)} have no small site in common.")
    text = difference_text(gain, evidence.digits(evidence.metric), cells=evidence.num_cells("clinic"))
    return Verdict(_answer([gain]), f"the small sites' mean difference is {text}.")


def ahead_at_no_more_bytes(evidence: TaskEvidence, method: str) -> Verdict:
    moved = evidence.run_bytes(method)
    if moved is None:
        return Verdict("cannot be said", f"{named(method)} has no row of a small site.")
    rivals = [name for name in evidence.methods if title_of(name).kind == "baseline"]
    costs = {name: evidence.run_bytes(name) for name in rivals}
    frugal = [name for name, cost in costs.items() if cost is not None and cost <= moved * SAME_BYTES]
    leads = {name: lead for name in frugal if (lead := evidence.difference(method, name, "clinic"))}
    if not leads:
        return Verdict("cannot be said", f"no baseline moved as few bytes as its {bytes_text(moved)} in the whole run.")
    return Verdict(
        _answer(list(leads.values())), f"with {bytes_text(moved)} in the whole run: {_told_apart(evidence, leads)}."
    )


def _told_apart(evidence: TaskEvidence, leads: Mapping[str, Estimate]) -> str:
    digits, cells = evidence.digits(evidence.metric), evidence.num_cells("clinic")
    groups: dict[str, list[str]] = {"ahead of": [], "not told apart from": [], "behind": []}
    for name, lead in leads.items():
        group = "ahead of" if lead.above_zero else "behind" if lead.below_zero else "not told apart from"
        told = f"{named(name)} ({bytes_text(evidence.run_bytes(name))}) {difference_text(lead, digits, cells=cells)}"
        groups[group].append(told)
    return "; ".join(f"{group} {listed(told)}" for group, told in groups.items() if told)


def hospitals_lose_nothing(evidence: TaskEvidence, method: str) -> Verdict:
    """Judged at the large site that fares worst, the seeds' mean; not shown if the interval of all reaches further."""
    change = evidence.difference(method, ALONE, "hospital")
    if change is None:
        return Verdict("cannot be said", f"{named(method)} and {named(ALONE)} have no large site in common.")
    ours, alone = evidence.cells(method, "hospital"), evidence.cells(ALONE, "hospital")
    by_site = evidence.by_site({key: ours[key] - alone[key] for key in ours.keys() & alone.keys()})
    worst, least = next(iter(by_site.items()))
    digits = evidence.digits(evidence.metric) + 1  # the limit has as many as a score
    text = difference_text(change, digits, cells=evidence.num_cells("hospital"))
    because = f"the large sites' mean difference is {text}; the worst is {plain(worst)} with {signed(least, digits)}."
    if least < -LOSS_LIMIT:
        return Verdict("does not hold", because)
    sure = change.interval is not None and change.interval[0] >= -LOSS_LIMIT
    return Verdict("holds" if sure else "not shown", because)


def _answer(differences: Sequence[Estimate]) -> Answer:
    if any(difference.mean <= 0 for difference in differences):
        return "does not hold"
    return "holds" if all(difference.above_zero for difference in differences) else "not shown"


CLAIMS = (
    Claim("Small sites do better than alone", ahead_of_alone),
    Claim("Small sites do better than with every baseline that moves no more bytes", ahead_at_no_more_bytes),
    Claim(f"No large site loses more than {LOSS_LIMIT} against being alone", hospitals_lose_nothing),
)


def claims_section(everything: Sequence[TaskEvidence]) -> Iterator[str]:
    """Paragraphs: a table of verdicts, then the figures behind each."""
    methods = in_page_order(name for evidence in everything for name in evidence.methods)
    subjects = [name for name in methods if title_of(name).kind == "ours"]
    if not subjects:
        yield f"No row of {named(OURS)}, so nothing can be said of it."
        return
    for subject in subjects:
        tried = [evidence for evidence in everything if subject in evidence.methods]
        verdicts = {claim: [claim.judge(evidence, subject) for evidence in tried] for claim in CLAIMS}
        rows = [[claim.says, *(_marked(verdict.answer) for verdict in given)] for claim, given in verdicts.items()]
        yield table([named(subject), *(plain(evidence.task) for evidence in tried)], rows)
        for claim, given in verdicts.items():
            lines = [
                f"- {plain(evidence.task)}: {_marked(verdict.answer)}: {verdict.because}"
                for evidence, verdict in zip(tried, given, strict=True)
            ]
            yield "\n".join([f"*{claim.says}*, by {named(subject)}:", "", *lines])


def _marked(answer: Answer) -> str:
    return f"**{answer}**" if answer == "holds" else answer


def parts_section(everything: Sequence[TaskEvidence]) -> Iterator[str]:
    """Each method minus each of its ablations: what the part that is left out was worth."""
    ablations = in_page_order(
        name for evidence in everything for name in evidence.methods if title_of(name).kind == "ablation"
    )
    wholes = list(dict.fromkeys(title_of(name).of for name in ablations)) or [OURS]
    for whole in wholes:
        yield f"### What each part of {named(whole)} was worth, also where it was worth nothing"
        yield f"{named(whole)} minus the same without the part, paired."
        yield from _parts_of(everything, whole, [name for name in ablations if title_of(name).of == whole])


def _parts_of(everything: Sequence[TaskEvidence], whole: str, ablations: Sequence[str]) -> Iterator[str]:
    rows = [row for ablation in ablations for evidence in everything if (row := _worth_row(evidence, ablation))]
    if not rows:
        yield f"No ablation has a run in common with {named(whole)}."
        return
    yield table(["part of it", "task", "worth at small sites", "worth at large sites"], rows)
    yield "\n".join(line for ablation in ablations if (line := _worth_in_words(everything, ablation)))


def _worth_row(evidence: TaskEvidence, ablation: str) -> list[str]:
    """Empty where the task has no pair of the two."""
    worths = {role: evidence.difference(title_of(ablation).of, ablation, role) for role in SIZES}
    if not any(worths.values()):
        return []
    digits = evidence.digits(evidence.metric)
    texts = [difference_text(worth, digits, cells=evidence.num_cells(role)) for role, worth in worths.items()]
    return [plain(title_of(ablation).part), plain(evidence.task), *texts]


def _worth_in_words(everything: Sequence[TaskEvidence], ablation: str) -> str:
    """One line for a part: where it helped, where it did harm, and where it was worth nothing that shows."""
    found: dict[str, list[str]] = {}
    for role, size in SIZES.items():
        for evidence in everything:
            if (worth := evidence.difference(title_of(ablation).of, ablation, role)) is not None:
                found.setdefault(_effect(worth), []).append(f"{plain(evidence.task)} ({size} sites)")
    said = "; ".join(f"{effect} on {listed(found[effect])}" for effect in EFFECTS if effect in found)
    return f"- {plain(title_of(ablation).part)}: {said}." if said else ""


def _effect(worth: Estimate) -> str:
    if worth.interval is None:
        return EFFECTS[3]
    return EFFECTS[0] if worth.above_zero else EFFECTS[1] if worth.below_zero else EFFECTS[2]
