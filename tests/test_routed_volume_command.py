"""`ayni adapt` and `ayni diagnose` of a routed bundle of volumes as a person runs them: who spoke, memory, no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import nibabel
import numpy as np
import torch

from ayni.learning.batches import Normaliser
from ayni.learning.networks import build_network, weights_of
from ayni.learning.statistics import training_statistics
from ayni.task import ImageSettings, NetworkSettings, UNetSettings
from ayni.tensors import safe
from ayni.tensors.expert import Expert, ExpertInfo
from ayni_export.routed.pack import export_routed
from ayni_export.routed.source import Federation
from routed_volumes import routed_volumes, save_volumes
from test_diagnose_command import ayni
from test_routed_commands import held, said
from trained_home import COORDINATOR
from trained_volume import MEAN, STD, volume_model

MAX_KB = 300 * 1024
NUM_VOLUMES = 8


def test_from_a_worklist_of_volumes_to_an_adapted_bundle_and_a_label_map(tmp_path: Path) -> None:
    names = [path.name for path in save_volumes(tmp_path, "dark", 4)]
    (tmp_path / "b.nii").write_text("hello")
    made = ayni("adapt", routed_volumes(), *names, "b.nii", "--out", "ours", cwd=tmp_path)
    assert made.returncode == 3, made.stderr
    assert "The model of dark speaks" in said(made.stdout)
    assert "The choice rests on 4 volumes: fewer than 8, so the choice is rough." in said(made.stdout)
    assert "4 of them are larger than what the network sees at once" in said(made.stdout)
    assert "1 of 5 files could not be used" in made.stderr
    done = ayni("diagnose", "ours", names[0], "--out", "seen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert held(made.stderr)[1:] == held(done.stderr)[1:] == ("False", "False")
    report = json.loads((tmp_path / "seen/report.json").read_bytes())
    adaptation = json.loads((tmp_path / "ours/adaptation.json").read_bytes())
    assert report["routing"] == adaptation
    assert (adaptation["num_images"], adaptation["num_in_part"]) == (4, 4)
    (image,) = report["images"]
    assert image["windows"] == 8
    mask = nibabel.load(tmp_path / "seen" / image["structures"]["ball"]["mask"])
    np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / names[0]).affine)
    assert np.count_nonzero(np.asarray(mask.dataobj) == 1) > 0
    page = (tmp_path / "seen/report.html").read_text()
    assert page.count("<rect ") == len(adaptation["routing"]) * 4
    for words in (
        "Which site's model spoke",
        "The model of dark speaks",
        "dark (16 volumes)",
        "from the volume on the left",
        "1 ball, 2 bar",
        "rules volume-1",
    ):
        assert words in re.sub(r"\s+", " ", page), words


def test_what_the_guard_refuses_and_steps_of_mixed_answers_are_said(tmp_path: Path) -> None:
    names = [path.name for path in save_volumes(tmp_path, "light", 8)]
    done = ayni("diagnose", routed_volumes(), *names, "--out", "seen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The global model answers alone: a mixture was tried, and the guard refused it." in said(done.stderr)
    assert "its answers are less sure" in (tmp_path / "seen/report.html").read_text()
    done = ayni("diagnose", routed_volumes(), *names, "--refine", "--out", "refined", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The model of light speaks with" in said(done.stderr)
    assert "--refine mixes answers, not weights: no gradient graph is here (the network sees" in said(done.stderr)


def test_a_worklist_of_the_usual_size_takes_little_memory_and_never_torch(tmp_path: Path) -> None:
    """48 x 64 x 48 voxels and the small network that is the default, four experts: the room of a hippocampus."""
    image, network = ImageSettings(depth=48, height=64, width=48), UNetSettings(channels=(16, 32, 64, 128))
    networks = NetworkSettings(small=network)
    task = msgspec.structs.replace(volume_model().task, image=image, networks=networks)
    random = np.random.default_rng(0)
    volumes = torch.from_numpy(random.integers(0, 256, (5, 1, *image.size), dtype=np.uint8))
    torch.manual_seed(0)
    reference = build_network(network, image, 2).eval()
    looks_2F = training_statistics(reference, volumes, Normaliser((MEAN,), (STD,)))
    assert looks_2F is not None
    made: list[Expert] = []
    for number, site in enumerate(("global", "north", "south", "west")):
        built = build_network(network, image, 2).eval()
        built.load_state_dict(reference.state_dict())
        with torch.no_grad():
            for tensor in built.parameters():
                tensor.add_(torch.randn_like(tensor), alpha=0.001 * number)
        told: dict[str, Any] = {"reference_digest": safe.digest(made[0].weights), "num_cases": 5} if made else {}
        info = ExpertInfo(
            site=site, task="solids", rounds=1, decay=0.1, num_train=5, pixel_mean=(MEAN,), pixel_std=(STD,), **told
        )
        made.append(Expert(info, weights_of(built), looks_2F.numpy() if told else None))
    export_routed(Federation(task, 1, tuple(made), COORDINATOR), tmp_path / "bundle", most_places=0)
    names = [f"{number}.nii.gz" for number in range(NUM_VOLUMES)]
    for name in names:
        values = random.normal(500, 100, (35, 52, 34)).astype(np.float32)
        nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / name)
    done = ayni("diagnose", "bundle", *names, "--out", "seen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "seen/report.json").read_bytes())["routing"]["num_images"] == NUM_VOLUMES
    peak_kb, *loaded = held(done.stderr)
    assert loaded == ["False", "False"]
    assert peak_kb < MAX_KB
