"""`ayni diagnose` of volumes as a person runs it: label map, report, exit codes, memory, no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import nibabel
import numpy as np
import torch

from ayni.learning.networks import build_network, weights_of
from ayni.task import ImageSettings, UNetSettings
from ayni_export.export import export_model
from test_diagnose_command import ayni
from trained_home import write_model
from trained_volume import save_drawn, signing_key, volume_bundle, volume_model

MAX_KB = 300 * 1024


def test_a_volume_gets_a_label_map_beside_a_report_and_a_bad_file_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "south").mkdir()
    save_drawn(tmp_path / "a.nii.gz", 5, "LPS", (0.5, 1.0, 2.0))
    save_drawn(tmp_path / "south/a.nii.gz", 6)  # the same name in another folder
    (tmp_path / "b.nii").write_text("hello")
    done = ayni("diagnose", volume_bundle(), "a.nii.gz", "south/a.nii.gz", "b.nii", "--out", "seen", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "seen/report.json").read_bytes())
    first, second, bad = report["images"]
    assert "no volume of a known kind" in bad["error"]
    assert (first["shape"], first["voxel_mm"], first["windows"]) == ([40, 24, 16], [0.5, 1.0, 2.0], 1)
    names = ["masks/a-mask.nii.gz", "masks/a-mask-2.nii.gz"]
    for image, name, source in ((first, names[0], "a.nii.gz"), (second, names[1], "south/a.nii.gz")):
        mask = nibabel.load(tmp_path / "seen" / name)
        np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / source).affine)
        labels = np.asarray(mask.dataobj)
        for structure in image["structures"].values():
            assert structure["mask"] == name
            voxel_mm3 = np.prod(image["voxel_mm"])
            assert abs(structure["volume_mm3"] - structure["voxels"] * voxel_mm3) < 1e-3
            shared = image.get("shared_voxels", 0)
            assert 0 <= structure["voxels"] - np.count_nonzero(labels == structure["label"]) <= shared
            assert structure["voxels"] > 0
    said = re.sub(r"\s+", " ", done.stdout)
    assert f"ball {first['structures']['ball']['volume_mm3']:.0f} mm³, " in said
    assert "Sure: the share of the volume" in said
    page = (tmp_path / "seen/report.html").read_text()
    assert page.count("data:image/") == 2 * 6
    for words in (
        "2 volumes, 1 file could not be used",
        "Axial, ",
        'class="left">R<',
        "1 ball, 2 bar",
        "rules volume-1",
    ):
        assert words in page, words
    assert not re.search(r"https?:|url\(|@import", page)
    assert "pixel" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_a_volume_of_the_usual_size_takes_little_memory_and_never_torch(tmp_path: Path) -> None:
    """48 x 64 x 48 voxels and the small network that is the default: the room of a hippocampus."""
    image, network = ImageSettings(depth=48, height=64, width=48), UNetSettings(channels=(16, 32, 64, 128))
    task = msgspec.structs.replace(volume_model().task, image=image)
    torch.manual_seed(0)
    model = volume_model(task=task, network=network)
    folder = write_model(tmp_path / "model", model, weights_of(build_network(network, image, 2)))
    export_model(folder, tmp_path / "bundle", signing_key=signing_key())
    random = np.random.default_rng(0)
    for name, shape in (("small", (35, 52, 34)), ("larger", (50, 70, 40))):
        values = random.normal(500, 100, shape).astype(np.float32)
        nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / f"{name}.nii.gz")
    done = ayni("diagnose", "bundle", "small.nii.gz", "larger.nii.gz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    peak_kb, torch_loaded, monai_loaded = re.findall(r"HELD (\d+) (\w+) (\w+)", done.stderr)[0]
    assert (torch_loaded, monai_loaded) == ("False", "False")
    assert int(peak_kb) < MAX_KB
    _, larger = json.loads((tmp_path / "bundle-report/report.json").read_bytes())["images"]
    assert larger["windows"] == 4
    assert "larger than those that the model was trained on" in (tmp_path / "bundle-report/report.html").read_text()


def test_the_help_says_what_a_bundle_for_volumes_takes(tmp_path: Path) -> None:
    shown = re.sub(r"\W+", " ", ayni("diagnose", "--help", cwd=tmp_path).stdout)
    assert "folders with the slices of one DICOM series" in shown
