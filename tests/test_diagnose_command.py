"""`ayni export` and `ayni diagnose` as a person runs them: real processes, exit codes, the report on disk."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ayni.keys import fingerprint
from ayni.trained_model import MODEL_FILE, Scores
from ayni_export.bundle import read_bundle
from trained_home import COORDINATOR, exported_bundle, save_xray, trained_home, trained_model, xrays

# The real command line; at the end it says what the process held.
COMMAND = """
import atexit, sys
def say():
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("HELD", peak.split()[1], "torch" in sys.modules, "monai" in sys.modules, file=sys.stderr)
atexit.register(say)
from ayni.cli import main
main()
"""
NASTY = "<img src=x onerror=alert(1)>&.png"


def ayni(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


class _Page(html.parser.HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_holds_the_good_and_the_bad_and_the_exit_code_says_so(tmp_path: Path) -> None:
    save_xray(tmp_path / "chest.png", 0)
    (tmp_path / NASTY).write_text("hello")
    done = ayni("diagnose", exported_bundle(), "chest.png", NASTY, "--out", "seen", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "no image of a known kind" in re.sub(r"\s+", " ", done.stdout)
    report = json.loads((tmp_path / "seen/report.json").read_bytes())
    good, bad = report["images"]
    assert (good["file"], bad["file"]) == ("chest.png", NASTY)
    assert set(good["probabilities"]) == {"normal", "pneumonia"}
    assert good["confidence"] == max(good["probabilities"].values())
    assert "no image" in bad["error"]
    page = _Page((tmp_path / "seen/report.html").read_text())
    for fact in (
        "chest.png",
        NASTY,  # as text, and so not as an element
        good["sha256"],
        good["finding"],
        good["confidence_words"],
        "Not for primary diagnosis.",
        report["model"]["name"],
        report["model"]["version"],
        read_bundle(exported_bundle()).signer.fingerprint,
        "north-clinic",
        report["created"],
    ):
        assert fact in page.text
    assert [str(attrs["src"])[:11] for tag, attrs in page.elements if tag == "img"] == ["data:image/", "data:image/"]


def test_the_report_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    save_xray(tmp_path / "chest.png", 1)
    assert ayni("diagnose", exported_bundle(), "chest.png", "--out", "seen", cwd=tmp_path).returncode == 0
    text = (tmp_path / "seen/report.html").read_text()
    page = _Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_diagnosis_holds_little_memory_and_never_torch(tmp_path: Path) -> None:
    paths = [save_xray(tmp_path / f"{i}.png", i) for i in range(8)]
    detector = np.kron(xrays()["test_images"][8].astype(np.uint16) * 16, np.ones((90, 100), np.uint16))
    np.save(tmp_path / "detector.npy", detector)  # 2520 x 2800 pixels of 16 bits, as from a real detector
    done = ayni("diagnose", exported_bundle(), *paths, tmp_path / "detector.npy", "--resize", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    peak_kb, torch_loaded, monai_loaded = re.findall(r"HELD (\d+) (\w+) (\w+)", done.stderr)[0]
    assert int(peak_kb) < 150 * 1024
    assert (torch_loaded, monai_loaded) == ("False", "False")


def test_json_on_stdout_is_the_report_and_nothing_else(tmp_path: Path) -> None:
    save_xray(tmp_path / "chest.png", 2)
    done = ayni("diagnose", exported_bundle(), "chest.png", "missing.png", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout) == json.loads((tmp_path / "bundle-report/report.json").read_bytes())


def test_a_report_is_never_overwritten(tmp_path: Path) -> None:
    save_xray(tmp_path / "chest.png", 2)
    for _ in range(2):
        assert ayni("diagnose", exported_bundle(), "chest.png", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.glob("*report*")) == ["bundle-report", "bundle-report-2"]
    (tmp_path / "bundle-report-2/report.html").unlink()
    for name in ("bundle-report", "bundle-report-2"):  # the second holds a report.json alone
        done = ayni("diagnose", exported_bundle(), "chest.png", "--out", name, cwd=tmp_path)
        assert done.returncode == 2
        assert "already holds" in done.stderr


def test_no_report_goes_into_a_bundle(tmp_path: Path) -> None:
    save_xray(tmp_path / "chest.png", 0)
    shutil.copytree(exported_bundle(), tmp_path / "bundle")
    done = ayni("diagnose", "bundle", "chest.png", "--out", "bundle/docs/../report", cwd=tmp_path)
    assert done.returncode == 2
    assert "inside the bundle" in done.stderr
    read_bundle(tmp_path / "bundle")  # as it was signed


@pytest.mark.parametrize("fault", ["changed", "other signer", "missing"])
def test_with_a_bad_bundle_nothing_is_done(tmp_path: Path, fault: str) -> None:
    save_xray(tmp_path / "chest.png", 0)
    words: list[object] = ["bundle", "chest.png", "--out", "seen"]
    if fault != "missing":
        shutil.copytree(exported_bundle(), tmp_path / "bundle")
    if fault == "changed":
        (tmp_path / "bundle/docs/model_card.md").write_text("Safe for everything.")
    if fault == "other signer":
        words += ["--signer", "0000-0000-0000-0000-0000"]
    done = ayni("diagnose", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ayni: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "seen").exists()


def test_a_file_name_cannot_steer_the_terminal_or_break_the_report(tmp_path: Path) -> None:
    name = b"red\x1b[31m\xff.png"  # an escape sequence, and bytes that are no UTF-8
    Path(bytes(tmp_path).decode()).joinpath(name.decode("utf-8", "surrogateescape")).write_text("hello")
    command = [sys.executable.encode(), b"-c", COMMAND.encode(), b"diagnose", bytes(exported_bundle()), name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert b"\x1b[31m" not in done.stdout
    assert json.loads((tmp_path / "bundle-report/report.json").read_bytes())["images"][0]["file"] == "red�[31m�.png"


def test_export_at_a_site_and_then_diagnose_by_the_coordinators_fingerprint(tmp_path: Path) -> None:
    made = ayni("export", trained_home(), "bundle", "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert said["coordinator"] == fingerprint(COORDINATOR.public_key().public_bytes_raw())
    save_xray(tmp_path / "chest.png", 0)
    assert ayni("diagnose", "bundle", "chest.png", "--signer", said["coordinator"], cwd=tmp_path).returncode == 0
    model = json.loads((tmp_path / "bundle-report/report.json").read_bytes())["model"]
    assert (model["signer"], model["coordinator"], model["compared"]) == (
        said["signer"],
        said["coordinator"],
        "coordinator",
    )


def test_export_warns_of_a_model_that_has_learnt_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained_home(), home)
    model = trained_model(validation=Scores(num_images=80, auc=0.5, balanced_accuracy=0.5))
    (home / "models/federated" / MODEL_FILE).write_bytes(msgspec.json.encode(model))
    made = ayni("export", home, "bundle", cwd=tmp_path)
    assert made.returncode == 0
    assert "Warning: AUC 0.500, balanced accuracy 0.500 on held-out images." in made.stderr
    assert "do not use it" in (tmp_path / "bundle/docs/model_card.md").read_text()
