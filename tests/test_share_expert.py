"""A site's consent with real processes over CURVE: nothing leaves without it, what leaves, and taking it back."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ayni.errors import IntegrityError, UserError
from ayni.keys import SiteKeys, fingerprint
from ayni.learning.networks import build_network, load_weights
from ayni.site.state import SETTINGS_FILE
from ayni.task import PersonalSettings, Task
from ayni.tensors import safe
from ayni.tensors.expert import decode_expert
from ayni.tensors.safe import Floats
from ayni.trained_model import TrainedModel
from ayni_coordinator.expert_source import read_federation
from ayni_export.bundle import read_bundle
from small_federation import AYNI, ENVIRONMENT, SITES, TESTS, Federation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """One hospital and two clinics that have finished; nobody has agreed to anything, and nobody is running."""
    folder = tmp_path_factory.mktemp("personal")
    with Federation(folder, personal=PersonalSettings(decay=0.25)) as federation:
        federation.serve()
        for site in SITES:
            federation.join(site)
        early = run("site", "share-expert", folder / "clinic-a", "--yes")
        assert (early.returncode, "there is no personal model" in early.stderr) == (2, True)
        for process in [federation.train(site) for site in SITES]:
            assert process.wait() == 0, federation.log("serve")
    return federation


@pytest.fixture
def fresh(trained: Federation, tmp_path: Path) -> Iterator[Federation]:
    """A copy of it whose coordinator is serving."""
    with trained.copied(tmp_path / "fresh") as federation:
        federation.serve()
        yield federation


@pytest.fixture(scope="module")
def shared(trained: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Another, in which `clinic-a` and then the hospital have agreed. Tests leave it as it is."""
    with trained.copied(tmp_path_factory.mktemp("sharing") / "shared") as federation:
        federation.serve()
        for site in ("clinic-a", "hospital"):
            done("site", "share-expert", federation.folder / site, "--yes")
        yield federation


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    parts = [*AYNI, *map(str, command)]
    return subprocess.run(parts, capture_output=True, text=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL)


def done(*command: str | Path) -> str:
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def files_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def is_anywhere(weights: dict[str, Floats], files: list[bytes]) -> bool:
    """Whether any larger tensor lies in any of these files, in 32 or in 16 bits."""
    large = [tensor for tensor in weights.values() if tensor.size >= 64]
    assert large
    forms = [tensor.astype(kind).tobytes() for tensor in large for kind in (np.float32, np.float16)]
    return any(form in file for form in forms for file in files)


def personal_of(federation: Federation, site: str) -> dict[str, Floats]:
    data = (federation.folder / site / "models/personal/weights.safetensors").read_bytes()
    return {name: np.asarray(tensor, np.float32) for name, tensor in safe.decode(data).items()}


def rows(federation: Federation, query: str) -> list[Any]:
    with sqlite3.connect(federation.centre / "coordinator.sqlite") as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def experts_at(federation: Federation) -> list[str]:
    return sorted(path.name for path in (federation.centre / "experts").glob("*"))


def sent_bytes(federation: Federation, site: str) -> int:
    status = json.loads(done("status", federation.folder / site, "--json"))
    return int(status["traffic"].get("expert", {}).get("bytes_up", 0))


def test_no_personal_model_leaves_its_site_by_training(trained: Federation) -> None:
    everything = files_of(trained.centre)
    for site in SITES:
        assert not is_anywhere(personal_of(trained, site), everything)
        assert is_anywhere(personal_of(trained, site), files_of(trained.folder / site))  # the search does find it
        assert sent_bytes(trained, site) == 0
        assert "personal model: stays here" in done("status", trained.folder / site)
    assert rows(trained, "SELECT * FROM traffic WHERE purpose = 'expert'") == []
    assert rows(trained, "SELECT * FROM experts") == []
    assert experts_at(trained) == []
    with pytest.raises(UserError, match="no site shares"):
        read_federation(trained.centre)


