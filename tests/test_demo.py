"""`ayni demo` from end to end, with one round: real processes, sockets, images, models and pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ayni_coordinator.demo.results import DemoResults, read_results
from ayni_coordinator.demo.split import SHARES, deal_out


def ayni(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ayni.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = ayni("demo", "--out", folder, "--seed", "3", "--set", "training.rounds=1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_results_have_exactly_the_promised_fields(out: Path) -> None:
    raw = msgspec.json.decode((out / "results.json").read_bytes())
    assert list(raw) == ["task", "seed", "rounds", "wall_s", "sites"]
    assert (raw["task"], raw["seed"], raw["rounds"]) == ("pneumonia", 3, 1)
    assert [site["name"] for site in raw["sites"]] == list(SHARES)
    for site in raw["sites"]:
        assert list(site) == ["name", "role", "num_train", "bytes_up", "bytes_down", "local", "federated"]
        assert set(site["local"]) == set(site["federated"]) == {"auc", "balanced_accuracy"}
        assert 0 < site["bytes_up"] < site["bytes_down"]
    msgspec.json.decode((out / "results.json").read_bytes(), type=DemoResults)


@pytest.mark.slow
def test_the_page_shows_every_site_and_loads_nothing(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert all(name in page for name in SHARES)
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)


@pytest.mark.slow
def test_every_round_was_answered_by_everybody_and_the_model_was_asked_once_per_image(out: Path) -> None:
    results, extras = read_results(out)
    assert extras.guidance_calls == extras.num_public == 524
    for site in results.sites:
        status = msgspec.json.decode(ayni("status", out / "sites" / site.name, "--json").stdout)
        assert status["rounds"] == {"1": "counted"}
        assert sum(purpose["bytes_up"] for purpose in status["traffic"].values()) == site.bytes_up


@pytest.mark.slow
def test_the_exported_bundle_diagnosed_the_samples(out: Path) -> None:
    report = msgspec.json.decode((out / "diagnosis" / "report.json").read_bytes())
    assert len(report["images"]) == 4
    assert {Path(image["file"]).suffix for image in report["images"]} == {".png"}


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = ayni("demo", "--out", tmp_path)
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_images_are_dealt_out_once_in_the_published_shares(tmp_path: Path) -> None:
    import numpy as np

    data = deal_out(tmp_path / "data", seed=0, classes=("normal", "pneumonia"))
    # of 4708: 60 % is 2824.8, 80 % is 3766.4, 88 % 4143.04, 94 % 4425.52, 98 % 4613.84; rounded, and their differences
    assert list(data.num_train.values()) == [2825, 941, 377, 283, 188, 94]
    images = np.concatenate([np.load(path)["train_images"] for path in data.sites.values()])
    with np.load(Path(deal_out.__code__.co_filename).with_name("pneumoniamnist.npz")) as published:
        assert sorted(image.tobytes() for image in images) == sorted(i.tobytes() for i in published["train_images"])
    assert set(np.load(data.public).files) == {"images"}  # no labels
