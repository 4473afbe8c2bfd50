"""Outlines of models in ONNX files: real files, run by ONNX Runtime; how outlines are kept, and what is refused."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from ayni.errors import UserError
from ayni.task import GuidanceSettings, ImageSettings, Kind, Task, TrainingSettings
from ayni.task_file import read_task
from ayni.tensors.image_set import ImageSet, ImageSetInfo
from ayni.tensors.targets import Targets, decode_targets
from ayni_coordinator.database import transaction
from ayni_coordinator.guidance import guide, models
from ayni_coordinator.guidance.answers import AnswerStore
from ayni_coordinator.guidance.ask import ask_once
from ayni_coordinator.guidance.outlines import clipped
from ayni_coordinator.guidance.source import Source, known_sources, open_source
from ayni_coordinator.guiding import add_guidance
from ayni_coordinator.home import create_home, find_artefact

GUIDE = Path(__file__).parent.parent / "docs" / "guidance.md"
SHA = "ab" * 32
Pixels = npt.NDArray[np.uint8]


def write_bright(
    path: Path, *, end: str = "logits", shape: list[int | str] | None = None, factor: int = 1, middle: float = 128
) -> Path:
    """A model of two structures, bright and dark: logits v and -v where a grey pixel (0..255) is `middle` + v.

    `end`: "logits", their sigmoid ("probabilities"), "classes" (the means), or "infinity" (1 / v). Its maps are
    `factor` times smaller than the image.
    """
    shape = shape or ["n", 1, "h", "w"]
    last = {
        "logits": [helper.make_node("Identity", ["maps"], ["out"])],
        "probabilities": [helper.make_node("Sigmoid", ["maps"], ["out"])],
        "classes": [helper.make_node("ReduceMean", ["maps", "axes"], ["out"], keepdims=0)],
        "infinity": [helper.make_node("Reciprocal", ["maps"], ["out"])],
    }[end]
    sides = [factor, factor]
    steps = [
        helper.make_node("Sub", ["image", "middle"], ["bright"]),
        helper.make_node("Neg", ["bright"], ["dark"]),
        helper.make_node("Concat", ["bright", "dark"], ["both"], axis=1),
        helper.make_node("AveragePool", ["both"], ["maps"], kernel_shape=sides, strides=sides),
        *last,
    ]
    constants = [
        helper.make_tensor("middle", TensorProto.FLOAT, [1], [middle]),
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    axes = [shape[0], "structures"] if end == "classes" else [shape[0], "structures", "y", "x"]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, axes)
    graph = helper.make_graph(steps, "bright", [image], [out], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def open_model(path: Path, kind: Kind = "segmentation", **changes: object) -> Source:
    told = {"pixel_scale": "0..255", "height": 32, "width": 32, **changes}
    settings = GuidanceSettings(source="onnx", model=str(path), **told)  # type: ignore[arg-type]
    return open_source(settings, kind, path.parent)


def halves(height: int, width: int, left: int, right: int) -> Pixels:
    """One grey image [1, H, W, 1] of two halves."""
    pixels = np.full((1, height, width, 1), right, np.uint8)
    pixels[:, :, : width // 2] = left
    return pixels


def image_set(pixels_NHWC: Pixels) -> ImageSet:
    return ImageSet(ImageSetInfo(name="public", licence="CC0-1.0", shape=pixels_NHWC.shape), pixels_NHWC)


# What a model says, and what is kept of it


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(("side", "kept"), [(128, 64), (64, 64), (66, 33), (67, 67)])
def test_outlines_are_kept_at_half_size_or_whole_where_half_would_lose_something(
    tmp_path: Path, side: int, kept: int, factor: int
) -> None:
    model = open_model(write_bright(tmp_path / "m.onnx", factor=factor))
    logits = model.answer(halves(side, side, 131, 118))
    assert logits.shape == (1, 2, kept, kept)
    assert logits.dtype == np.float32
    assert model.classes == ("structure-0000", "structure-0001")
    left, right = logits[0, :, :, : kept // 4], logits[0, :, :, -kept // 4 :]
    assert np.allclose(left, np.array([3, -3])[:, None, None])  # 131 - 128
    assert np.allclose(right, np.array([-8, 8])[:, None, None])  # 118 - 128 is -10: kept between -8 and 8


def test_probabilities_become_logits_by_the_stated_rule(tmp_path: Path) -> None:
    values = np.array([0.75, 0.5, 0.0, 1.0], np.float32)
    # log(.75 / .25) = log 3; what is certain is kept at 8
    assert clipped(values, "probabilities").tolist() == pytest.approx([math.log(3), 0, -8, 8], abs=1e-3)
    model = open_model(write_bright(tmp_path / "m.onnx", end="probabilities"), output="probabilities")
    assert np.allclose(model.answer(halves(32, 32, 131, 131))[0, :, 0, 0], [3, -3], atol=1e-4)


def test_a_model_of_fixed_batch_and_size_outlines_any_number_of_images(tmp_path: Path) -> None:
    model = open_model(write_bright(tmp_path / "m.onnx", shape=[2, 1, 16, 16]))
    images = np.concatenate([halves(32, 48, 128 + value, 128) for value in (1, 2, 3)])
    assert model.answer(images)[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_the_version_says_by_which_rule_outlines_are_kept(tmp_path: Path) -> None:
    logits = open_model(write_bright(tmp_path / "m.onnx"), version="1")
    probabilities = open_model(write_bright(tmp_path / "p.onnx", end="probabilities"), output="probabilities")
    classes = open_model(write_bright(tmp_path / "c.onnx", end="classes"), "classification")
    assert logits.version.startswith("1+")
    assert logits.version.endswith(".32x32.0..255.logits.outlines-1")
    assert probabilities.version.endswith(".32x32.0..255.probabilities.outlines-1")
    assert classes.version.endswith(".32x32.0..255")  # as it ever was: what was answered is not asked again


def test_probabilities_of_classes_become_logits_of_a_softmax(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 2])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    steps = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["one", "mean"], ["rest"]),
        helper.make_node("Concat", ["mean", "rest"], ["out"], axis=1),
    ]
    graph = helper.make_graph(steps, "means", [image], [out], [axes, one])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    model = open_model(path, "classification", pixel_scale="0..1", output="probabilities")
    assert np.allclose(model.answer(halves(8, 8, 51, 51))[0], [math.log(0.2), math.log(0.8)], atol=1e-5)
    with pytest.raises(UserError, match="it gives probabilities"):
        open_model(path, "classification", pixel_scale="0..1")


# What is refused


@pytest.mark.parametrize(
    ("end", "kind", "changes", "words"),
    [
        ("classes", "segmentation", {}, r"It tells classes; the task is a segmentation.*structures, height, width"),
        ("logits", "classification", {}, r"It outlines structures; the task is a classification"),
        ("logits", "segmentation", {"classes": ("one", "two", "three")}, "names 3, and m.onnx answers with 2"),
        ("infinity", "segmentation", {}, "not finite"),  # of the noise that every model is shown first
        ("probabilities", "segmentation", {}, "it gives probabilities.*set guidance.output"),
        ("logits", "segmentation", {"output": "probabilities"}, r"no probabilities \(-128 to 128\)"),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_told_why(
    tmp_path: Path, end: str, kind: Kind, changes: dict[str, object], words: str
) -> None:
    path = write_bright(tmp_path / "m.onnx", end=end)
    with pytest.raises(UserError, match=words):
        open_model(path, kind, **changes)


def test_values_that_are_not_finite_are_refused_and_not_stored(tmp_path: Path) -> None:
    """The 8 x 8 pixels of noise do not hold the value 127, so that it shows only when a public image does."""
    model = open_model(write_bright(tmp_path / "m.onnx", end="infinity", middle=127), height=8, width=8)
    with pytest.raises(UserError, match="not finite"):
        ask(tmp_path, halves(8, 8, 127, 130), model)
    targets, num_asked = ask(tmp_path, halves(8, 8, 128, 129), model)
    assert targets.logits_NC[0, 0, 0].tolist() == [1] * 4 + [0.5] * 4
    assert num_asked == 2


def test_the_names_in_the_settings_are_those_of_the_targets(tmp_path: Path) -> None:
    model = open_model(write_bright(tmp_path / "m.onnx"), classes=("bright", "dark"))
    targets, num_asked = ask(tmp_path, halves(32, 32, 131, 125), model)
    assert (targets.info.classes, targets.info.shape, num_asked) == (("bright", "dark"), (2, 32, 32), 1)
    assert ask(tmp_path, halves(32, 32, 131, 125), model)[1] == 1


def ask(home: Path, pixels_NHWC: Pixels, source: Source, kind: Kind = "segmentation") -> tuple[Targets, int]:
    with AnswerStore(home / "answers.sqlite") as answers:
        images, settings = image_set(pixels_NHWC), GuidanceSettings()
        return ask_once(images, SHA, source, settings, answers, lambda *_: None, kind=kind), answers.num_asked()


def test_a_model_that_changed_its_kind_and_not_its_version_is_refused(tmp_path: Path) -> None:
    class Changed:
        name, version, licence, classes, batch_size = "changed", "1", "CC0-1.0", ("a", "b"), 4

        def answer(self, pixels_BHWC: Pixels) -> npt.NDArray[np.float32]:
            return np.zeros((len(pixels_BHWC), 2), np.float32)

    pixels = np.concatenate([halves(8, 8, 0, 1), halves(8, 8, 2, 3)])
    ask(tmp_path, pixels[:1], Changed(), "classification")
    for some in (pixels[:1], pixels):  # all of them known, and one of them
        with pytest.raises(UserError, match="A changed model needs a new version"):
            ask(tmp_path, some, Changed())


@pytest.mark.parametrize(
    ("num_images", "side", "num_structures"),
    [
        (1, 512, 257),  # 257 maps of 256 x 256 in 4 bytes: 64 MiB and one map
        (9, 512, 256),  # 9 x 256 x 512 x 512 x 4 bytes: 2.25 GiB at a clinic
    ],
)
def test_outlines_that_no_clinic_could_hold_are_refused_before_the_first_question(
    tmp_path: Path, num_images: int, side: int, num_structures: int
) -> None:
    class Many:
        name, version, licence, batch_size = "many", "1", "CC0-1.0", 4
        classes = tuple(map(str, range(num_structures)))

        def answer(self, pixels_BHWC: Pixels) -> npt.NDArray[np.float32]:
            raise AssertionError("asked")

    pixels = np.zeros((num_images, side, side, 1), np.uint8)
    with pytest.raises(UserError, match=r"fewer or smaller public images"):
        ask(tmp_path, pixels, Many())


def task(kind: Kind, **guidance: object) -> Task:
    return Task(
        name="bright",
        title="Bright",
        kind=kind,
        classes=("a", "b"),
        image=ImageSettings(height=16, width=16),
        training=TrainingSettings(rounds=1),
        guidance=GuidanceSettings(**guidance),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("classification", "lite-medsam", "outlines structures; it is not for classification"),
        ("segmentation", "efficientnet-lite0", "tells classes; it is not for segmentation"),
        ("segmentation", "lite-medsan", "choose one of efficientnet-lite0, http, lite-medsam, onnx"),
    ],
)
def test_a_source_that_is_not_for_the_task_makes_no_federation(
    tmp_path: Path, kind: Kind, source: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        create_home(tmp_path / "centre", task(kind, source=source), endpoint="tcp://127.0.0.1:7700", bind="")
    assert not (tmp_path / "centre").exists()


# A model of one's own


MY_MODEL = """
import numpy as np

