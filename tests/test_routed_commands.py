"""`ayni adapt` and `ayni diagnose` of a routed bundle as a person runs them: offline, light, and said in words."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from ayni.learning.networks import build_network, weights_of
from ayni.learning.statistics import gathered, statistics_of
from ayni.task import ImageSettings, NetworkSettings, ResNetSettings, UNetSettings
from ayni.tensors import safe
from ayni.tensors.expert import Expert, ExpertInfo
from ayni_export.bundle import read_bundle
from ayni_export.report_routing import routing_svg
from ayni_export.routed.pack import export_routed
from ayni_export.routed.record import Adaptation
from ayni_export.routed.source import Federation
from routed_federation import federation, routed_bundle, save_worklist
from test_diagnose_command import ayni
from trained_home import NETWORK, exported_bundle, save_xray, trained_model, xrays
from trained_home import normalised as normalised_xrays
from trained_unet import MEAN, STD, outlining_model

MAX_KB = 300 * 1024


def said(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def held(stderr: str) -> tuple[int, str, str]:
    peak_kb, has_torch, has_monai = re.findall(r"HELD (\d+) (\w+) (\w+)", stderr)[0]
    return int(peak_kb), has_torch, has_monai


def test_from_a_worklist_to_an_adapted_bundle_and_a_report_that_says_who_spoke(tmp_path: Path) -> None:
    save_worklist(tmp_path, "dark", 8)
    names = [f"dark-{number}.png" for number in range(8)]
    made = ayni("adapt", routed_bundle(), *names, "--out", "ours", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "The model of dark speaks" in said(made.stdout)
    assert "The choice rests on 8 images." in said(made.stdout)
    done = ayni("diagnose", "ours", names[0], "--out", "seen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The model of dark speaks" in said(done.stderr)
    assert held(made.stderr)[1:] == held(done.stderr)[1:] == ("False", "False")
    report = json.loads((tmp_path / "seen/report.json").read_bytes())
    adaptation = json.loads((tmp_path / "ours/adaptation.json").read_bytes())
    assert report["routing"] == adaptation
    assert report["model"]["kind"] == "routed"
    page = (tmp_path / "seen/report.html").read_text()
    assert "Which site's model spoke" in page
    assert "The model of dark speaks" in page
    assert "the coordinator of the federation" in page
    num_layers, num_experts = len(adaptation["routing"]), len(adaptation["routing"][0])
    assert page.count("<rect ") == num_layers * num_experts
    assert not re.search(r"https?:|url\(|@import", page)


def test_a_routed_bundle_is_fitted_to_what_it_is_asked_and_a_bad_file_stops_nothing(tmp_path: Path) -> None:
    save_worklist(tmp_path, "light", 3)
    (tmp_path / "b.png").write_text("hello")
    words = ("light-0.png", "light-1.png", "light-2.png", "b.png")
    done = ayni("diagnose", routed_bundle(), *words, "--out", "seen", "--refine", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    report = json.loads((tmp_path / "seen/report.json").read_bytes())
    assert (report["routing"]["num_images"], report["routing"]["num_unreadable"]) == (3, 1)
    assert report["routing"]["refinement"]["num_steps"] == 1  # every third image is asked
    page = (tmp_path / "seen/report.html").read_text()
    assert "fewer than 8, so the choice is rough" in page
    assert "a falling loss is no proof of better answers" in page
    adapted = ayni("adapt", routed_bundle(), *words, "--out", "ours", cwd=tmp_path)
    assert adapted.returncode == 3
    assert "1 of 4 files could not be used" in adapted.stderr


def test_where_experts_are_no_better_at_home_the_global_model_answers_and_is_said_to(tmp_path: Path) -> None:
    made = federation()
    told = [
        dataclasses.replace(one, info=msgspec.structs.replace(one.info, num_held_out=6, home_gain=-0.1))
        for one in made.experts[1:3]
    ]
    export_routed(dataclasses.replace(made, experts=(made.experts[0], *told)), tmp_path / "routed")
    save_worklist(tmp_path, "dark", 2)
    done = ayni("diagnose", "routed", "dark-0.png", "dark-1.png", "--out", "seen", "--refine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The global model answers alone: at their own sites the experts are no better" in said(done.stderr)
    assert "--refine changes nothing: at home the experts are no better" in said(done.stderr)
    page = said((tmp_path / "seen/report.html").read_text())
    assert "This was chosen before any image was seen; nobody checked it." in page
    assert "On 12 held-out images of their own sites the experts are no better than the global model" in page
    assert "The choice rests on" not in page


def test_a_long_worklist_is_refined_layer_by_layer(tmp_path: Path) -> None:
    save_worklist(tmp_path, "light", 32)
    words = [f"light-{number}.png" for number in range(32)]
    plain = ayni("adapt", routed_bundle(), *words, "--out", "plain", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    done = ayni("adapt", routed_bundle(), *words, "--out", "ours", "--refine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 gradient steps on unlabelled images, the last 4 of them layer by layer, took" in said(done.stdout)
    adaptation = json.loads((tmp_path / "ours/adaptation.json").read_bytes())
    assert adaptation["refinement"]["num_own"] == 4
    assert len({tuple(row) for row in json.loads((tmp_path / "plain/adaptation.json").read_bytes())["routing"]}) == 1


def test_mistakes_are_said_in_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_text("hello")
    save_worklist(tmp_path, "light", 1)
    for words, reason in (
        (("adapt", routed_bundle(), "b.png", "--out", "ours"), "none of the 1 files could be used"),
        (("adapt", exported_bundle(), "light-0.png", "--out", "ours"), "holds one model"),
        (("adapt", routed_bundle(), "light-0.png", "--out", "ours", "--device", "tpu"), "--device is cpu or gpu"),
        (("adapt", routed_bundle(), "light-0.png", "--out", "ours", "--signer", "1a2b-3c4d"), "is signed by"),
        (("export", tmp_path, "made", "--routed", "--alone"), "ask for one of them"),
        (("export", tmp_path, "made", "--routed", "--form", "int4"), "--form is fp16 or fp32"),
    ):
        done = ayni(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert reason in said(done.stderr)
        assert "Traceback" not in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "light-0.png"]


def test_a_gpu_that_is_not_there_is_said_aloud_and_the_processor_answers(tmp_path: Path) -> None:
    save_worklist(tmp_path, "light", 1)
    done = ayni("diagnose", routed_bundle(), "light-0.png", "--device", "gpu", "--out", "seen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    device = json.loads((tmp_path / "seen/report.json").read_bytes())["model"]["device"]
    assert ("processor answered instead" in said(done.stderr)) == (device == "cpu")
    done = ayni("diagnose", routed_bundle(), "light-0.png", "--device", "cpu", "--out", "again", cwd=tmp_path)
    assert json.loads((tmp_path / "again/report.json").read_bytes())["model"]["device"] == "cpu"
    assert "instead" not in done.stderr


OFFLINE = """
import socket
def refuse(*words):
    raise AssertionError("a connection was tried")
