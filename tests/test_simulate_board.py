"""What is shown while runs go on: counts, shares, the clinics' mean, and how long it may still take."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from ayni_coordinator.simulation.board import Board, figure
from ayni_coordinator.simulation.jobs import Failed, Finished, Job, Progress, Retried, Started, jobs_of
from ayni_coordinator.simulation.records import Record
from ayni_coordinator.simulation.table import Screen, standing, table_of
from stand_in_runs import rows_of, the_experiment


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """lungs and skin, local and fedavg: the four of seed 0, then the four of seed 1."""
    return jobs_of(the_experiment(tmp_path), tmp_path / "data")


def finish(board: Board, job: Job, start_s: float, end_s: float) -> None:
    board.tell(job, Started(), start_s)
    assert board.tell(job, Finished(rows=rows_of(job)), end_s) == end_s - start_s


def test_the_figure_is_the_mean_over_the_clinics_and_over_all_where_there_is_none(jobs: list[Job]) -> None:
    rows = [row for job in jobs[1:8:4] for row in rows_of(job)]  # fedavg on lungs, seeds 0 and 1
    assert figure(rows) == ("auc", 0.6875)  # (0.625 + 0.75) / 2
    assert figure(row for row in rows if row.role == "hospital") == ("auc", 0.8125)  # (0.75 + 0.875) / 2
    masks = [msgspec.structs.replace(row, metrics={"hd95": 9.0, "dice": 0.5}) for row in rows]
    assert figure(masks) == ("dice", 0.5)
    assert figure([]) is None


def test_nothing_is_said_about_time_before_a_run_has_ended(jobs: list[Job]) -> None:
    board = Board(jobs, num_workers=2)
    assert board.left_s(0.0) is None
    board.tell(jobs[0], Started(), 0.0)
    assert standing(board, 5.0) == "0 of 8 runs have ended"


def test_the_time_left_is_that_of_like_runs_shared_by_the_workers(jobs: list[Job]) -> None:
    board = Board(jobs, num_workers=2)
    finish(board, jobs[0], 0.0, 10.0)  # local on lungs
    finish(board, jobs[1], 0.0, 40.0)  # fedavg on lungs
    # left: skin twice two at the mean of all, 25 s each, then lungs once at 10 and once at 40
    assert board.left_s(40.0) == (4 * 25 + 10 + 40) / 2
    board.tell(jobs[5], Started(), 40.0)  # fedavg on lungs again: 40 s
    assert board.left_s(50.0) == (4 * 25 + 10 + 30) / 2  # ten seconds of it have gone
    board.tell(jobs[5], Progress(9, 10), 50.0)
    assert board.left_s(50.0) == (4 * 25 + 10 + 4) / 2  # nine tenths of it are done
    assert board.left_s(1000.0) == (4 * 25 + 10 + 0) / 2  # late: soon, but never less than nothing


def test_runs_that_were_finished_before_count_and_say_how_long_the_others_take(jobs: list[Job]) -> None:
    board = Board(jobs, num_workers=1)
    board.keep(jobs[0], Record(fingerprint="f", rows=rows_of(jobs[0]), wall_s=7.0))
    assert (board.num_ended, board.left_s(0.0)) == (1, 49.0)


def test_the_table_has_a_cell_for_each_method_and_task(jobs: list[Job]) -> None:
    board = Board(jobs, num_workers=3)
    finish(board, jobs[0], 0.0, 10.0)
    board.tell(jobs[4], Started(), 10.0)
    board.tell(jobs[4], Progress(1, 4), 12.0)
    board.tell(jobs[2], Started(), 10.0)
    board.tell(jobs[2], Retried("killed"), 11.0)  # waits again
    board.tell(jobs[3], Started(), 10.0)
    board.tell(jobs[3], Failed(message="bad"), 11.0)
    drawn = io.StringIO()
    Console(file=drawn, width=100).print(table_of(board, 12.0))
    text = drawn.getvalue()
    assert "1/2, runs 25%, auc 0.375" in text  # local on lungs; the clinic's 0.5 - 0.125
    assert "0/2, 1 failed" in text  # fedavg on skin
    assert text.count("0/2") == 3
    assert "2 of 8 runs have ended, 1 failed, about" in text


def test_a_brackets_text_is_shown_as_it_is(jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(jobs, num_workers=1)
    with Screen(board) as screen:
        screen.tell(jobs[0], Failed(message="unknown field [red]"), 1.0)
    assert capsys.readouterr().err == "local on lungs, seed 0: failed: unknown field [red]\n"
