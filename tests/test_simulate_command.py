"""`ayni simulate` with real processes: kills, interruptions, changes of mind; what is finished is done once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ayni.artefacts.lock import folder_lock
from ayni.errors import UserError
from ayni_coordinator.simulation.results import Row, main_metric, read_rows
from stand_in_runs import EXPERIMENT, TASK, simulated, write_experiment
from test_cli_commands import run

TESTS = Path(__file__).parent
GIVE_UP_S = 60.0


@pytest.fixture(autouse=True)
def _runs_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def wait_until(there: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + GIVE_UP_S
    while not there():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def results(folder: Path) -> list[Row]:
    return read_rows(folder / "out" / "results.json")


def started(folder: Path, function: str) -> subprocess.Popen[str]:
    """The command, in a process group of its own."""
    write_experiment(folder)
    return subprocess.Popen(
        [sys.executable, TESTS / "stand_in_runs.py", folder, function],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def alive(pid: int) -> bool:
    """A process that has ended and waits for somebody to ask is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def workers(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "running").glob("*")]


def test_the_rows_are_those_of_every_run_in_the_experiments_order(tmp_path: Path) -> None:
    summary = simulated(tmp_path)
    rows = results(tmp_path)
    assert (summary.ran, summary.kept, summary.num_rows, summary.failed) == (8, 0, 16, [])
    assert [(row.task, row.method, row.seed, row.site) for row in rows[:4]] == [
        ("lungs", "local", 0, "north"), ("lungs", "local", 0, "south"),
        ("lungs", "local", 1, "north"), ("lungs", "local", 1, "south"),
    ]  # fmt: skip
    auc = {(row.task, row.method, row.seed, row.site): main_metric(row)[1] for row in rows}
    assert auc["lungs", "fedavg", 1, "south"] == 0.75  # 0.5 + 1/8 + the bonus 0.25 - 0.125
    assert auc["skin", "fedavg", 1, "north"] == 0.625  # no bonus there


def test_neither_the_number_of_workers_nor_the_order_changes_a_byte(tmp_path: Path) -> None:
    simulated(tmp_path / "one", num_workers=1)
    simulated(tmp_path / "three", num_workers=3)
    simulated(tmp_path / "late", seeds=[1])
    simulated(tmp_path / "late", methods=["fedavg"])
    simulated(tmp_path / "late")
    files = [(tmp_path / name / "out" / "results.json").read_bytes() for name in ("one", "three", "late")]
    assert files[0] == files[1] == files[2]


def test_filters_run_a_part_and_the_results_hold_everything_that_is_finished(tmp_path: Path) -> None:
    assert simulated(tmp_path, tasks=["skin"], seeds=[0]).num_rows == 4
    second = simulated(tmp_path, methods=["local"])
    assert (second.ran, second.kept, second.num_rows) == (3, 1, 10)  # skin's seed 0 by both methods, and local by all
    assert {(row.task, row.method, row.seed) for row in results(tmp_path)} == {
        ("skin", "fedavg", 0), *((task, "local", seed) for task in ("lungs", "skin") for seed in (0, 1)),
    }  # fmt: skip


def test_each_run_has_a_process_of_its_own_with_one_thread_and_may_print(tmp_path: Path) -> None:
    simulated(tmp_path, "tells_its_surroundings")
    told = [json.loads(path.read_text()) for path in (tmp_path / "told").iterdir()]
    assert len({pid for pid, _ in told}) == 8
    assert os.getpid() not in {pid for pid, _ in told}
    assert {threads for _, threads in told} == {"1"}
    assert "greeting" in (tmp_path / "out" / "logs" / "lungs" / "local" / "0.log").read_text()


def test_after_kill_9_its_workers_end_and_the_same_command_goes_on(tmp_path: Path) -> None:
    simulated(tmp_path / "uncut")
    command = started(tmp_path / "cut", "slow")
    wait_until((tmp_path / "cut" / "out" / "rows" / "lungs" / "local" / "0.json").exists)
    wait_until(lambda: len(workers(tmp_path / "cut")) == 3)
    os.killpg(command.pid, signal.SIGKILL)
    command.communicate()
    wait_until(lambda: not any(alive(pid) for pid in workers(tmp_path / "cut")))
    summary = simulated(tmp_path / "cut")
    assert (summary.ran, summary.kept, summary.redone) == (7, 1, 0)
    assert results(tmp_path / "cut") == results(tmp_path / "uncut")


def test_ctrl_c_ends_the_workers_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = started(tmp_path, "slow")
    wait_until((tmp_path / "out" / "rows" / "lungs" / "local" / "0.json").exists)
    wait_until(lambda: len(workers(tmp_path)) == 3)
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=GIVE_UP_S)
    assert command.returncode == 130
    assert not any(alive(pid) for pid in workers(tmp_path))
    assert "stopped: 1 of 8 runs have ended; the same command goes on from there" in told
    assert "Traceback" not in told
    assert [row.site for row in results(tmp_path)] == ["north", "south"]


