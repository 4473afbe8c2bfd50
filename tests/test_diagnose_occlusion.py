"""The heat map: a model that looks at one pixel has its peak there, weak evidence stays pale, and numbers by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ayni_export.bundle import Bundle, read_bundle
from ayni_export.diagnose import Diagnosis, diagnose
from ayni_export.heat_map import heat
from ayni_export.occlusion import occlusion, patches_of
from trained_home import exported_bundle, save_xray, xrays

ROW, COLUMN = 13, 16


def one_pixel_model(weight: float) -> bytes:
    """Its logits are 0 and `weight` times the pixel at ROW, COLUMN."""
    constants = {
        "starts": np.array([ROW, COLUMN], np.int64),
        "ends": np.array([ROW + 1, COLUMN + 1], np.int64),
        "axes": np.array([2, 3], np.int64),
        "weights": np.array([[0, weight]], np.float32),
        "temperature": np.array(1.25, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["floats", "starts", "ends", "axes"], ["place"]),
        helper.make_node("Flatten", ["place"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Div", ["logits", "temperature"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["probabilities"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["images", 1, 28, 28])
    answers = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["images", 2]) for name in ("logits", "probabilities")
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "one_pixel", [pixels], answers, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def diagnosed(bundle: Path | Bundle, path: Path) -> Diagnosis:
    (answer,) = diagnose(bundle, [path])
    assert isinstance(answer, Diagnosis), answer
    return answer


def bright_at_one_pixel(folder: Path, weight: float) -> Diagnosis:
    pixels = np.zeros((28, 28), np.uint8)  # their mean is 250 / 784: a patch hides the pixel with 0
    pixels[ROW, COLUMN] = 250
    np.save(folder / "bright.npy", pixels)
    signed = read_bundle(exported_bundle())
    bundle = replace(signed, files={**signed.files, signed.info.models[0].path: one_pixel_model(weight)})
    return diagnosed(bundle, folder / "bright.npy")


def test_the_peak_lies_where_the_model_looks_and_nowhere_else(tmp_path: Path) -> None:
    answer = bright_at_one_pixel(tmp_path, weight=0.05)
    # The log-odds are 0.05 * 250 / 1.25 = 10, and 0 when the pixel is hidden: an even chance.
    assert answer.finding == "pneumonia"
    assert answer.least_confidence == pytest.approx(0.5)
    # Patches of 7 pixels start at 0, 3, ... 21. Those from rows 9 and 12 and from columns 12 and 15 hide the pixel.
    falls_hw = answer.falls_hw
    np.testing.assert_allclose(falls_hw[13:15, 16:18], 10, rtol=1e-6)  # under no other patch
    assert falls_hw[12, 16] == pytest.approx(10 * 5 / 6)  # row 12 is under three: at their ends 1, 1; in the middle 4
    assert falls_hw[12, 15] == pytest.approx(10 * 5 / 6 * 5 / 6)
    assert (falls_hw >= 10 * (1 - 1e-6)).sum() == 4
    falls_hw[9:19, 12:22] = 0
    assert (falls_hw == 0).all()


def test_weak_evidence_is_not_blown_up(tmp_path: Path) -> None:
    weak = bright_at_one_pixel(tmp_path, weight=0.0005)  # the log-odds are 0.1 at most
    assert heat(weak.falls_hw).max() == pytest.approx(0.1 / math.log(2))
    none = bright_at_one_pixel(tmp_path, weight=0.0)
    assert not heat(none.falls_hw).any()
    assert none.least_confidence == none.confidence == 0.5


def test_strong_evidence_is_shown_relative_to_the_strongest_place() -> None:
    assert heat(np.array([[4.0, 1.0, 0.0]], np.float32)).tolist() == [[1.0, 0.25, 0.0]]


def test_on_a_trained_network_the_least_confidence_is_that_of_the_worst_patch(tmp_path: Path) -> None:
    answer = diagnosed(exported_bundle(), save_xray(tmp_path / "chest.png", 0))
    pixels = xrays()["test_images"][0]
    copies = []
    for top in range(0, 22, 3):
        for left in range(0, 22, 3):
            copy = pixels.copy()
            copy[top : top + 7, left : left + 7] = round(pixels.mean())
            copies.append(copy)
    session = onnxruntime.InferenceSession(exported_bundle() / "models/model.onnx", providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"pixels": np.stack(copies)[:, None]})
    assert answer.least_confidence == pytest.approx(probabilities[:, answer.predicted].min(), abs=1e-5)
    assert answer.least_confidence < answer.confidence
    assert answer.falls_hw.shape == (28, 28)
    assert answer.falls_hw.min() >= 0
    # an average over patches falls no further than the worst of them
    worst = math.log(answer.confidence / (1 - answer.confidence)) - math.log(
        answer.least_confidence / (1 - answer.least_confidence)
    )
    assert 0 < answer.falls_hw.max() <= worst + 1e-3


@pytest.mark.parametrize(("height", "width"), [(28, 28), (40, 48), (512, 300), (9, 40)])
def test_every_pixel_is_hidden_by_64_patches_at_most_a_quarter_wide(height: int, width: int) -> None:
    hidden = np.zeros((height, width), bool)
    for rows, columns in patches_of(height, width):
        assert (rows.stop - rows.start, columns.stop - columns.start) == (round(height / 4), round(width / 4))
        hidden[rows, columns] = True
    assert hidden.all()
    assert len(patches_of(height, width)) <= 64


@pytest.mark.parametrize(("side", "largest"), [(28, 16), (128, 4), (512, 1)])
def test_the_model_is_asked_about_few_images_at_once_and_fewer_if_they_are_large(side: int, largest: int) -> None:
    sizes = []

    def bright(pixels_BHWK: Any) -> Any:
        sizes.append(len(pixels_BHWK))
        means_B = pixels_BHWK.mean(axis=(1, 2, 3), dtype=np.float32)
        return np.stack([means_B, -means_B], axis=1)

    occlusion(bright, np.full((side, side, 1), 9, np.uint8), 0, temperature=1.0)
    assert sizes[0] == 1
    assert max(sizes) == largest
    assert sum(sizes) == 65
