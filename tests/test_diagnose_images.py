"""Diagnosis as a function: answers, errors per file, the heat map and the words, with numbers by hand."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from ayni.errors import MissingExtraError, UserError
from ayni_export.bundle import read_bundle
from ayni_export.diagnose import Answer, Diagnosis, FileError, confidence_sentence, diagnose, in_words
from ayni_export.heat_map import COLOURS, enlarged, legend_colours, overlay
from ayni_export.runtime import Session, check_packages
from ayni_export.signature import BundleError, sign_files
from trained_home import exported_bundle, save_xray, xrays


def one(answer: Answer) -> Diagnosis:
    assert isinstance(answer, Diagnosis), answer
    return answer


def test_most_real_xrays_are_answered_rightly(tmp_path: Path) -> None:
    paths = [save_xray(tmp_path / f"{i}.png", i) for i in range(40)]
    answers = [one(answer) for answer in diagnose(exported_bundle(), paths)]
    assert [answer.path for answer in answers] == paths
    right = [answer.predicted == label for answer, label in zip(answers, xrays()["test_labels"][:40, 0], strict=True)]
    assert sum(right) >= 28
    for answer in answers:
        assert answer.probabilities_C.sum() == pytest.approx(1, abs=1e-5)
        assert answer.confidence == answer.probabilities_C.max()
        assert answer.finding == ("normal", "pneumonia")[answer.predicted]
        assert answer.sha256 == hashlib.sha256(answer.path.read_bytes()).hexdigest()


def test_the_same_pixels_get_the_same_answer_whatever_the_file(tmp_path: Path) -> None:
    png = save_xray(tmp_path / "a.png", 3)
    pixels = xrays()["test_images"][3]
    np.save(tmp_path / "b.npy", pixels)
    Image.fromarray(np.stack([pixels] * 3, axis=2)).save(tmp_path / "c.png")  # grey that was saved as colour
    answers = [one(answer) for answer in diagnose(exported_bundle(), [png, tmp_path / "b.npy", tmp_path / "c.png"])]
    assert answers[0].logits_C.tolist() == answers[1].logits_C.tolist() == answers[2].logits_C.tolist()


def test_each_bad_file_has_its_own_error_and_the_others_are_done(tmp_path: Path) -> None:
    good = save_xray(tmp_path / "good.png", 0)
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    Image.new("RGB", (28, 28), (200, 30, 30)).save(tmp_path / "colour.png")
    Image.new("L", (100, 50)).save(tmp_path / "large.png")
    reasons = {
        "empty.png": "is empty",
        "cut.png": "damaged",
        "colour.png": "in colour and the model takes grey",
        "large.png": "100 x 50 pixels and the model takes 28 x 28",
        "missing.png": "there is no file",
    }
    answers = diagnose(exported_bundle(), [good, *(tmp_path / name for name in reasons), good])
    assert [type(answer) for answer in answers] == [Diagnosis, *([FileError] * 5), Diagnosis]
    for answer, (name, reason) in zip(answers[1:6], reasons.items(), strict=True):
        assert isinstance(answer, FileError)
        assert name in answer.reason
        assert reason in answer.reason


def test_a_larger_image_is_scaled_if_asked_and_shown_as_the_model_frames_it(tmp_path: Path) -> None:
    Image.new("L", (280, 140), 90).save(tmp_path / "wide.png")
    answer = one(diagnose(exported_bundle(), [tmp_path / "wide.png"], resize=True)[0])
    assert (answer.width, answer.height) == (280, 140)
    assert answer.shown_HWK.shape == (280, 280, 1)  # ten times what the model takes: all the detail there is
    assert answer.shown_HWK[:, 0, 0].tolist() == [0] * 70 + [90] * 140 + [0] * 70


def resigned(bundle: Path, name: str, data: bytes) -> Path:
    """The bundle with one file changed, rightly signed by somebody."""
    (bundle / name).write_bytes(data)
    paths = [path for path in bundle.rglob("*") if path.is_file() and path.name != "signature.json"]
    files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in paths}
    (bundle / "signature.json").write_bytes(sign_files(files, Ed25519PrivateKey.generate(), None))
    return bundle


def test_a_signed_model_that_does_not_fit_its_metadata_is_a_bundle_error(tmp_path: Path) -> None:
    no_model = Path(shutil.copytree(exported_bundle(), tmp_path / "no-model"))
    with pytest.raises(BundleError, match="cannot be loaded by onnxruntime"):
        Session(read_bundle(resigned(no_model, "models/model.onnx", b"not a model")))
    metadata = (exported_bundle() / "configs/metadata.json").read_text()
    more_classes = Path(shutil.copytree(exported_bundle(), tmp_path / "more-classes"))
    wrong = metadata.replace('"classes": [', '"classes": ["third", ').encode()
    with pytest.raises(BundleError, match="not the one that its metadata describe"):
        Session(read_bundle(resigned(more_classes, "configs/metadata.json", wrong)))
    larger = Path(shutil.copytree(exported_bundle(), tmp_path / "larger"))
    wrong = metadata.replace('"height": 28', '"height": 32').encode()
    with pytest.raises(BundleError, match="cannot be loaded"):
        Session(read_bundle(resigned(larger, "configs/metadata.json", wrong)))


def test_two_onnxruntimes_that_break_each_other_are_reported_with_the_remedy() -> None:
    check_packages({"onnxruntime"})
    check_packages({"onnxruntime-gpu"})
    with pytest.raises(UserError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        check_packages({"onnxruntime", "onnxruntime-gpu"})
    assert "pip install 'ayni[deploy]'" in str(MissingExtraError("diagnosis", "deploy"))


def test_the_overlay_leaves_the_image_alone_where_nothing_speaks_for_the_finding() -> None:
    grey = np.full((40, 40, 1), 77, np.uint8)
    assert (overlay(grey, np.zeros((4, 4), np.float32)) == 77).all()
    hot = overlay(grey, np.ones((4, 4), np.float32))
    expected = np.rint(77 * 0.38 + COLOURS[-1] * 0.62)  # 62 % of the last colour
    assert hot[20, 20].tolist() == expected.tolist()


def test_the_heat_lies_where_the_map_has_it() -> None:
    heat_hw = np.zeros((4, 4), np.float32)
    heat_hw[0, 3] = 1  # top right
    changed = overlay(np.full((40, 40, 1), 77, np.uint8), heat_hw).astype(int).sum(axis=2) != 3 * 77
    assert changed[:8, 32:].all()
    assert not changed[20:, :].any()
    assert not changed[:, :20].any()


def test_the_legend_rises_in_lightness() -> None:
    lightness = COLOURS @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    assert (np.diff(lightness) > 15).all()
    assert legend_colours()[0] == "rgb(128 128 128)"  # no heat: the image as it is


def test_a_small_image_is_shown_larger_in_whole_steps() -> None:
    small = np.arange(28 * 28, dtype=np.uint32).astype(np.uint8).reshape(28, 28, 1)
    assert enlarged(small).shape == (336, 336, 1)  # 12 times
    assert enlarged(small)[::12, ::12].tolist() == small.tolist()
    assert enlarged(np.zeros((400, 500, 3), np.uint8)).shape == (400, 500, 3)


def test_confidence_is_said_in_words_and_with_the_images_behind_it() -> None:
    assert [in_words(p) for p in (0.95, 0.949, 0.8, 0.6, 0.5)] == [
        "high confidence",
        "moderate confidence",
        "moderate confidence",
        "low confidence",
        "undecided",
    ]
    sentence = confidence_sentence(read_bundle(exported_bundle()).info, 0.934)
    assert "about 93 should be right" in sentence
    assert "only 80 images" in sentence
