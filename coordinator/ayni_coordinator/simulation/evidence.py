"""What the rows say about one task: scores, paired differences and costs of each method."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ayni.errors import DataError
from ayni_coordinator.simulation.method_titles import in_page_order, title_of
from ayni_coordinator.simulation.results import MAIN_METRICS, Row, SiteRole
from ayni_coordinator.simulation.statistics import Cells, Estimate, estimate, paired_difference

LOWER_IS_BETTER = frozenset({"hd95", "assd"})
OF_STRUCTURE = re.compile(r"(dice|hd95|assd)_(.+)")  # a figure of one structure by itself
SHARES = frozenset({"auc", "balanced_accuracy", "dice"})


@dataclass(frozen=True)
class TaskEvidence:
    """`methods` are those of sites that took part, in the page's order; `metric` is the task's main one, or ""."""

    task: str
    rows: tuple[Row, ...]
    metric: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]  # of the sites that took part

    def of(self, method: str, role: SiteRole) -> list[Row]:
        return [row for row in self.rows if row.method == method and row.role == role]

    def cells(self, method: str, role: SiteRole, metric: str = "") -> dict[tuple[int, str], float]:
        """(seed, site) -> figure, where there is one."""
        name = metric or self.metric
        found = {(row.seed, row.site): row.metrics.get(name, math.nan) for row in self.of(method, role)}
        return {key: value for key, value in found.items() if math.isfinite(value)}

    def score(self, method: str, role: SiteRole, metric: str = "") -> Estimate | None:
        return estimate(self.cells(method, role, metric))

    def difference(self, method: str, other: str, role: SiteRole, metric: str = "") -> Estimate | None:
        """method - other over the pairs that both have; None for a method and itself, or without a pair."""
        if method == other:
            return None
        return paired_difference(self.cells(method, role, metric), self.cells(other, role, metric))

    def num_cells(self, role: SiteRole) -> int:
        """Seeds times sites that a complete method would have."""
        return len({(row.seed, row.site) for row in self.rows if row.role == role})

    def by_site(self, cells: Cells) -> dict[str, float]:
        """Each site's mean over its seeds, the least first."""
        sites = sorted({site for _, site in cells})
        means = {site: _mean([value for (_, name), value in cells.items() if name == site]) for site in sites}
        return dict(sorted(means.items(), key=lambda item: item[1]))

    def worst_site(self, method: str, role: SiteRole) -> tuple[str, float] | None:
        means = self.by_site(self.cells(method, role))
        if not means:
            return None
        best_first = self.metric in LOWER_IS_BETTER
        return list(means.items())[-1 if best_first else 0]

    def run_bytes(self, method: str, role: SiteRole = "clinic") -> float | None:
        """Both ways, of the whole run: the mean over sites and seeds."""
        return self._cost(method, role, lambda row: row.bytes_up + row.bytes_down)

    def round_bytes(self, method: str, role: SiteRole = "clinic") -> float | None:
        return self._cost(method, role, lambda row: (row.bytes_up + row.bytes_down) / max(row.rounds, 1))

    def round_seconds(self, method: str, role: SiteRole = "clinic") -> float | None:
        return self._cost(method, role, lambda row: row.seconds / max(row.rounds, 1))

    def _cost(self, method: str, role: SiteRole, of_row: Callable[[Row], float]) -> float | None:
        costs = [of_row(row) for row in self.of(method, role)]
        return _mean(costs) if costs else None

    def seeds_of(self, method: str, role: SiteRole | None = None) -> set[int]:
        return {row.seed for row in self.rows if row.method == method and role in (None, row.role)}

    def seeds_beside(self, method: str) -> set[int]:
        """Those of all that it is compared with: ways at unseen sites, personal models, or methods of a federation.
        Each of these may have seeds of its own."""
        kinds = {row.method: (row.role == "unseen", title_of(row.method).kind == "personal") for row in self.rows}
        return {row.seed for row in self.rows if kinds[row.method] == kinds[method]}

    def second_metrics(self, *roles: SiteRole) -> list[str]:
        """Beside the main one; not those of single structures."""
        names = {name for row in self.rows if row.role in roles for name in row.metrics} - {self.metric}
        return sorted(name for name in names if not OF_STRUCTURE.fullmatch(name))

    @property
    def structures(self) -> list[str]:
        """Those that have figures of their own, in their order."""
        found = (OF_STRUCTURE.fullmatch(name) for row in self.rows for name in row.metrics)
        return list(dict.fromkeys(match[2] for match in found if match))

    @property
    def unit(self) -> str:
        """Of distances: volumes have an average surface distance, and are measured in mm."""
        return "mm" if any("assd" in row.metrics for row in self.rows) else "pixels"

    def digits(self, metric: str) -> int:
        """Decimals to show: three for shares of one, one for pixels and whatever else is large."""
        if metric in SHARES or metric.startswith("dice_"):
            return 3
        if metric.startswith(("hd95", "assd")) and self.unit == "mm":
            return 2
        return 3 if all(abs(row.metrics.get(metric, 0.0)) <= 1 for row in self.rows) else 1


def by_task(rows: Sequence[Row]) -> list[TaskEvidence]:
    """One for each task, in the order of first appearance. Raises DataError if a site counts twice in one run."""
    times = Counter((row.task, row.method, row.seed, row.role, row.site) for row in rows)
    twice = [key for key, count in times.items() if count > 1]
    if twice:
        task, method, seed, role, site = twice[0]
        where = f"{role} {site!r} of task {task!r}, method {method!r}, seed {seed}"
        raise DataError(f"there are {times[twice[0]]} rows for {where}. Keep the one that counts.")
    return [_evidence(task, [row for row in rows if row.task == task]) for task in dict.fromkeys(r.task for r in rows)]


def _evidence(task: str, rows: Sequence[Row]) -> TaskEvidence:
    metrics = {name for row in rows for name in row.metrics}
    return TaskEvidence(
        task=task,
        rows=tuple(rows),
        metric=next((name for name in (*MAIN_METRICS, *sorted(metrics)) if name in metrics), ""),
        methods=in_page_order(row.method for row in rows if row.role != "unseen"),
        seeds=tuple(sorted({row.seed for row in rows if row.role != "unseen"})),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
