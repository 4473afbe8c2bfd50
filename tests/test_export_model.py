"""Export: a really trained model, its ONNX graph run by ONNX Runtime, the folder that appears at once or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ayni.errors import IntegrityError, UserError
from ayni.keys import SiteKeys
from ayni.learning.networks import build_network, load_weights, weights_of
from ayni.task import ImageSettings, ResNetSettings
from ayni.tensors import safe
from ayni.trained_model import WEIGHTS_FILE, Scores, TrainedModel
from ayni_export import export_site
from ayni_export.bundle import read_bundle
from ayni_export.export import export_model
from ayni_export.graph import DiagnosisGraph, check_parity, to_onnx
from ayni_export.model_card import model_card
from ayni_export.monai_metadata import monai_metadata
from trained_home import (
    ROOT,
    exported_bundle,
    join,
    normalised,
    trained_home,
    trained_model,
    write_model,
    xrays,
)

FEDERATED = Path("models/federated")


def run_onnx(pixels_NHW: Any) -> tuple[Any, Any]:
    session = onnxruntime.InferenceSession(exported_bundle() / "models/model.onnx", providers=["CPUExecutionProvider"])
    answers = session.run(["logits", "probabilities"], {"pixels": pixels_NHW[:, None]})
    return answers[0], answers[1]


def read_weights() -> dict[str, Any]:
    return dict(safe.decode((trained_home() / FEDERATED / WEIGHTS_FILE).read_bytes()))


def test_the_graph_answers_as_the_trained_network_on_real_images() -> None:
    model = TrainedModel.read(trained_home() / FEDERATED)
    network = build_network(model.network, model.task.image, 2)
    load_weights(network, read_weights())
    images = xrays()["test_images"][:50]
    with torch.no_grad():
        expected_NC = network.eval()(normalised(images)).numpy()
    logits_NC, probabilities_NC = run_onnx(images)
    np.testing.assert_allclose(logits_NC, expected_NC, atol=1e-4)
    softened_NC = np.exp(expected_NC / 1.25)  # the model's temperature
    np.testing.assert_allclose(probabilities_NC, softened_NC / softened_NC.sum(axis=1, keepdims=True), atol=1e-4)
    right = logits_NC.argmax(axis=1) == xrays()["test_labels"][:50, 0]
    assert right.mean() > 0.7  # it has learned something: these are not the answers of a constant


def test_the_graph_tells_nothing_of_the_machine_where_it_was_made() -> None:
    data = (exported_bundle() / "models/model.onnx").read_bytes()
    for trace in (str(ROOT).encode(), str(Path.home()).encode(), b".py", b"stack_trace", b"class_hierarchy"):
        assert trace not in data
    proto = onnx.load_from_string(data)
    assert not any(initializer.external_data for initializer in proto.graph.initializer)


def test_parity_is_measured_and_written_down() -> None:
    info = read_bundle(exported_bundle()).info
    parity = info.models[0].parity
    assert parity.num_images == 16
    assert 0 < parity.logits <= parity.tolerance == 1e-4
    assert (parity.pytorch_version, parity.onnxruntime_version) == (str(torch.__version__), onnxruntime.__version__)


def test_a_graph_that_answers_differently_from_torch_is_refused() -> None:
    model = TrainedModel.read(trained_home() / FEDERATED)
    network = build_network(model.network, model.task.image, 2)
    weights = read_weights()
    load_weights(network, {**weights, "head.bias": weights["head.bias"] + np.float32(2e-4)})
    onnx_model = (exported_bundle() / "models/model.onnx").read_bytes()
    with pytest.raises(IntegrityError, match=r"differ from torch's by 0\.0002"):
        check_parity(DiagnosisGraph(network, model), onnx_model, model)


def test_the_metadata_are_those_of_a_monai_bundle_with_our_section() -> None:
    metadata = json.loads((exported_bundle() / "configs/metadata.json").read_bytes())
    required = "version changelog monai_version pytorch_version numpy_version task description authors copyright"
    assert set(required.split()) <= set(metadata)
    pixels = metadata["network_data_format"]["inputs"]["pixels"]
    assert (pixels["spatial_shape"], pixels["num_channels"], pixels["dtype"]) == ([28, 28], 1, "uint8")
    assert set(metadata["network_data_format"]["outputs"]) == {"logits", "probabilities"}
    ours = metadata["ayni"]
    assert (ours["classes"], ours["temperature"], ours["site"]) == (["normal", "pneumonia"], 1.25, "north-clinic")
    assert ours["weights_sha256"] == safe.digest(read_weights())
    assert ours["version"] == "2025.11.22-" + ours["weights_sha256"][:8]


def test_the_model_card_says_what_a_person_must_know() -> None:
    card = (exported_bundle() / "docs/model_card.md").read_text()
    for fact in (
        "| pneumonia | 669 | 60 |",
        "| **all** | 900 | 80 |",
        "On 80 held-out images",
        "ROC curve 0.970",
        "accuracy 0.900",
        "these figures are rough",
        "Not for primary diagnosis",
        "3 rounds of federated training at this site",
        "not a medical device",
    ):
        assert fact in card


def test_what_was_not_measured_is_not_given_as_a_figure() -> None:
    bundle = read_bundle(exported_bundle())
    info = msgspec.structs.replace(bundle.info, validation=Scores(num_images=0, auc=0.5, balanced_accuracy=0.0))
    assert "Not measured" in model_card(info)
    assert "ROC curve" not in model_card(info)
    assert monai_metadata(info, {"monai": "1", "pytorch": "1", "numpy": "1"})["eval_metrics"] == {}


def test_a_model_that_has_learnt_nothing_is_called_so() -> None:
    info = read_bundle(exported_bundle()).info
    for scores, learnt in (
        (Scores(num_images=200, auc=0.5), False),
        (Scores(num_images=200, auc=0.6), True),
        (Scores(num_images=200, dice=0.049), False),
        (Scores(num_images=200, dice=0.3), True),
    ):
        kind = "classification" if scores.dice is None else "segmentation"
        judged = msgspec.structs.replace(info, validation=scores, task_kind=kind)
        assert ("do not use it" in model_card(judged)) != learnt
    of_one_class = {"normal": 9, "pneumonia": 0}  # no AUC then: .5 says that nothing is known
    guess = msgspec.structs.replace(info, validation=Scores(num_images=9, auc=0.5), num_holdout_per_class=of_one_class)
    assert "do not use it" not in model_card(guess)


def test_a_colour_network_with_strides_and_pooling_exports_too(tmp_path: Path) -> None:
    image = ImageSettings(height=40, width=48, channels=3)
    network_settings = ResNetSettings(layers=(1, 1, 1, 1), planes=(8, 8, 8, 8), stem_stride=2, max_pool=True)
    classes = ("a", "b", "c")
    model = trained_model(
        network=network_settings,
        task=msgspec.structs.replace(trained_model().task, image=image, classes=classes),
        pixel_mean=(0.5, 0.4, 0.3),
        pixel_std=(0.2, 0.25, 0.3),
        kind="alone",
    )
    torch.manual_seed(1)
    folder = write_model(tmp_path / "model", model, weights_of(build_network(network_settings, image, 3)))
    info = export_model(folder, tmp_path / "bundle", signing_key=SiteKeys.load(trained_home()).signing)
    assert read_bundle(tmp_path / "bundle").info == info
    assert (info.classes, info.image, info.name) == (classes, image, "pneumonia-alone-north-clinic")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model"]  # nothing is left beside it
    again = export_model(folder, tmp_path / "bundle", signing_key=SiteKeys.load(trained_home()).signing)
    assert again == info  # an older bundle is replaced, and the same model gives the same one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model"]


def test_on_a_large_flat_image_onnx_runtime_still_answers_as_torch() -> None:
    image = ImageSettings(height=512, width=512)
    settings = ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 4, 4, 4), stem_stride=2, max_pool=True)
    model = trained_model(network=settings, task=msgspec.structs.replace(trained_model().task, image=image))
    torch.manual_seed(0)
    graph = DiagnosisGraph(build_network(settings, image, 2).eval(), model)
    session = onnxruntime.InferenceSession(to_onnx(graph, model, opset=20), providers=["CPUExecutionProvider"])
    black_BKHW = np.zeros((1, 1, 512, 512), np.uint8)
    with torch.no_grad():
        logits_BC, _ = graph(torch.from_numpy(black_BKHW))
    np.testing.assert_allclose(session.run(["logits"], {"pixels": black_BKHW})[0], logits_BC.numpy(), atol=2e-5)


def test_what_is_not_a_bundle_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/family.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(exported_bundle())
    for name in ("photos", "file", "link"):
        with pytest.raises(UserError, match="not a bundle"):
            export_model(trained_home() / FEDERATED, tmp_path / name, signing_key=SiteKeys.load(trained_home()).signing)
    assert (tmp_path / "photos/family.txt").read_text() == (tmp_path / "file").read_text() == "precious"


def test_a_bundle_with_a_file_of_the_users_in_it_is_not_replaced(tmp_path: Path) -> None:
    shutil.copytree(exported_bundle(), tmp_path / "bundle")
    (tmp_path / "bundle/docs/notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"notes\.txt does not belong to the bundle"):
        export_site(trained_home(), tmp_path / "bundle")
    assert (tmp_path / "bundle/docs/notes.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_that_a_kill_left_aside_is_taken_back_by_the_next_export(tmp_path: Path) -> None:
    shutil.copytree(exported_bundle(), tmp_path / ".my[1].77.old")  # a name with what a pattern would take
    with pytest.raises(UserError, match="ayni train"):
        export_site(trained_home(), tmp_path / "my[1]", alone=True)  # there is no such model
    assert [path.name for path in tmp_path.iterdir()] == ["my[1]"]
    assert read_bundle(tmp_path / "my[1]").info == read_bundle(exported_bundle()).info


def test_a_model_that_is_missing_or_damaged_makes_no_bundle(tmp_path: Path) -> None:
    key = SiteKeys.load(trained_home()).signing
    with pytest.raises(UserError, match="ayni train"):
        export_model(tmp_path / "nothing", tmp_path / "bundle", signing_key=key)
    weights = read_weights()
    broken = {**weights, "head.bias": np.array([np.nan, 0], np.float32)}
    with pytest.raises(UserError, match=r"damaged.*not finite"):
        export_model(write_model(tmp_path / "nan", trained_model(), broken), tmp_path / "bundle", signing_key=key)
    del weights["head.bias"]
    with pytest.raises(UserError, match=r"damaged.*head\.bias"):
        export_model(write_model(tmp_path / "cut", trained_model(), weights), tmp_path / "bundle", signing_key=key)
    unfit = write_model(tmp_path / "unfit", trained_model(pixel_mean=(0.5, 0.5, 0.5)), read_weights())
    with pytest.raises(UserError, match="normalisation"):
        export_model(unfit, tmp_path / "bundle", signing_key=key)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "nan", "unfit"]


def test_a_folder_that_has_not_joined_or_has_no_such_model_makes_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ayni join"):
        export_site(tmp_path, tmp_path / "bundle")
    with pytest.raises(UserError, match="ayni train"):
        export_site(trained_home(), tmp_path / "bundle", alone=True)
    with pytest.raises(UserError, match="no trained model"):
        export_site(trained_home(), tmp_path / "bundle", personal=True)
    with pytest.raises(UserError, match="not a bundle"):
        export_site(trained_home(), trained_home())
    join(tmp_path / "site")
    (tmp_path / "site/keys/certificate.msgpack").unlink()
    with pytest.raises(UserError, match=r"certificate\.msgpack cannot be read"):
        export_site(tmp_path / "site", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, ayni_export, ayni_export.bundle; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