@pytest.mark.parametrize("site", ["clinic-a", "hospital"])
def test_it_is_evaluated_and_exported_like_any_model(trained: Federation, tmp_path: Path, site: str) -> None:
    home = trained.folder / site
    figures = json.loads(done("evaluate", home, trained.folder / f"{site}.npz", "--split", "train", "--json"))
    assert set(figures) == {"federated", "personal"}
    assert f"shadows-personal-{site}" in done("export", home, tmp_path / "bundle", "--personal")
    card = (tmp_path / "bundle" / "docs" / "model_card.md").read_text()
    assert "this site's personal model, kept beside the federation's, after 2 rounds" in card
    both = run("export", home, tmp_path / "other", "--personal", "--alone")
    assert (both.returncode, "ask for one of them" in both.stderr) == (2, True)


def test_without_a_yes_nothing_is_sent(shared: Federation) -> None:
    asked = run("site", "share-expert", shared.folder / "clinic-b")
    assert asked.returncode == 1
    assert "Send the personal model" in asked.stdout
    assert sent_bytes(shared, "clinic-b") == 0


def test_a_site_that_agrees_sends_its_personal_model_and_its_statistics(fresh: Federation) -> None:
    told = json.loads(done("site", "share-expert", fresh.folder / "clinic-a", "--yes", "--json"))["shared"]
    said = " ".join(done("site", "share-expert", fresh.folder / "clinic-a", "--yes").split())
    better = "better" if told["home_gain"] > 0 else "no better"
    assert f"on {told['num_held_out']} held-out images it is {better} than the global model" in said
    assert f"({told['home_gain']:+.3f} in the mean" in said
    data = (fresh.centre / "experts" / "clinic-a.expert").read_bytes()
    assert data == (fresh.folder / "clinic-a" / "shared-expert.safetensors").read_bytes()
    assert (told["sha256"], told["num_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert not list((fresh.folder / "clinic-a" / "outbox").iterdir())
    expert, task = decode_expert(data), Task.from_json((fresh.centre / "task.json").read_bytes())
    assert (expert.info.site, expert.info.task, expert.info.rounds, expert.info.decay) == (
        "clinic-a",
        task.name,
        2,
        0.25,
    )
    assert expert.info.num_cases == expert.info.num_train == told["num_cases"] == 48  # of 60, a fifth is held out
    personal = personal_of(fresh, "clinic-a")
    assert expert.weights.keys() == personal.keys()
    for name, tensor in personal.items():
        np.testing.assert_array_equal(expert.weights[name], tensor.astype(np.float16).astype(np.float32))
    assert any("clinic-a: agreed to be an expert: its personal model after 2 rounds" in line for line in log(fresh))
    assert sent_bytes(fresh, "clinic-a") > len(data)
    metered = "SELECT site FROM traffic WHERE purpose = 'expert' AND bytes_up > 0"
    while not (found := rows(fresh, metered)):
        pass  # the coordinator writes its meters every few seconds
    assert found == [("clinic-a",)]
    assert "shared as an expert" in done("status", fresh.folder / "clinic-a")
    assert "clinic-a (clinic, active, shares its personal model)" in done("coordinator", "status", fresh.centre)
    sites = json.loads(done("coordinator", "sites", fresh.centre, "--json"))
    assert [site["name"] for site in sites if site["expert_since"]] == ["clinic-a"]


def log(federation: Federation) -> list[str]:
    return [f"{who}: {what}" for who, what in rows(federation, "SELECT who, what FROM audit ORDER BY id")]


def test_its_statistics_are_those_of_its_training_images_in_the_last_global_model(shared: Federation) -> None:
    """By torch's own mean and variance over all images at once; the images are read from the site's file."""
    expert = decode_expert((shared.centre / "experts" / "clinic-a.expert").read_bytes())
    task = Task.from_json((shared.centre / "task.json").read_bytes())
    ((weights_sha256, digest),) = rows(shared, "SELECT global_sha256, digest FROM rounds ORDER BY number DESC LIMIT 1")
    assert expert.info.reference_digest == digest
    assert expert.statistics_2F is not None
    tensors = safe.decode((shared.centre / "store" / weights_sha256).read_bytes())
    network = build_network(task.small_network, task.image, 2)
    load_weights(network, {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()})
    with np.load(shared.folder / "clinic-a.npz") as archive:
        pixels, labels = torch.from_numpy(archive["train_images"]), archive["train_labels"].ravel()
    from ayni.learning.batches import seed_of
    from ayni.learning.site_data import held_out

    out = held_out(labels.astype(np.int64), 0.2, seed=seed_of(task.seed, "clinic-a", "hold-out"))
    mean, std = expert.info.pixel_mean[0], expert.info.pixel_std[0]
    x = ((pixels[~torch.from_numpy(out)].float() / 255 - mean) / std)[:, None]
    with torch.no_grad():
        first = network.extractor.stem(x)  # type: ignore[operator]
        features = network.features(x)
    expected = [place.transpose(0, 1).flatten(1) for place in (x, first, features)]
    means = torch.cat([flat.mean(1) for flat in expected])
    variances = torch.cat([flat.var(1, unbiased=False) for flat in expected])
    np.testing.assert_allclose(expert.statistics_2F[0], means.numpy(), atol=1e-4)
    np.testing.assert_allclose(expert.statistics_2F[1], variances.numpy(), rtol=1e-3, atol=1e-5)
    # and what it says of itself beside the global model, of the images that were held out
    truth = torch.from_numpy(labels[out].astype(np.int64))
    held = ((pixels[torch.from_numpy(out)].float() / 255 - mean) / std)[:, None]
    with torch.no_grad():
        general = torch.log_softmax(network(held), 1)
        load_weights(network, personal_of(shared, "clinic-a"))
        personal = torch.log_softmax(network(held), 1)
    gain = (personal - general)[torch.arange(len(truth)), truth]
    assert expert.info.num_held_out == len(truth) == 12
    assert expert.info.home_gain == pytest.approx(gain.mean().item(), abs=1e-4)
    assert expert.info.home_spread == pytest.approx(gain.std(correction=0).item(), abs=1e-4)


def test_after_its_data_changed_a_site_says_nothing_of_held_out_images(fresh: Federation) -> None:
    """Some of what is held out now may have been trained on."""
    with np.load(fresh.folder / "hospital.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    fewer = fresh.folder / "fewer.npz"
    np.savez(fewer, **{name: a[:-6] if name.startswith("train_") else a for name, a in arrays.items()})
    settings = fresh.folder / "hospital" / SETTINGS_FILE
    told = json.loads(settings.read_text())
    settings.write_text(json.dumps({**told, "data": str(fewer)}))
    sent = json.loads(done("site", "share-expert", fresh.folder / "hospital", "--yes", "--json"))["shared"]
    assert (sent["num_held_out"], sent["home_gain"]) == (0, 0)
    assert sent["num_cases"] == sent["num_train"] < 48


def test_agreeing_twice_sends_nothing_twice(shared: Federation) -> None:
    before, lines = sent_bytes(shared, "clinic-a"), log(shared)
    done("site", "share-expert", shared.folder / "clinic-a", "--yes")
    assert sent_bytes(shared, "clinic-a") == before
    assert log(shared) == lines


def test_a_site_killed_while_it_shares_goes_on(fresh: Federation) -> None:
    """kill -9 before the bytes go, and when they were taken but nobody knows yet."""
    home = fresh.folder / "hospital"
    for point, there in (("upload", False), ("_say", True)):
        dying = (
            "import os, signal, sys\nfrom ayni.site import sharing\nfrom ayni.site.site import Site\n"
            f"work = sharing.{point}\n"
            "def die(*given):\n"
            "    if given[1] != 'expert': work(*given)\n"  # `_say` has spoken; `upload` has not begun
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            f"sharing.{point} = die\n"
            "if len(sys.argv) > 2: sharing._hand_over = lambda line, path, sha, watcher: ("
            "sharing.upload(line, 'expert', path), sharing._say(line, sha))\n"
            "Site(sys.argv[1]).share_expert()\n"
        )
        more = ["now"] if point == "_say" else []
        killed = subprocess.run([sys.executable, "-c", dying, str(home), *more], env=ENVIRONMENT, cwd=TESTS)
        assert killed.returncode == -signal.SIGKILL
        assert ("hospital.expert" in experts_at(fresh)) == there
        assert "its sharing was cut off" in done("status", home)
    before = sent_bytes(fresh, "hospital")
    done("site", "share-expert", home, "--yes")
    assert sent_bytes(fresh, "hospital") == before  # it was there already
    assert "shared as an expert" in done("status", home)
    assert sum(line.startswith("hospital: agreed to be an expert") for line in log(fresh)) == 1
    proxy = TrainedModel.read(home / "models/personal")
    assert proxy.network == proxy.task.small_network  # the large network stays


def test_a_bundle_is_packed_from_the_global_model_and_who_agreed(shared: Federation) -> None:
    federation = read_federation(shared.centre)
    assert [expert.info.site for expert in federation.experts] == ["global", "clinic-a", "hospital"]
    assert federation.rounds == 2
    whole = federation.experts[0]
    assert whole.info.num_train == 3 * 48
    assert safe.digest(whole.weights) == federation.experts[1].info.reference_digest
    assert whole.info.pixel_mean == federation.experts[1].info.pixel_mean  # all normalise as the public set says


def test_a_routed_bundle_is_exported_from_the_coordinators_folder_and_names_who_agreed(
    shared: Federation, tmp_path: Path
) -> None:
    said = done("export", shared.centre, tmp_path / "bundle", "--routed")
    assert "3 experts (the global model, the model of clinic-a, the model of hospital)" in said
    bundle = read_bundle(tmp_path / "bundle", signer=fingerprint(SiteKeys.load(shared.centre).signing_public))
    assert bundle.info.routed is not None
    assert [expert.num_cases >= 5 for expert in bundle.info.routed.experts] == [False, True, True]
    assert [expert.num_held_out for expert in bundle.info.routed.experts] == [0, 12, 12]
    assert "On 24 held-out images of their own sites the experts are" in said


def test_a_damaged_expert_is_named_and_not_used(shared: Federation) -> None:
    path = shared.centre / "experts" / "clinic-a.expert"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    try:
        with pytest.raises(IntegrityError, match=r"clinic-a.expert is missing or damaged. Ask 'clinic-a'"):
            read_federation(shared.centre)
    finally:
        path.write_bytes(data)


def test_who_takes_it_back_leaves_or_is_revoked_is_in_no_later_bundle(fresh: Federation) -> None:
    for site in SITES:
        done("site", "share-expert", fresh.folder / site, "--yes")
    assert experts_at(fresh) == ["clinic-a.expert", "clinic-b.expert", "hospital.expert"]
    agreed = {site: personal_of(fresh, site) for site in SITES}
    assert all(is_anywhere(weights, files_of(fresh.centre)) for weights in agreed.values())

    out = done("site", "share-expert", fresh.folder / "clinic-a", "--revoke")
    assert "later bundles are made without" in out
    assert experts_at(fresh) == ["clinic-b.expert", "hospital.expert"]
    assert not is_anywhere(agreed["clinic-a"], files_of(fresh.centre))
    assert [expert.info.site for expert in read_federation(fresh.centre).experts[1:]] == ["clinic-b", "hospital"]
    assert "personal model: stays here" in done("status", fresh.folder / "clinic-a")
    assert log(fresh)[-1] == "clinic-a: site 'clinic-a' is no expert any more; later bundles are made without it"
    done("site", "share-expert", fresh.folder / "clinic-a", "--revoke")  # once more is harmless, and no new line
    assert sum("no expert any more" in line for line in log(fresh)) == 1

    done("site", "share-expert", fresh.folder / "clinic-a", "--yes")  # and agreed again
    assert [expert.info.site for expert in read_federation(fresh.centre).experts[1:]] == [*sorted(SITES)]

    done("leave", fresh.folder / "hospital", "--yes")
    assert experts_at(fresh) == ["clinic-a.expert", "clinic-b.expert"]
    assert not is_anywhere(agreed["hospital"], files_of(fresh.centre))
    assert not (fresh.folder / "hospital" / "shared-expert.safetensors").exists()

    done("coordinator", "revoke", fresh.centre, "clinic-b")
    assert experts_at(fresh) == ["clinic-a.expert"]
    assert not is_anywhere(agreed["clinic-b"], files_of(fresh.centre))
    assert [expert.info.site for expert in read_federation(fresh.centre).experts[1:]] == ["clinic-a"]
    assert "clinic-b (clinic, revoked)" in done("coordinator", "status", fresh.centre)