def test_a_run_whose_process_is_killed_is_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = simulated(tmp_path / "killed", "dies_once")
    simulated(tmp_path / "calm")
    assert (summary.failed, summary.num_rows) == ([], 16)
    assert results(tmp_path / "killed") == results(tmp_path / "calm")
    assert "was killed by SIGKILL, perhaps for lack of memory" in capsys.readouterr().err


def test_a_run_that_is_killed_twice_has_failed_the_others_go_on_and_the_command_ends_with_3(tmp_path: Path) -> None:
    command = started(tmp_path, "one_always_dies")
    out, err = command.communicate(timeout=GIVE_UP_S)
    assert command.returncode == 3
    assert "14 rows in" in out
    assert "failed: local on skin, seed 1: its process was killed by SIGKILL" in out
    assert "Traceback" not in err
    again = simulated(tmp_path)
    assert (again.ran, again.kept, again.failed, again.num_rows) == (1, 7, [], 16)


def test_a_run_that_goes_wrong_is_said_in_its_own_words_and_not_tried_twice(tmp_path: Path) -> None:
    summary = simulated(tmp_path, "one_has_bad_data")
    assert {failed.seed: failed.message for failed in summary.failed} == {
        0: "the run gave a row that is none: Expected `float`, got `null` - at `$[0].metrics[...]`",
        1: "image 7 is no image; take it out.",
    }
    assert summary.num_rows == 12


def test_a_changed_setting_redoes_its_runs_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated(tmp_path)
    capsys.readouterr()
    changed = simulated(tmp_path, text=EXPERIMENT.replace("0.25", "0.125"))
    assert (changed.ran, changed.kept, changed.redone) == (2, 6, 2)
    told = " ".join(capsys.readouterr().err.split())
    assert "2 runs were done with another task, setting or version, and are done again" in told
    assert "fedavg on lungs, seed 0, fedavg on lungs, seed 1" in told
    auc = {(row.method, row.seed): main_metric(row)[1] for row in results(tmp_path) if row.task == "lungs"}
    assert auc["fedavg", 1] == 0.625  # the clinic comes last: 0.5 + 1/8 + 0.125 - 0.125


def test_outdated_runs_that_are_not_asked_for_now_are_in_no_results(tmp_path: Path) -> None:
    simulated(tmp_path)
    changed = simulated(tmp_path, text=EXPERIMENT.replace("0.25", "0.125"), seeds=[0])
    assert (changed.ran, changed.num_rows) == (1, 14)  # seed 1 of fedavg on lungs is neither right nor asked for


def test_runs_of_another_experiment_in_the_same_folder_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated(tmp_path)
    fewer = simulated(tmp_path, text=EXPERIMENT.replace("[0, 1]", "[1]"))
    assert (fewer.ran, fewer.kept, fewer.num_rows) == (0, 4, 8)
    assert "4 runs below" in capsys.readouterr().err


def test_a_damaged_record_is_done_again(tmp_path: Path) -> None:
    simulated(tmp_path)
    (tmp_path / "out" / "rows" / "skin" / "fedavg" / "1.json").write_text('{"finger')
    again = simulated(tmp_path)
    assert (again.ran, again.kept, again.num_rows) == (1, 7, 16)


def test_two_do_not_work_in_one_folder(tmp_path: Path) -> None:
    simulated(tmp_path)
    with (
        folder_lock(tmp_path / "out", "the test"),
        pytest.raises(UserError, match="another `ayni simulate` works in this folder"),
    ):
        simulated(tmp_path)


def test_the_commands_mistakes_are_said_in_a_sentence(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    cases: list[tuple[str, list[object]]] = [
        ("is no experiment file", [tmp_path / "nothing.toml"]),
        ("--engine is processes or ray", [path, "--engine", "threads"]),
        ("Invalid value", [path, "--workers", 0]),
        ("Invalid value", [path, "--seed", "first"]),
    ]
    for told, arguments in cases:
        done = run("simulate", *arguments, "--out", tmp_path / "out")
        assert (done.code, done.out) == (2, "")
        assert told in " ".join(done.err.replace("│", "").split())
        assert not (tmp_path / "out").exists()


def test_json_says_what_was_done(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    (tmp_path / "skin.toml").write_text(TASK.format(name="skin", rounds=1))
    command = [sys.executable, str(TESTS / "stand_in_runs.py"), str(tmp_path), "quick", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {name: told[name] for name in ("ran", "kept", "redone", "failed", "num_rows")} == {
        "ran": 8, "kept": 0, "redone": 0, "failed": [], "num_rows": 16,
    }  # fmt: skip
