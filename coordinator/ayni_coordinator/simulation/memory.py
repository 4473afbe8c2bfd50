"""How many runs fit into the memory of this machine at once: a budget, and what runs before turned out to need."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

FIRST_GUESS_MB = 1500  # of a run of which nothing is known
MARGIN = 1.1  # the next run of the same kind may need a little more
SHARE = 0.8  # of what is free now

Kind = tuple[str, str]  # task and method


class MemoryPlan:
    """What a run will need: what is asked for, or else the most that runs of its kind had, or of its task."""

    def __init__(self, per_run_mb: int | None = None) -> None:
        self._per_run_mb = per_run_mb
        self._peaks_mb: dict[Kind, int] = {}

    def learn(self, kind: Kind, peak_mb: int) -> None:
        if peak_mb > 0:
            self._peaks_mb[kind] = max(peak_mb, self._peaks_mb.get(kind, 0))

    def estimate_mb(self, kind: Kind) -> int:
        if self._per_run_mb is not None:
            return self._per_run_mb
        of_kind = self._peaks_mb.get(kind)
        of_task = [peak for (task, _), peak in self._peaks_mb.items() if task == kind[0]]
        known = of_kind or max(of_task, default=0)
        return round(known * MARGIN) if known else FIRST_GUESS_MB


def available_mb() -> int:
    """Free now, for this machine or this container, whichever has less. 0 where the system does not say."""
    found = [*_machine_mb(Path("/proc/meminfo")), *_container_mb(Path("/sys/fs/cgroup"))]
    return min(found, default=0)


def default_budget_mb() -> int:
    return round(available_mb() * SHARE) or FIRST_GUESS_MB


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine_mb(meminfo: Path) -> Iterable[int]:
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024 // 1_000_000


def _container_mb(cgroup: Path) -> Iterable[int]:
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        yield (int(limit.read_text()) - int(used.read_text())) // 1_000_000
