"""What the trials of `ayni simulate --tune` found: of each method's setting the value that does best on held-out
images, task by task, as a file that the experiment can name (`tuned`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

import msgspec

from ayni.artefacts.files import write_atomic
from ayni_coordinator.simulation.experiment import Setting
from ayni_coordinator.simulation.jobs import Job
from ayni_coordinator.simulation.results import HELD_OUT, Row

TUNED_FILE = "tuned.toml"
Figures = dict[tuple[str, str, str], dict[Setting, float]]  # by task, method and setting: of each value


def figures_of(trials: Iterable[tuple[Job, Iterable[Row]]]) -> Figures:
    """The mean over sites on held-out images."""
    found: Figures = {}
    for job, rows in trials:
        ((name, value),) = job.settings.items()
        mean = fmean(row.metrics[HELD_OUT] for row in rows)
        found.setdefault((job.task.name, job.method, name), {})[value] = mean
    return found


def best_of(figures: Mapping[Setting, float]) -> Setting:
    """The value with the highest figure, of equal ones the first that was tried.

    >>> best_of({0.1: 0.8, 1.0: 0.9, 10.0: 0.9})
    1.0
    """
    return max(figures, key=lambda value: figures[value])


def write_tuned(path: Path, figures: Figures) -> None:
    """TOML, with what each value reached as a comment; the whole file or the old one."""
    lines = ["# Settings by task and method, chosen on held-out images by `ayni simulate --tune`."]
    for (task, method, name), of_values in figures.items():
        reached = ", ".join(f"{value}: {figure:.4f}" for value, figure in of_values.items())
        lines += ["", f"[{task}.{method}]", f"{name} = {msgspec.json.encode(best_of(of_values)).decode()}  # {reached}"]
    write_atomic(path, ("\n".join(lines) + "\n").encode())
