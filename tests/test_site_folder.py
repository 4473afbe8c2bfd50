"""A site's folder: what is fetched into it, what waits in it, what it counts - and one process at a time in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ayni.artefacts.lock import folder_lock
from ayni.artefacts.manifest import verified_manifest
from ayni.errors import DataError, IntegrityError, UserError
from ayni.keys import CurveKeys
from ayni.site.agent import Agent
from ayni.site.site import Silent, Site
from ayni.site.state import Answer, SiteState
from ayni.task import Participation, Role
from ayni.wire.connection import Dial
from ayni.wire.line import Line
from desk import Desk, task_with, write_public_set

ANSWER = Answer(round_number=3, update="u", soft_labels="", num_examples=5, train_s=1.5)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A federation with a public set; its rounds give a consensus of two hospitals."""
    task = task_with(
        public_set=str(write_public_set(tmp_path / "public.npz")),
        traffic={"form": "sparse"},
        round={"quorum": 1, "wait_for_sites": 1},
    )
    desk = Desk(tmp_path / "centre", task)
    yield desk
    desk.close()


def dial_with(desk: Desk) -> object:
    def dial(keys: CurveKeys) -> Dial:
        return desk.line(keys)._dial

    return dial


def joined(desk: Desk, name: str, role: Role, participation: Participation = "weights") -> Site:
    home = desk.folder.parent / f"home-{name}"
    site = Site.join(desk.invite(name, role), home, participation=participation, dial=dial_with(desk))  # type: ignore[arg-type]
    desk.keys[name] = site.keys
    return site


def synced(desk: Desk, site: Site) -> set[str]:
    """Fetch what is new; returns the kinds (and names) of what then lies in the folder."""
    with SiteState(site.home) as state, Line(desk.line(site.keys.curve)._dial, state.meter) as line:
        agent = Agent(site.home, site.settings, state, lambda: line, Silent())
        manifest = agent.sync(line, agent.ask_round(line).manifest_version)
    files = {path.name for path in (site.home / "artefacts").iterdir()}
    listed = {artefact.sha256.hex(): artefact for artefact in manifest.artefacts}
    assert files <= set(listed)  # nothing is kept that is no longer listed
    return {f"{listed[name].kind} {listed[name].name} {listed[name].round_number}" for name in files}


def run_round(desk: Desk, number: int) -> None:
    for name in list(desk.keys):
        desk.answer(name, number, 0.5)
    desk.average()


def test_each_site_fetches_what_it_needs_and_nothing_else(desk: Desk) -> None:
    near, far, hospital = (
        joined(desk, "near", "clinic"),
        joined(desk, "far", "clinic", "distill"),
        joined(desk, "hospital", "hospital"),
    )
    common = {"task task 0", "public-set public 0"}
    assert synced(desk, near) == synced(desk, hospital) == common | {"model whole 0"}
    assert synced(desk, far) == common  # no weights over a bad line
    assert "model" in near.status().traffic
    assert "model" not in far.status().traffic


def test_a_change_of_the_model_costs_a_change_and_old_files_go(desk: Desk) -> None:
    site = joined(desk, "near", "clinic")
    common = {"task task 0", "public-set public 0", "model whole 0"}
    assert synced(desk, site) == common
    whole_bytes = site.status().traffic["model"][1]
    run_round(desk, 1)
    assert synced(desk, site) == common | {"model change 1"}
    assert site.status().traffic["model"][1] - whole_bytes < whole_bytes / 2
    before = site.status().traffic
    assert synced(desk, site) == common | {"model change 1"}  # nothing is fetched twice
    after = site.status().traffic
    assert {name: after[name] for name in ("model", "task", "public-set", "manifest")} == {
        name: before[name] for name in ("model", "task", "public-set", "manifest")
    }


def test_whole_weights_replace_the_older_ones(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "centre", task_with(round={"quorum": 1, "wait_for_sites": 1}))
    site = joined(desk, "near", "clinic")
    assert synced(desk, site) == {"task task 0", "model whole 0"}
    run_round(desk, 1)
    assert synced(desk, site) == {"task task 0", "model whole 1"}
    desk.close()


def test_a_coordinator_that_was_restored_from_an_old_backup_is_not_followed(desk: Desk) -> None:
    site = joined(desk, "near", "clinic")
    synced(desk, site)
    old = (site.home / "manifest.signed").read_bytes()
    run_round(desk, 1)
    synced(desk, site)
    with SiteState(site.home) as state:
        known = state.manifest(site.settings.coordinator_signing_key)
        assert known is not None
        assert known.version == 2
        with pytest.raises(IntegrityError, match="old backup"):
            verified_manifest(old, site.settings.coordinator_signing_key, known=known)


def test_an_answer_waits_in_the_folder_until_it_is_acknowledged(tmp_path: Path) -> None:
    with SiteState(tmp_path) as state:
        state.put_answer(ANSWER)
        assert state.has_answer(3)
    with SiteState(tmp_path) as state:  # another process, after kill -9
        assert state.pending_answers() == [ANSWER]
        assert state.outcomes() == {3: ""}
        state.acknowledge(3, "counted")
    with SiteState(tmp_path) as state:
        assert state.pending_answers() == []
        assert state.outcomes() == {3: "counted"}
        assert state.has_answer(3)  # it is not trained again


def test_bytes_are_counted_over_restarts(tmp_path: Path) -> None:
    for _ in range(3):
        with SiteState(tmp_path) as state:
            state.meter("model", 10, 1000)
            state.meter("control", 1, 2)
            state.meter("model", 5, 500)
    with SiteState(tmp_path) as state:
        assert state.traffic() == {"model": (45, 4500), "control": (3, 6)}


def test_a_second_train_in_the_same_folder_is_refused(desk: Desk, tmp_path: Path) -> None:
    site = joined(desk, "near", "clinic")
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, train_labels=np.array([[0], [1], [0], [1]], np.uint8))
    with folder_lock(site.home, "taken"):
        for train in (site.train, site.train_alone):
            with pytest.raises(UserError, match="another `ayni train` runs for this site"):
                train(tmp_path / "own.npz")


@pytest.mark.parametrize("data", ["nothing", "empty", "not-a-table", "text.npz"])
def test_wrong_data_are_said_at_once_and_not_when_the_first_round_opens(desk: Desk, tmp_path: Path, data: str) -> None:
    site = joined(desk, "near", "clinic")
    (tmp_path / "empty").mkdir()
    (tmp_path / "not-a-table").mkdir()
    (tmp_path / "not-a-table" / "labels.csv").write_text("image;class\n")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError):
        site.train(tmp_path / data)
    with pytest.raises(UserError, match="which images"):
        Site(site.home).train(None)  # and what was wrong is not remembered
    assert issubclass(DataError, UserError)


def test_leaving_is_for_good_and_the_folder_stays(desk: Desk) -> None:
    site = joined(desk, "near", "clinic")
    synced(desk, site)
    site.leave()
    assert not desk.is_admitted(site.keys.curve)
    assert site.status().settings.site == "near"
    assert "near: site 'near' is left; its key is no longer admitted" in desk.log()
