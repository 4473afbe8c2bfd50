"""The centre's teacher: trained, measured, published; the same bits after a kill; never changed in a round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
import torch

from ayni.errors import RefusedError, UserError
from ayni.learning.networks import load_weights, seeded_network, weights_of
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.teacher import decode_teacher
from ayni.tensors.update import assemble
from ayni_coordinator.cli import serve
from ayni_coordinator.teaching.teach import Lesson, Taught, teach
from ayni_coordinator.views import audit_lines, federation_view
from desk import Desk
from small_setups import small_task, squares
from taught_home import STEPS, TEACHER, new_home, published, taught_task, write_squares

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
KILLED_AFTER = """
import os, signal, sys
from pathlib import Path
from ayni.learning import steps
from ayni_coordinator.teaching.teach import Lesson, teach
steps.CHECKPOINT_EVERY_S = steps.PROGRESS_EVERY_S = 0.0
die_at = sys.argv[3], int(sys.argv[4])
told = lambda what, done, total: (what, done) == die_at and os.kill(os.getpid(), 9)
teach(Path(sys.argv[1]), Lesson(Path(sys.argv[2])), told)
"""


def taught(folder: Path, lesson: Lesson) -> Taught:
    result = teach(folder, lesson, lambda what, done, total: None)
    assert result is not None
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("archive") / "squares.npz")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """With a teacher that was trained without a cut."""
    folder = new_home(tmp_path_factory.mktemp("uncut") / "centre")
    taught(folder, Lesson(data, licence="CC0-1.0"))
    return folder


def test_the_manifest_has_a_teacher_that_is_as_good_as_it_says(home: Path, data: Path) -> None:
    teacher = decode_teacher(published(home))
    info = teacher.info
    assert (info.network, info.classes, info.licence) == (TEACHER, ("square",), "CC0-1.0")
    assert (info.num_images, info.num_held_out) == (10, 2)  # a fifth of 12 is held out
    network = seeded_network(TEACHER, taught_task(), 0).eval()
    load_weights(network, teacher.weights)
    pixels_NHWC, masks_NSHW = squares(12, "segmentation", 7)
    x = torch.from_numpy(pixels_NHWC.astype(np.float32) / 255).movedim(-1, 1)
    with torch.no_grad():
        seen = (network((x - info.pixel_mean[0]) / info.pixel_std[0]) > 0).numpy()
    overlap, areas = (seen & (masks_NSHW > 0)).sum(axis=(1, 2, 3)), seen.sum((1, 2, 3)) + masks_NSHW.sum((1, 2, 3))
    dice = np.where(areas == 0, 1.0, 2 * overlap / np.maximum(areas, 1))
    assert any(  # the two that were held out are among the twelve
        info.figure == pytest.approx((dice[i] + dice[j]) / 2, abs=1e-6) for i in range(12) for j in range(i)
    )


def test_half_precision_is_taken_where_it_costs_nothing(home: Path) -> None:
    num_weights = sum(tensor.size for tensor in decode_teacher(published(home)).weights.values())
    assert 2 * num_weights < len(published(home)) < 2 * num_weights + 6000  # two bytes each, and a header


def test_what_was_done_is_in_the_audit_log(home: Path) -> None:
    assert any("the teacher 'squares-teacher' is in manifest 2" in line.what for line in audit_lines(home))


def kill_teaching(folder: Path, data: Path, what: str, step: int) -> None:
    command = [sys.executable, "-c", KILLED_AFTER, str(folder), str(data), what, str(step)]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == -signal.SIGKILL


def test_kill_9_in_the_middle_gives_the_same_teacher(home: Path, data: Path, tmp_path: Path) -> None:
    cut = new_home(tmp_path / "centre")
    kill_teaching(cut, data, "training the teacher", 6)
    steps: list[int] = []
    teach(cut, Lesson(data, licence="CC0-1.0"), lambda what, done, total: steps.append(done))
    assert steps[0] > 5  # it went on, and did not begin again
    assert published(cut) == published(home)


def test_two_processes_share_the_work_and_come_to_the_same_weights(home: Path, data: Path, tmp_path: Path) -> None:
    together = new_home(tmp_path / "centre")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ayni.cli"]
    words = ["coordinator", "teach", str(together), "--data", str(data), "--form", "fp32", "--json"]
    done = subprocess.run(
        [sys.executable, *command, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["form"] == "fp32"  # one JSON document: only the first process speaks
    alone = new_home(tmp_path / "alone")
    taught(alone, Lesson(data, form="fp32"))
    one, two = (decode_teacher(published(folder)).weights for folder in (alone, together))
    start = weights_of(seeded_network(TEACHER, taught_task(), taught_task().seed))
    for name in one:
        assert np.abs(one[name] - two[name]).max() < 2e-5, name
    moved = max(np.abs(one[name] - start[name]).max() for name in one)
    assert moved > 2e-3  # a hundred times as far: they agree, and not because nothing was learned


def test_a_second_teacher_takes_the_place_of_the_first_until_a_round_is_open(data: Path, tmp_path: Path) -> None:
    desk = Desk(new_home(tmp_path / "centre"))
    with pytest.raises(UserError, match=r"no teacher yet.*coordinator teach"):
        serve(desk.folder)
    assert "no teacher yet" in federation_view(desk.folder).to_do
    taught(desk.folder, Lesson(data, steps=1))
    assert not federation_view(desk.folder).to_do
    first = published(desk.folder)
    taught(desk.folder, Lesson(data, steps=2))
    assert published(desk.folder) != first
    with pytest.raises(RefusedError, match="--participation weights"):
        desk.join("far", participation="distill")
    desk.join("near")
    assert desk.round("near").phase == "open"
    with pytest.raises(UserError, match="round 1 has opened"):
        taught(desk.folder, Lesson(data, steps=3))
    desk.close()


def test_a_task_without_dual_kd_takes_no_teacher(data: Path, tmp_path: Path) -> None:
    folder = new_home(tmp_path / "centre", small_task("segmentation"))
    with pytest.raises(UserError, match=r"no section \[dual_kd\]"):
        taught(folder, Lesson(data))


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data LABELLED"):
        taught(new_home(tmp_path / "centre"), Lesson(None))


# From elsewhere


def test_a_teacher_of_another_centre_is_taken_as_it_is(home: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "national.safetensors"
    file.write_bytes(published(home))
    folder = new_home(tmp_path / "centre")
    result = taught(folder, Lesson(data, file, name="national"))
    assert result.info.name == "national"
    assert (result.info.licence, result.info.num_held_out) == ("CC0-1.0", 12)  # all are new to it here
    there, here = decode_teacher(published(home)).weights, decode_teacher(published(folder)).weights
    assert all((there[name] == here[name]).all() for name in there)


def test_a_teacher_that_came_in_16_bits_goes_on_in_16_bits_though_nothing_measures_it(
    home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "national.safetensors"
    file.write_bytes(published(home))
    folder = new_home(tmp_path / "centre")
    assert taught(folder, Lesson(None, file)).form == "fp16"
    assert published(folder) == published(home)


def plain(path: Path, **metadata: str) -> Path:
    weights = weights_of(seeded_network(TEACHER, taught_task(), 5))
    safetensors.numpy.save_file(weights, path, metadata or None)
    return path


def test_plain_safetensors_need_to_say_how_images_were_normalised(data: Path, tmp_path: Path) -> None:
    folder = new_home(tmp_path / "centre")
    silent = plain(tmp_path / "silent.safetensors")
    with pytest.raises(UserError, match="pixel_mean"):
        taught(folder, Lesson(None, silent))
    assert taught(folder, Lesson(data, silent)).info.pixel_mean != (0.125,)  # that of the images then
    telling = plain(tmp_path / "telling.safetensors", pixel_mean="[0.125]", pixel_std="[0.5]")
    result = taught(folder, Lesson(None, telling))
    assert (result.info.pixel_mean, result.info.pixel_std, result.info.name) == ((0.125,), (0.5,), "telling")
    assert (result.form, result.info.figure) == ("fp32", None)  # nothing tells what half precision would cost
    with pytest.raises(UserError, match="pixel_std in its metadata"):
        taught(folder, Lesson(None, plain(tmp_path / "odd.safetensors", pixel_mean="[0.1]", pixel_std="[0]")))


def test_a_teacher_whose_tensors_do_not_fit_is_refused(data: Path, tmp_path: Path) -> None:
    folder, weights = new_home(tmp_path / "centre"), weights_of(seeded_network(TEACHER, taught_task(), 5))
    file, name = tmp_path / "wrong.safetensors", "head.weight"
    for wrong in (np.zeros((2, 2), np.float32), np.zeros(weights[name].shape, np.int64), weights[name] * np.nan):
        safetensors.numpy.save_file({**weights, name: wrong}, file)
        with pytest.raises(UserError, match=r"wrong\.safetensors cannot teach this task"):
            taught(folder, Lesson(data, file))
    file.write_bytes(b"not tensors")
    with pytest.raises(UserError, match=r"wrong\.safetensors cannot teach this task: .*no safetensors file"):
        taught(folder, Lesson(data, file))
    with pytest.raises(UserError, match="cannot be read"):
        taught(folder, Lesson(data, tmp_path / "missing"))


def test_weights_beyond_half_precision_travel_in_32_bits(data: Path, tmp_path: Path) -> None:
    weights = weights_of(seeded_network(TEACHER, taught_task(), 5))
    weights["head.bias"] = np.full_like(weights["head.bias"], 70_000.0)  # half precision ends at 65,504
    safetensors.numpy.save_file(weights, tmp_path / "large.safetensors")
    result = taught(new_home(tmp_path / "centre"), Lesson(data, tmp_path / "large.safetensors"))
    assert result.form == "fp32"


def test_steps_in_place_of_the_tasks(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = new_home(tmp_path / "centre")
    teach(folder, Lesson(data, steps=3), lambda what, done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    assert STEPS == 8
    assert not (folder / "teaching" / "checkpoint.safetensors").exists()


def starting_task(steps: int) -> Task:
    task = taught_task()
    assert task.dual_kd
    return msgspec.structs.replace(task, dual_kd=msgspec.structs.replace(task.dual_kd, start_steps=steps))


def test_first_weights_may_learn_at_the_centre(data: Path, tmp_path: Path) -> None:
    task = starting_task(5)
    folder = new_home(tmp_path / "centre", task)
    desk = Desk(folder)
    before = desk.model()
    taught(folder, Lesson(data, steps=2))
    after, listed = desk.model(), [a for a in desk.listed() if a.kind == "model"]
    assert max(np.abs(after[name] - before[name]).max() for name in before) > 1e-3
    desk.join("near")
    manifest = desk.manifest("near")
    assert [artefact.digest.hex() for artefact in manifest.model_chain()] == [safe.digest(after)]
    received = assemble([desk.home.store.read(artefact.sha256) for artefact in listed])
    assert safe.digest(received) == safe.digest(after)  # half precision holds them exactly
    assert desk.answer("near", 1) == "counted"
    desk.close()
    file, other = tmp_path / "teacher", new_home(tmp_path / "other", task)
    file.write_bytes(published(folder))
    with pytest.raises(UserError, match="start_steps"):
        taught(other, Lesson(None, file))


def test_kill_9_while_first_weights_learn_gives_the_same_ones_and_no_second_teacher(data: Path, tmp_path: Path) -> None:
    cut, uncut = (new_home(tmp_path / name, starting_task(9)) for name in ("cut", "uncut"))
    kill_teaching(cut, data, "training first weights", 6)
    seen: list[tuple[str, int]] = []
    teach(cut, Lesson(data), lambda what, done, total: seen.append((what, done)))
    assert {what for what, _ in seen} == {"training first weights"}
    assert seen[0][1] > 5
    taught(uncut, Lesson(data))
    assert published(cut) == published(uncut)
    models = []
    for folder in (cut, uncut):
        desk = Desk(folder)
        models.append(safe.digest(desk.model()))
        desk.close()
        assert {path.name for path in (folder / "teaching").iterdir()} == {".lock"}  # no checkpoint is left behind
    assert models[0] == models[1]


def test_ctrl_c_is_told_and_the_same_command_goes_on(data: Path, tmp_path: Path) -> None:
    folder = new_home(tmp_path / "centre")
    words = ["coordinator", "teach", str(folder), "--data", str(data), "--steps", "1000000"]
    interruptible = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # also in the background
    )
    command = subprocess.Popen(
        [sys.executable, "-c", interruptible + "from ayni.cli import main; main()", *words],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoint = folder / "teaching" / "checkpoint.safetensors"
    while not checkpoint.exists() and command.poll() is None:
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    _, told = command.communicate()
    assert command.returncode == 130
    assert told.splitlines()[-1] == "ayni: stopped; the same command goes on where it was."
    assert "Traceback" not in told
    assert checkpoint.exists()
