"""`ayni export` and `ayni diagnose` of a segmentation as a person runs them: masks, table, exit codes, memory."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from ayni.learning.networks import build_network, weights_of
from ayni.task import ImageSettings, UNetSettings
from ayni_export.export import export_model
from test_diagnose_command import ayni
from trained_home import write_model, xrays
from trained_unet import drawn, outlining_bundle, outlining_model, save_drawn, signing_key, unet_home

MAX_KB = 150 * 1024


def test_from_a_sites_folder_to_masks_beside_a_report(tmp_path: Path) -> None:
    made = ayni("export", unet_home(), "bundle", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "south").mkdir()
    save_drawn(tmp_path / "a.png", seed=5)
    save_drawn(tmp_path / "south/a.png", seed=6)  # the same name in another folder
    (tmp_path / "b.png").write_text("hello")
    done = ayni("diagnose", "bundle", "a.png", "south/a.png", "b.png", "--out", "seen", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "seen/report.json").read_bytes())
    first, second, bad = report["images"]
    assert "no image" in bad["error"]
    assert [first["structures"][name]["mask"] for name in ("disc", "bar")] == ["masks/a-disc.png", "masks/a-bar.png"]
    assert second["structures"]["disc"]["mask"] == "masks/a-disc-2.png"
    for image, index in ((first, 5), (second, 6)):
        for number, structure in enumerate(image["structures"].values()):
            mask = np.asarray(Image.open(tmp_path / "seen" / structure["mask"]))
            assert mask.shape == (32, 48)
            assert set(np.unique(mask)) == {0, 255}
            assert np.count_nonzero(mask) == structure["pixels"] == round(structure["share"] * 32 * 48)
            truth = drawn(1, index)[1][0, number] > 0
            assert 2 * np.count_nonzero((mask > 0) & truth) / (structure["pixels"] + np.count_nonzero(truth)) > 0.7
    said = re.sub(r"\s+", " ", done.stdout)
    assert "Structure" in said
    assert f"disc {first['structures']['disc']['pixels']} pixels, " in said
    assert "Sure: the share of the area" in said
    assert "not done" in said
    page = (tmp_path / "seen/report.html").read_text()
    assert page.count("data:image/") == 4
    assert not re.search(r"https?:|url\(|@import", page)
    assert not set(report["images"][0]) & {"finding", "confidence", "probabilities"}


def test_a_folder_with_masks_in_it_is_left_alone(tmp_path: Path) -> None:
    save_drawn(tmp_path / "a.png", seed=5)
    (tmp_path / "seen/masks").mkdir(parents=True)
    done = ayni("diagnose", outlining_bundle(), "a.png", "--out", "seen", cwd=tmp_path)
    assert done.returncode == 2
    assert "already holds" in done.stderr
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["masks"]
    done = ayni("diagnose", outlining_bundle(), "a.png", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "bundle-report/report.json").read_bytes())


def test_with_a_changed_bundle_nothing_is_done(tmp_path: Path) -> None:
    save_drawn(tmp_path / "a.png", seed=5)
    shutil.copytree(outlining_bundle(), tmp_path / "bundle")
    (tmp_path / "bundle/docs/model_card.md").write_text("Safe for everything.")
    done = ayni("diagnose", "bundle", "a.png", "--out", "seen", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize("side", [128, 256])
def test_outlining_holds_little_memory_and_never_torch(tmp_path: Path, side: int) -> None:
    """With the small network that is the default, and an image as from a real detector."""
    image, network = ImageSettings(height=side, width=side, resize=True), UNetSettings(channels=(16, 32, 64, 128))
    task = msgspec.structs.replace(outlining_model().task, classes=("lung",), image=image)
    torch.manual_seed(0)
    model = outlining_model(task=task, network=network)
    folder = write_model(tmp_path / "model", model, weights_of(build_network(network, image, 1)))
    export_model(folder, tmp_path / "bundle", signing_key=signing_key())
    x_rays = xrays()["test_images"]
    detector = np.kron(x_rays[8].astype(np.uint16) * 16, np.ones((90, 100), np.uint16))
    np.save(tmp_path / "detector.npy", detector)  # 2520 x 2800 pixels of 16 bits, as from a real detector
    for number in range(3):
        Image.fromarray(x_rays[number]).resize((300, 400)).save(tmp_path / f"{number}.png")
    done = ayni("diagnose", "bundle", "0.png", "1.png", "2.png", "detector.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    peak_kb, torch_loaded, monai_loaded = re.findall(r"HELD (\d+) (\w+) (\w+)", done.stderr)[0]
    assert (torch_loaded, monai_loaded) == ("False", "False")
    assert int(peak_kb) < MAX_KB
