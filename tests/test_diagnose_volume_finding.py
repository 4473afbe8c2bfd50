"""Findings in volumes: a model that looks at one voxel has its heat there, and numbers by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import msgspec
import nibabel
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ayni.task import ImageSettings
from ayni_export.bundle import Bundle, read_bundle
from ayni_export.diagnose import FileError, diagnose
from ayni_export.occlusion import patches_of
from ayni_export.report import entry, make_report, report_html
from ayni_export.three_planes import hottest
from ayni_export.volume_answer import VolumeFinding
from trained_volume import volume_bundle

SIZE = (12, 16, 20)
PLACE = (9, 3, 14)  # of the padded volume
CLASSES = ("clear", "spot <1>")


def one_voxel_model(size: tuple[int, ...], weight: float) -> bytes:
    """Its logits are 0 and `weight` times the voxel at PLACE."""
    constants: dict[str, Any] = {
        "starts": np.array(PLACE, np.int64),
        "ends": np.array(PLACE, np.int64) + 1,
        "axes": np.array([2, 3, 4], np.int64),
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
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["volumes", 1, *size])
    answers = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["volumes", 2]) for name in ("logits", "probabilities")
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "one_voxel", [pixels], answers, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def one_voxel_bundle(weight: float, size: tuple[int, ...] = SIZE) -> Bundle:
    bundle = read_bundle(volume_bundle())
    depth, height, width = size
    info = msgspec.structs.replace(
        bundle.info,
        task_kind="classification",
        classes=CLASSES,
        image=ImageSettings(depth=depth, height=height, width=width),
        temperature=1.25,
        num_holdout_per_class={"clear": 80, "spot <1>": 40},
    )
    return dataclasses.replace(bundle, info=info, files={info.models[0].path: one_voxel_model(size, weight)})


def save_spot(path: Path, shape_DHW: tuple[int, ...] = (12, 16, 18), value: int = 250) -> Path:
    """RAS, with one bright voxel that lies at PLACE once the volume is padded by one column on either side."""
    voxels = np.zeros(shape_DHW, np.uint8)
    voxels[9, 3, 13] = value
    nibabel.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([1.0, 2.0, 3.0, 1.0])).to_filename(path)
    return path


def found(bundle: Bundle, path: Path) -> VolumeFinding:
    (answer,) = diagnose(bundle, [path])
    assert isinstance(answer, VolumeFinding), answer
    return answer


def test_the_finding_its_confidence_and_the_heat_are_as_worked_out_by_hand(tmp_path: Path) -> None:
    answer = found(one_voxel_bundle(0.02), save_spot(tmp_path / "v.nii.gz"))
    assert answer.finding == "spot <1>"
    assert answer.logits_C.tolist() == pytest.approx([0, 5.0])  # .02 times 250
    assert answer.confidence == pytest.approx(1 / (1 + math.exp(-5 / 1.25)), abs=1e-6)
    assert answer.least_confidence == pytest.approx(0.5, abs=1e-6)  # hidden by the mean, 0: both logits are 0
    axial, coronal, sagittal = answer.planes
    for plane, rows, columns in ((axial, 16, 18), (coronal, 12, 18), (sagittal, 12, 16)):
        assert plane.heat_hw is not None
        assert plane.heat_hw.shape == (rows, columns)
        assert plane.heat_hw.max() == 1.0
    for plane, place in ((axial, 9), (coronal, 3), (sagittal, 13)):
        assert abs(plane.number - 1 - place) <= 2  # a patch is five to eight voxels wide


def test_a_volume_without_heat_and_a_large_one_are_cut_in_their_middles(tmp_path: Path) -> None:
    answer = found(one_voxel_bundle(0.0), save_spot(tmp_path / "v.nii.gz"))
    assert [plane.number for plane in answer.planes] == [7, 9, 10]
    assert hottest(np.zeros((2, 2, 2), np.float32), (12, 16, 18)) == (6, 8, 9)
    large = found(one_voxel_bundle(0.02, (40, 32, 32)), save_spot(tmp_path / "w.nii.gz", (40, 32, 30), 100))
    assert large.least_confidence is None
    assert [plane.heat_hw for plane in large.planes] == [None] * 3
    assert [plane.number for plane in large.planes] == [21, 17, 16]


def test_patches_hide_every_voxel_and_are_sixty_four() -> None:
    hidden = np.zeros(SIZE, np.bool_)
    patches = patches_of(*SIZE)
    for patch in patches:
        hidden[patch] = True
    assert hidden.all()
    assert len(patches) == 64


def test_a_volume_that_is_too_large_is_said_with_what_it_would_need(tmp_path: Path) -> None:
    (answer,) = diagnose(one_voxel_bundle(0.02), [save_spot(tmp_path / "v.nii.gz", (12, 16, 21))])
    assert isinstance(answer, FileError)
    assert "12 x 16 x 21" in answer.reason
    assert "12 x 16 x 20" in answer.reason


def test_the_page_says_how_many_volumes_the_confidence_rests_on_and_escapes_names(tmp_path: Path) -> None:
    bundle = one_voxel_bundle(0.02)
    made = entry(bundle, found(bundle, save_spot(tmp_path / "v.nii.gz")), 1)
    report = make_report(bundle, [made.reported], created="2025-11-22T10:00:00+00:00", device="cpu")
    page = "".join(report_html(bundle, report, [made.section]))
    for words in (
        "Of 100 volumes answered with this confidence, about 98 should be right, as calibrated on 120 held-out volumes",
        "spot &lt;1&gt;",
        "from 98 % to 50 %",
        "a grey block, two fifths of each side",
        "18 x 16 x 12 voxels of 1 x 2 x 3 mm",
        "1 volume ·",
    ):
        assert words in page, words
    assert "<1>" not in page
    assert page.count("data:image/") == 6
    assert made.reported.shape == (18, 16, 12)
    assert made.reported.voxel_mm == (1.0, 2.0, 3.0)
