"""What is finished, on the disk: one file per run, so that a killed `ayni simulate` goes on where it was."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from ayni.artefacts.files import write_atomic
from ayni_coordinator.simulation.experiment import Experiment
from ayni_coordinator.simulation.jobs import Job
from ayni_coordinator.simulation.results import Row, in_order

Stand = Literal["open", "finished", "failed", "outdated"]


def _file_name(job: Job) -> str:
    """Without what could be a path in a group's name; two groups that then look alike are told apart by a hash."""
    if job.trial:
        return f"{job.seed}-{job.trial}"
    if not job.left_out:
        return str(job.seed)
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", job.left_out)[:40]
    return f"{job.seed}-without-{plain}-{hashlib.sha256(job.left_out.encode()).hexdigest()[:6]}"


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run that has ended: its rows, or else why it failed."""

    fingerprint: str
    rows: list[Row] = []
    failed: str = ""
    wall_s: float = 0.0
    peak_rss_mb: int = 0


@dataclass(frozen=True, slots=True)
class Records:
    """OUT/rows/TASK/METHOD/SEED.json, and OUT/logs with what went to standard error."""

    out: Path

    def path(self, job: Job) -> Path:
        return self.out / "rows" / job.task.name / job.method / f"{_file_name(job)}.json"

    def log(self, job: Job) -> Path:
        return self.out / "logs" / job.task.name / job.method / f"{_file_name(job)}.log"

    def write(self, job: Job, record: Record) -> None:
        write_atomic(self.path(job), msgspec.json.encode(record) + b"\n")

    def read(self, job: Job) -> Record | None:
        """None if there is none, or none that can be read: the run is simply done again."""
        try:
            return msgspec.json.decode(self.path(job).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def stand(self, job: Job) -> Stand:
        """Outdated: what decides the rows is not as it was when they were written."""
        record = self.read(job)
        if record is None:
            return "open"
        if record.fingerprint != job.fingerprint:
            return "outdated"
        return "failed" if record.failed else "finished"

    def rows(self, experiment: Experiment, jobs: Iterable[Job]) -> list[Row]:
        """Of all of these jobs that are finished, in the experiment's order."""
        records = [self.read(job) for job in jobs if self.stand(job) == "finished"]
        rows = [row for record in records if record is not None for row in record.rows]
        return in_order(rows, tasks=experiment.tasks, methods=experiment.methods)

    def foreign(self, jobs: Sequence[Job]) -> list[Path]:
        """Records of runs that are none of these jobs."""
        ours = {self.path(job) for job in jobs}
        return [path for path in sorted(self.out.glob("rows/*/*/*.json")) if path not in ours]
