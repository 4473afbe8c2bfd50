"""What `ayni simulate` shows while it runs, on standard error: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ayni_coordinator.simulation.board import Board, figure, time_text
from ayni_coordinator.simulation.jobs import Failed, Finished, Job, Progress, Retried, Started


def table_of(board: Board, now_s: float) -> Table:
    """Methods down, tasks across. A cell: seeds done of all, what runs and failed, the clinics' mean so far."""
    tasks = list(dict.fromkeys(job.task.name for job in board.jobs))
    table = Table("method", *tasks, caption=standing(board, now_s), caption_justify="left")
    for method in dict.fromkeys(job.method for job in board.jobs):
        table.add_row(method, *(_cell(board, task, method) for task in tasks))
    return table


def standing(board: Board, now_s: float | None = None) -> str:
    """In words; with how long it may still take if `now_s` is given."""
    left_s = None if now_s is None else board.left_s(now_s)
    about = "" if left_s is None or board.num_ended == len(board.jobs) else f", about {time_text(left_s)} to go"
    failed = f", {len(board.failed)} failed" if board.failed else ""
    return f"{board.num_ended} of {len(board.jobs)} runs have ended{failed}{about}"


def _cell(board: Board, task: str, method: str) -> str:
    jobs = board.in_cell((task, method))
    if not jobs:
        return ""
    parts = [f"{sum(job.name in board.rows for job in jobs)}/{len(jobs)}"]
    running = [board.running[job.name].share for job in jobs if job.name in board.running]
    if running:
        parts.append("runs " + " ".join(f"{share:.0%}" for share in running))
    if failed := sum(job.name in board.failed for job in jobs):
        parts.append(f"{failed} failed")
    if found := figure(row for job in jobs for row in board.rows.get(job.name, [])):
        parts.append(f"{found[0]} {found[1]:.3f}")
    return ", ".join(parts)


class Screen:
    """Used as a `with`. Notes stay; the table is drawn anew below them."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self.draw()
            self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def draw(self) -> None:
        if self._live:
            self._live.update(table_of(self._board, time.monotonic()), refresh=True)

    def tell(self, job: Job, event: Started | Retried | Progress | Finished | Failed, wall_s: float) -> None:
        """In words, where they are worth it: a table shows beginnings and ends by itself."""
        match event:
            case Retried(message=message):
                self.note(f"{job.name}: {message}; tried once more later")
            case Failed(message=message):
                self.note(f"{job.name}: failed: {message}")
            case Finished(rows=rows) if self._live is None:
                found = figure(rows)
                where = "in the mean of all ways" if job.left_out else "at the clinics"
                told = f"{found[0]} {found[1]:.3f} {where}, " if found else ""
                standing_now = standing(self._board, time.monotonic())
                self.note(f"{job.name}: {told}{time_text(wall_s)}; {standing_now}")
