"""The training process belongs to its agent: it dies with it, and there is never a second one in a site's folder."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ayni.errors import UserError
from ayni.jobs import Failed, Progress, SiteContext, TrainAlone
from ayni.site.training_process import TrainingProcess
from desk import task_with

AGENT = """
import sys
from pathlib import Path
import msgspec
from ayni.jobs import TrainAlone
from ayni.site.training_process import TrainingProcess

with TrainingProcess(Path(sys.argv[2]), num_threads=1) as process:
    def told(what, done, total):
        done and print(process._process.pid, flush=True)
    process.run(msgspec.json.decode(sys.argv[1], type=TrainAlone), told)
"""


def endless_job(folder: Path) -> TrainAlone:
    """Training that would go on for days."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8)[:, None] % 2
    np.savez(folder / "data.npz", train_images=images, train_labels=labels)
    (folder / "task.json").write_bytes(task_with(training={"steps_per_round": 1_000_000}).to_json())
    context = SiteContext(
        home=str(folder / "home"),
        task_path=str(folder / "task.json"),
        site="north",
        role="clinic",
        participation="weights",
        data=str(folder / "data.npz"),
    )
    return TrainAlone(context=context)


def wait_for_the_end_of(pid: int, patience_s: float = 60.0) -> bool:
    """Of a process that is not our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], patience_s)[0])
    finally:
        os.close(handle)


def test_training_ends_in_the_middle_of_a_step_when_its_agent_is_killed(tmp_path: Path) -> None:
    job = msgspec.json.encode(endless_job(tmp_path)).decode()
    command = [sys.executable, "-c", AGENT, job, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:
        assert agent.stdout
        training_pid = int(agent.stdout.readline())
        os.kill(training_pid, 0)  # it is there
        agent.send_signal(signal.SIGKILL)
    assert wait_for_the_end_of(training_pid)


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    job = msgspec.json.encode(endless_job(tmp_path)) + b"\n"
    impatient = "from ayni.learning import worker; worker.LOCK_PATIENCE_S = 0.0; worker.main()"

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", impatient], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    with start() as first, start() as second:
        assert first.stdin
        assert first.stdout
        assert second.stdin
        assert second.stdout
        first.stdin.write(job)
        first.stdin.flush()
        assert isinstance(msgspec.json.decode(first.stdout.readline(), type=Progress), Progress)
        second.stdin.write(job)
        second.stdin.flush()
        answer = msgspec.json.decode(second.stdout.readline(), type=Failed)
        assert answer.user_error
        assert "another training process works for this site" in answer.message
        first.stdin.close()  # both end at once, the first in the middle of its training
        second.stdin.close()
        assert (first.wait(), second.wait()) == (0, 0)


def test_a_training_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    job = endless_job(tmp_path)
    pids: list[int] = []

    def kill_twice(what: str, done: int, total: int) -> None:
        if len(pids) == 2:
            raise UserError("enough was seen")
        if done == 0 or process._process is None:
            return  # not yet training
        pids.append(process._process.pid)
        os.kill(process._process.pid, signal.SIGKILL)
        process._process.wait()

    with TrainingProcess(tmp_path / "log", num_threads=1) as process, pytest.raises(UserError, match="enough"):
        process.run(job, kill_twice)
    assert len(set(pids)) == 2
