"""The tables of the page of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ayni.task import Role
from ayni_coordinator.demo.wording import megabytes
from ayni_coordinator.simulation.evidence import LOWER_IS_BETTER, TaskEvidence
from ayni_coordinator.simulation.markdown import NOTHING, difference_text, plain, score_text, table
from ayni_coordinator.simulation.method_titles import in_page_order, known_titles, title_of
from ayni_coordinator.simulation.results import SiteRole

OURS, ALONE = "fedhelp", "local"
_NAMES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "dice": "Dice", "hd95": "HD95", "assd": "ASSD"}


def metric_name(metric: str, unit: str = "pixels") -> str:
    """`unit`: of distances."""
    name = _NAMES.get(metric, plain(metric) or "score")
    return f"{name}, {unit}" if metric in LOWER_IS_BETTER else name


def named(method: str) -> str:
    """In code type, so that an underscore or a star is nothing but itself."""
    return f"`{plain(method)}`"


def main_table(evidence: TaskEvidence) -> str:
    """One row per method: the small sites first, then the large ones, then what it costs a small site."""
    header = ["method", f"small sites: {metric_name(evidence.metric)}", f"over `{ALONE}`", f"over `{OURS}`"]
    header += ["worst small site", "large sites", f"over `{ALONE}`", "bytes a round", "CPU s a round", "seeds"]
    return table(header, [_main_row(evidence, method) for method in evidence.methods])


def _main_row(evidence: TaskEvidence, method: str) -> list[str]:
    over = _differences(evidence, method)
    digits, worst = evidence.digits(evidence.metric), evidence.worst_site(method, "clinic")
    return [
        named(method),
        _score(evidence, method, "clinic"),
        over(ALONE, "clinic"),
        over(OURS, "clinic"),
        f"{worst[1]:.{digits}f} ({plain(worst[0])})" if worst else NOTHING,
        _score(evidence, method, "hospital"),
        over(ALONE, "hospital"),
        bytes_text(evidence.round_bytes(method)),
        _seconds_text(evidence.round_seconds(method)),
        _seeds_text(evidence, method),
    ]


def second_table(evidence: TaskEvidence) -> str:
    """The metrics beside the main one; "" if there is none."""
    metrics = evidence.second_metrics("clinic", "hospital")
    if not metrics:
        return ""
    header = ["method"]
    for metric in metrics:
        hint = " (lower is better)" if metric in LOWER_IS_BETTER else ""
        header += [
            f"small sites: {metric_name(metric, evidence.unit)}{hint}",
            f"over `{ALONE}`",
            "large sites",
            f"over `{ALONE}`",
        ]
    rows = []
    for method in evidence.methods:
        cells = [named(method)]
        for metric in metrics:
            over = _differences(evidence, method, metric)
            roles: tuple[Role, ...] = ("clinic", "hospital")
            cells += [text for role in roles for text in (_score(evidence, method, role, metric), over(ALONE, role))]
        rows.append(cells)
    return table(header, rows)


def structures_table(evidence: TaskEvidence) -> str:
    """Each structure's figures at the small sites; "" if there are none."""
    if not evidence.structures:
        return ""
    figures = [(structure, metric) for structure in evidence.structures for metric in ("dice", "hd95", "assd")]
    header = [f"{plain(structure)}: {metric_name(metric, evidence.unit)}" for structure, metric in figures]
    rows = []
    for method in evidence.methods:
        scores = [_score(evidence, method, "clinic", f"{metric}_{structure}") for structure, metric in figures]
        rows.append([named(method), *scores])
    return table(["small sites", *header], rows)


def unseen_table(evidence: TaskEvidence) -> str:
    """Sites that took part in nothing; "" if there is none. The yardstick is the global model as it is."""
    methods = in_page_order(row.method for row in evidence.rows if row.role == "unseen")
    if not methods:
        return ""
    metrics = evidence.second_metrics("unseen")
    header = ["method", metric_name(evidence.metric), "over `global`", "worst site", *map(metric_name, metrics)]
    rows = []
    for method in methods:
        worst = evidence.worst_site(method, "unseen")
        rows.append(
            [
                named(method),
                _score(evidence, method, "unseen"),
                _differences(evidence, method)("global", "unseen"),
                f"{worst[1]:.{evidence.digits(evidence.metric)}f} ({plain(worst[0])})" if worst else NOTHING,
                *(_score(evidence, method, "unseen", metric) for metric in metrics),
                _seeds_text(evidence, method, "unseen"),
            ]
        )
    return table([*header, "seeds"], rows)


def summary_matrix(everything: Sequence[TaskEvidence]) -> str:
    """Methods against tasks: what the small sites gain over being alone."""
    methods = in_page_order(method for evidence in everything for method in evidence.methods if method != ALONE)
    rows = []
    for method in methods:
        gains = [evidence.difference(method, ALONE, "clinic") for evidence in everything]
        known = [gain for gain in gains if gain is not None]
        ahead, behind = sum(gain.above_zero for gain in known), sum(gain.below_zero for gain in known)
        cells = [
            difference_text(gain, evidence.digits(evidence.metric), cells=evidence.num_cells("clinic"))
            for gain, evidence in zip(gains, everything, strict=True)
        ]
        rows.append([named(method), *cells, f"{ahead} / {len(known) - ahead - behind} / {behind}"])
    tasks = [f"{plain(evidence.task)}: {metric_name(evidence.metric)}" for evidence in everything]
    return table(["method", *tasks, "ahead / level / behind"], rows)


def method_list(everything: Sequence[TaskEvidence]) -> str:
    methods = in_page_order(row.method for evidence in everything for row in evidence.rows)
    lines = []
    for method in methods:
        about = title_of(method)
        said = f"{about.title} ({about.source})" if about.source else about.title
        lines.append(f"- {named(method)}: {said or 'nobody has described it here'}.")
    absent = [named(method) for method in known_titles() if method not in methods]
    return "\n".join([*lines, *([f"- Without any row here: {', '.join(absent)}."] if absent else [])])


def bytes_text(num_bytes: float | None) -> str:
    """
    >>> bytes_text(None), bytes_text(0.0), bytes_text(175_400.0)
    ('–', '0', '0.18 MB')
    """
    return NOTHING if num_bytes is None else megabytes(num_bytes) if num_bytes else "0"


def _seconds_text(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"


def _seeds_text(evidence: TaskEvidence, method: str, *roles: SiteRole) -> str:
    there = set().union(*(evidence.seeds_of(method, role) for role in roles or ("clinic", "hospital")))
    beside = evidence.seeds_beside(method)
    return str(len(there)) if there == beside else f"{len(there)} of {len(beside)}"


def _score(evidence: TaskEvidence, method: str, role: SiteRole, metric: str = "") -> str:
    digits = evidence.digits(metric or evidence.metric)
    return score_text(evidence.score(method, role, metric), digits, cells=evidence.num_cells(role))


def _differences(evidence: TaskEvidence, method: str, metric: str = "") -> Callable[[str, SiteRole], str]:
    """Text of `method` minus another, at the sites of a role."""
    name = metric or evidence.metric

    def over(other: str, role: SiteRole) -> str:
        return difference_text(
            evidence.difference(method, other, role, name),
            evidence.digits(name),
            cells=evidence.num_cells(role),
            lower_is_better=name in LOWER_IS_BETTER,
        )

    return over
