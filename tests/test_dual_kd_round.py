"""A round of dual distillation at one site: the job, its checkpoint, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ayni.jobs import Event, Progress, TrainAlone
from ayni.learning.state import TrainingFolder, read_state
from ayni.task import Role, Task
from ayni.tensors import safe
from ayni.trained_model import TrainedModel
from site_bench import done, failed
from small_volumes import volume_task
from volume_bench import Place, teacher_bytes, write_npz

KILLED = "from ayni.learning import steps, worker; steps.CHECKPOINT_EVERY_S = steps.PROGRESS_EVERY_S = 0; worker.main()"


def task(**changes: object) -> Task:
    plain = volume_task()
    return msgspec.structs.replace(
        plain, training=msgspec.structs.replace(plain.training, steps_per_round=30, batch_size=1), **changes
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With the first round trained in "uncut"."""
    place = Place(tmp_path_factory.mktemp("place"), task())
    done(place.round("uncut"))
    return place


def test_kill_9_in_the_middle_gives_the_same_bytes(place: Place) -> None:
    job = place.round("cut")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(msgspec.json.encode(job) + b"\n")
        worker.stdin.flush()
        for line in worker.stdout:
            event = msgspec.json.decode(line, type=Event)
            assert isinstance(event, Progress), event
            if event.step > 5:
                os.kill(worker.pid, signal.SIGKILL)
                break
    cut = read_state(TrainingFolder(place.folder / "cut").checkpoint("federated"))
    assert cut
    assert 5 <= cut.info.step < 30  # the kill may come before the checkpoint of the step that was told
    done(job)
    assert place.update("cut") == place.update("uncut")
    states = [TrainingFolder(place.folder / home).state_after(1) for home in ("cut", "uncut")]
    tensors = [read_state(state) for state in states]
    assert tensors[0]
    assert tensors[1]
    assert safe.digest(tensors[0].tensors) == safe.digest(tensors[1].tensors)


def test_a_hospital_trains_the_same_student_as_a_clinic_would(place: Place) -> None:
    done(place.round("hospital", role="hospital"))
    state = read_state(TrainingFolder(place.folder / "hospital").state_after(1))
    assert state
    assert {name.split(".")[0] for name in state.tensors} == {"small", "small_adam", "residual"}
    assert set(state.info.loss_sums) == {"private", "taught"}
    assert place.update("hospital") == place.update("uncut")


def test_images_are_normalised_as_the_teachers_were(place: Place) -> None:
    state = read_state(TrainingFolder(place.folder / "uncut").state_after(1))
    assert state
    assert (state.info.pixel_mean, state.info.pixel_std) == ((0.25,), (0.125,))
    assert state.info.steps_trained == 30


def test_the_round_depends_on_the_teacher(place: Place, tmp_path: Path) -> None:
    """A checkpoint or a finished round of another teacher is not taken up."""
    other = place.written("other", teacher_bytes(place.task, seed=10))
    before = place.update("uncut")
    done(place.round("other-home", teacher=other))
    assert place.update("other-home") != before
    done(place.round("other-home"))  # the same folder, with the first teacher again
    assert place.update("other-home") == before


def test_the_model_for_diagnosis_is_small_also_at_a_hospital(place: Place) -> None:
    homes: dict[Role, str] = {"hospital": "hospital", "clinic": "uncut"}
    for role, home in homes.items():
        done(place.round(home, role=role))
        done(place.finish(home, role))
        model = TrainedModel.read(place.folder / home / "models" / "federated")
        assert model.network == place.task.small_network
        assert (model.pixel_mean, model.pixel_std) == ((0.25,), (0.125,))
        assert "the global model of round 1" in model.chosen
        assert "this site's last small network" in model.chosen


def test_a_site_that_came_too_late_to_train_normalises_as_the_others_do(place: Place) -> None:
    done(place.finish("late", "clinic"))
    assert TrainedModel.read(place.folder / "late" / "models" / "federated").pixel_mean == (0.25,)


def test_alone_has_the_steps_of_the_federation_and_the_small_network(tmp_path: Path) -> None:
    plain = task()
    short = msgspec.structs.replace(plain.training, rounds=2, steps_per_round=2)
    place = Place(tmp_path, msgspec.structs.replace(plain, training=short))
    done(TrainAlone(context=place.context("home", "hospital")))
    model = TrainedModel.read(tmp_path / "home" / "models" / "alone")
    assert (model.steps, model.network) == (4, place.task.small_network)


def test_a_teacher_that_is_missing_or_of_another_task_is_refused(place: Place) -> None:
    assert "lists no teacher" in failed(place.round("refused", teacher=None)).message
    renamed = msgspec.structs.replace(place.task, classes=("left", "right"))
    other = place.written("renamed", teacher_bytes(renamed))
    assert "has classes" in failed(place.round("refused", teacher=other)).message
    cut = place.written("cut-teacher", teacher_bytes(place.task)[:-8])
    assert failed(place.round("refused", teacher=cut)).message


def test_unlabelled_images_are_learned_from(place: Place, tmp_path: Path) -> None:
    without = str(write_npz(tmp_path / "labelled-only.npz", 4, 0, seed=1))
    job = place.round("labelled-only")
    done(msgspec.structs.replace(job, context=msgspec.structs.replace(job.context, data=without)))
    with np.load(without) as fewer, np.load(place.data) as all_of_them:
        assert (fewer["images"][0] == all_of_them["images"][0]).all()
    assert place.update("labelled-only") != place.update("uncut")


def test_a_task_without_dual_kd_needs_no_teacher(tmp_path: Path) -> None:
    place = Place(tmp_path, task(dual_kd=None))
    done(place.round("home", teacher=None))
    state = read_state(TrainingFolder(tmp_path / "home").state_after(1))
    assert state
    assert set(state.info.loss_sums) == {"private"}
