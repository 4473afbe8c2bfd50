"""Few labels, volumes, a real encrypted line: init, teach, join, two rounds of two sites, evaluate."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from ayni.cli import app
from ayni.data.volumes import VOLUME_RULES
from ayni.errors import DataError
from ayni.learning.received import load_teacher
from ayni.site.site import Site
from ayni.task import Role, RoundSettings, UNetSettings
from ayni.trained_model import Scores, TrainedModel
from ayni_coordinator.cli import register
from ayni_coordinator.home import CoordinatorHome
from ayni_coordinator.views import federation_view
from ayni_export.bundle import read_bundle
from ayni_export.export import export_site
from desk import Desk, served
from small_federation import free_port
from small_volumes import volume_task
from taught_home import new_home, published
from volume_bench import write_folder, write_npz

SITES: dict[str, Role] = {"clinic": "clinic", "hospital": "hospital"}
TASK_FILE = """
name = "boxes"
title = "Boxes in noise"
kind = "segmentation"
classes = ["anterior", "posterior"]
image = { depth = 8, height = 16, width = 12, spacing_mm = [2.0, 1.0, 0.5] }
training = { rounds = 2, steps_per_round = 20, batch_size = 2, learning_rate = 0.01 }
round = { quorum = 1, wait_for_sites = 2, deadline_s = 60 }
personal = { kind = "fine-tune", steps = 2 }
dual_kd = { teacher_steps = 150, passes = 2 }
[networks]
small = { kind = "unet", channels = [4, 8, 16], features = 4 }
large = { kind = "unet", channels = [8, 16, 16], features = 8 }
"""


@dataclass(frozen=True)
class Finished:
    folder: Path
    models: dict[str, TrainedModel]
    scores: dict[str, Scores]  # of the hospital's models
    traffic: dict[str, dict[str, tuple[int, int]]]
    words: list[str]


def ayni(*words: object) -> str:
    """The command, in this process: torch need not be loaded each time."""
    if not any(group.name == "coordinator" for group in app.registered_groups):
        register(app)
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("boxes")
    (folder / "task.toml").write_text(TASK_FILE)
    centre, endpoint = folder / "centre", f"tcp://127.0.0.1:{free_port()}"
    words = [ayni("coordinator", "init", centre, "--task", folder / "task.toml", "--endpoint", endpoint)]
    archive = write_npz(folder / "archive.npz", 12, 0, seed=3)
    words.append(ayni("coordinator", "teach", centre, "--data", archive))
    data = {
        "clinic": write_folder(folder / "clinic-data", 3, 4, seed=4),
        "hospital": write_npz(folder / "hospital.npz", 4, 2, seed=5),
    }
    test_set = write_npz(folder / "test.npz", 6, 0, seed=6)
    invitations = {site: ayni("coordinator", "invite", centre, site, "--role", SITES[site]).split()[0] for site in data}
    desk = Desk(centre)
    with served(desk, endpoint), ThreadPoolExecutor(2) as threads:
        homes = {site: folder / site for site in data}
        for site, home in homes.items():
            Site.join(invitations[site], home)
        models = dict(zip(data, threads.map(lambda site: Site(homes[site]).train(data[site]), data), strict=True))
        scores = Site(homes["hospital"]).evaluate(test_set, split="train")
        traffic = {site: Site(home).status().traffic for site, home in homes.items()}
    desk.close()
    return Finished(folder, models, scores, traffic, words)


def test_the_person_is_told_what_comes_next(finished: Finished) -> None:
    init, teach = finished.words
    assert "teach" in init.splitlines()[-1]
    assert "Each site fetches" in teach
    assert "Dice" in teach


def test_the_teacher_comes_once_to_a_site_and_nothing_of_a_public_set(finished: Finished) -> None:
    size = len(published(finished.folder / "centre"))
    for site in SITES:
        down = finished.traffic[site]["teacher"][1]
        assert size < down < 1.1 * size
        assert set(finished.traffic[site]) <= {
            "join", "handshake", "control", "manifest", "task", "model", "teacher", "update"
        }  # fmt: skip


def test_both_sites_were_counted_in_both_rounds(finished: Finished) -> None:
    view = federation_view(finished.folder / "centre")
    assert (view.phase, view.round_number) == ("finished", 2)
    assert [site.this_round for site in view.sites] == ["counted", "counted"]


def test_every_site_diagnoses_with_the_small_network_as_the_teacher_normalises(finished: Finished) -> None:
    task = CoordinatorHome.open(finished.folder / "centre").task
    teacher = load_teacher(str(_teacher_at(finished.folder / "clinic", finished.folder / "centre")), task)
    assert teacher
    for model in finished.models.values():
        assert model.network == UNetSettings(channels=(4, 8, 16), features=4)
        assert (model.pixel_mean, model.pixel_std) == (teacher.normalise.mean, teacher.normalise.std)


def _teacher_at(site: Path, centre: Path) -> Path:
    data = published(centre)
    return next(path for path in (site / "artefacts").iterdir() if path.read_bytes() == data)


def test_models_are_scored_on_volumes_in_millimetres(finished: Finished) -> None:
    assert set(finished.scores) == {"federated", "personal"}
    for score in finished.scores.values():
        assert score.num_images == 6
        assert score.unit == "mm"
        assert set(score.structures) == {"anterior", "posterior"}
        assert score.dice == pytest.approx(np.mean([s["dice"] for s in score.structures.values()]))


def test_something_was_learned(finished: Finished) -> None:
    """Of a box that fills a twentieth of the volume a network of fresh weights outlines next to nothing."""
    assert (finished.scores["federated"].dice or 0) > 0.25


def test_the_model_that_came_of_it_becomes_a_bundle(finished: Finished) -> None:
    info = export_site(finished.folder / "clinic", finished.folder / "bundle")
    assert info.rules == VOLUME_RULES
    assert read_bundle(finished.folder / "bundle").info == info


# Before anything is trained


def test_init_fixes_what_a_network_sees_at_once_and_says_so(tmp_path: Path) -> None:
    text = TASK_FILE.replace("depth = 8, height = 16, width = 12", "depth = 64, height = 128, width = 128")
    (tmp_path / "task.toml").write_text(text.replace("batch_size = 2", "batch_size = 2, memory_mb = 800"))
    told = ayni("coordinator", "init", tmp_path / "centre", "--task", tmp_path / "task.toml")
    patch = CoordinatorHome.open(tmp_path / "centre").task.image.patch
    assert patch
    assert patch < (64, 128, 128)
    assert f"sees {patch[0]} x {patch[1]} x {patch[2]} voxels" in told


@pytest.mark.parametrize("dual_kd", [True, False])
def test_unlabelled_images_are_a_mistake_only_where_nothing_learns_from_them(tmp_path: Path, dual_kd: bool) -> None:
    """Said at once, before anything waits for a round."""
    task = msgspec.structs.replace(volume_task(), round=RoundSettings(wait_for_sites=2))
    new_home(tmp_path / "centre", task if dual_kd else msgspec.structs.replace(task, dual_kd=None))
    desk = Desk(tmp_path / "centre")
    data = write_folder(tmp_path / "data", 2, 1, seed=1)
    invitation = desk.invite("near")
    with served(desk) as endpoint:
        site = Site.join(dataclasses.replace(invitation, endpoint=endpoint), tmp_path / "near")
        if dual_kd:
            assert site._data_path(data) == str(data)
        else:
            with pytest.raises(DataError, match="no mask of that name"):
                site._data_path(data)
    if dual_kd:  # where the coordinator cannot be asked, training will say
        (tmp_path / "near" / "manifest.signed").unlink()
        assert Site(tmp_path / "near")._data_path(data) == str(data)
    desk.close()