KINDS = ("segmentation",)


class Threshold:
    name, version, licence, classes, batch_size = "threshold", "1", "CC0-1.0", ("bright",), 4

    def answer(self, pixels_BHWC):
        return (pixels_BHWC.astype(np.float32) - 128).transpose(0, 3, 1, 2)


def open_model(settings, kind, home):
    return Threshold()
"""


def test_a_new_model_is_added_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file need not lie where it is looked for first: a package may have several folders."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "my_threshold.py").write_text(MY_MODEL)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    assert "my-threshold" in known_sources()
    mine, pixels = task("segmentation", source="my-threshold"), halves(16, 16, 130, 120)
    targets = decode_targets(guide(mine, image_set(pixels), SHA, tmp_path, lambda *_: None))
    assert (targets.info.model_name, targets.info.shape) == ("threshold", (1, 16, 16))
    assert np.abs(targets.logits_NC[0, 0, 0] - ([2] * 8 + [-8] * 8)).max() < 0.03  # half a step of 10 / 255
    create_home(tmp_path / "centre", mine, endpoint="tcp://127.0.0.1:7700", bind="").engine.dispose()


def test_the_model_in_the_guide_outlines(tmp_path: Path) -> None:
    """As a reader would: the guide's own script and task file."""
    text = GUIDE.read_text()
    (script,) = re.findall(r"```python\n(# outliner\.py.*?)```", text, re.DOTALL)
    (settings,) = re.findall(r'```toml\n(name = "bright".*?)```', text, re.DOTALL)
    (tmp_path / "bright.toml").write_text(settings)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    read = read_task(tmp_path / "bright.toml")
    home = create_home(tmp_path / "centre", read, endpoint="tcp://127.0.0.1:7700", bind="")
    assert "answered once on 20 public images" in add_guidance(home, lambda *_: None)
    with transaction(home.engine) as session:
        listed = find_artefact(session, "targets", "guidance")
        assert listed is not None
        targets = decode_targets(home.store.read(listed.sha256))
    home.engine.dispose()
    assert (targets.info.classes, targets.info.shape) == (("bright", "dark"), (2, 48, 48))
    # 16 * (220 / 255 - .5) and 16 * (30 / 255 - .5): the disc's middle and a corner, the second disc one row below
    assert targets.logits_NC[1, 0, 15, 24] == pytest.approx(5.804, abs=0.03)
    assert targets.logits_NC[1, :, 0, 0].tolist() == pytest.approx([-6.118, 6.118], abs=0.03)