socket.socket.connect = refuse
import sys
from ayni.cli import main
main()
"""


def test_adapting_dials_nobody(tmp_path: Path) -> None:
    save_worklist(tmp_path, "dark", 2)
    words = ["adapt", str(routed_bundle()), "dark-0.png", "dark-1.png", "--out", "ours"]
    done = subprocess.run([sys.executable, "-c", OFFLINE, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert callable(socket.socket.connect)


def test_names_of_sites_are_text_in_the_picture_and_never_markup() -> None:
    info = read_bundle(routed_bundle()).info.routed
    assert info is not None
    layers = ("<b>stem</b>", *info.layers[1:])
    nasty = msgspec.structs.replace(info, layers=layers)
    even = tuple((0.25,) * 4 for _ in layers)
    adaptation = Adaptation(
        created="2026-01-01T00:00:00+00:00", bundle_sha256="0" * 64, weights_sha256="0" * 64, num_images=8,
        num_unreadable=0, routing=even, distances=(None,) * 4, chosen="start", device="cpu",
    )  # fmt: skip
    drawn = routing_svg(nasty, adaptation)
    assert "<b>" not in drawn
    assert "&lt;b&gt;stem&lt;/b&gt;: 25.0 %" in drawn


@pytest.fixture
def at_128(tmp_path: Path) -> Path:
    """A routed bundle of four experts of the default small U-Net, at 128 x 128; nobody trained it."""
    image, network = ImageSettings(height=128, width=128, resize=True), UNetSettings(channels=(16, 32, 64, 128))
    networks = NetworkSettings(small=network)
    task = msgspec.structs.replace(outlining_model().task, classes=("lung",), image=image, networks=networks)
    pixels = torch.from_numpy(xrays()["test_images"][:8, None].repeat(4, 2).repeat(4, 3)[:, :, :112, :112].copy())
    pixels = torch.nn.functional.pad(pixels, (8, 8, 8, 8))
    torch.manual_seed(0)
    reference = build_network(network, image, 1).eval()
    with torch.no_grad():
        seen = gathered(statistics_of(reference, (pixels.float() / 255 - MEAN) / STD)).numpy()
    made: list[Expert] = []
    for number, site in enumerate(("global", "north", "south", "west")):
        built = build_network(network, image, 1).eval()
        built.load_state_dict(reference.state_dict())
        with torch.no_grad():
            for tensor in built.parameters():
                tensor.add_(torch.randn_like(tensor), alpha=0.01 * number)
        told: dict[str, Any] = {}
        if made:
            told = {"reference_digest": safe.digest(made[0].weights), "num_cases": 8}
        info = ExpertInfo(
            site=site, task="shapes", rounds=1, decay=0.1, num_train=8, pixel_mean=(MEAN,), pixel_std=(STD,), **told
        )
        made.append(Expert(info, weights_of(built), seen if told else None))
    export_routed(Federation(task, 1, tuple(made), federation().signing_key), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_diagnosing_and_refining_at_128_pixels_holds_less_than_300_mb_and_never_torch(
    at_128: Path, tmp_path: Path
) -> None:
    for number in range(16):
        Image.fromarray(xrays()["test_images"][number]).resize((128, 128)).save(tmp_path / f"{number}.png")
    words = [f"{number}.png" for number in range(16)]
    for out, more in (("plain", ()), ("refined", ("--refine",))):
        done = ayni("diagnose", at_128, *words, "--out", out, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        peak_kb, has_torch, has_monai = held(done.stderr)
        assert (has_torch, has_monai) == ("False", "False")
        assert peak_kb < MAX_KB
        assert json.loads((tmp_path / out / "report.json").read_bytes())["routing"]["num_images"] == 16


@functools.cache
def routed_classifier() -> Path:
    """Two experts of the X-ray classifier: the one that `trained_home` trains, and one that knows nothing."""
    from trained_home import trained_home

    weights = dict(safe.decode((trained_home() / "models/federated/weights.safetensors").read_bytes()))
    floats = {name: np.array(tensor, np.float32) for name, tensor in weights.items()}
    assert isinstance(NETWORK, ResNetSettings)
    task = msgspec.structs.replace(trained_model().task, networks=NetworkSettings(small=NETWORK))
    torch.manual_seed(3)
    ignorant = build_network(NETWORK, task.image, 2).eval()
    reference = build_network(NETWORK, task.image, 2).eval()
    reference.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in floats.items()})
    with torch.no_grad():
        seen = gathered(statistics_of(reference, normalised_xrays(xrays()["train_images"][:64]))).numpy()

    def info(site: str, **told: Any) -> ExpertInfo:
        return ExpertInfo(
            site=site, task="pneumonia", rounds=1, decay=0.1, num_train=64, pixel_mean=(0.57,), pixel_std=(0.17,),
            **told,
        )  # fmt: skip

    told: dict[str, Any] = {"reference_digest": safe.digest(floats), "num_cases": 64}
    experts = (Expert(info("global"), floats), Expert(info("ignorant", **told), weights_of(ignorant), seen))
    export_routed(Federation(task, 1, experts, federation().signing_key), trained_home() / "routed")
    return trained_home() / "routed"


def test_a_classifiers_expert_that_knows_nothing_is_refused_and_the_global_model_answers(tmp_path: Path) -> None:
    chosen = [int(i) for label in (0, 1) for i in np.flatnonzero(xrays()["test_labels"][:, 0] == label)[:6]]
    names = [save_xray(tmp_path / f"{number}.png", number).name for number in chosen]
    done = ayni("diagnose", routed_classifier(), *names, "--out", "seen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The global model answers alone: a mixture was tried, and the guard refused it." in said(done.stderr)
    report = json.loads((tmp_path / "seen/report.json").read_bytes())
    assert report["routing"]["chosen"] == "global"
    assert report["routing"]["tried"][0]["refused"]
    plain = ayni("diagnose", exported_bundle(), *names, "--out", "plain", cwd=tmp_path)
    assert plain.returncode == 0
    for one, other in zip(
        report["images"], json.loads((tmp_path / "plain/report.json").read_bytes())["images"], strict=True
    ):
        for name, logit in one["logits"].items():
            assert logit == pytest.approx(other["logits"][name], abs=0.05)  # 16 bits beside 32
    page = (tmp_path / "seen/report.html").read_text()
    assert "it was not calibrated for this place" in page
