"""Export of a segmentation: a really trained U-Net, its graph run by ONNX Runtime, and words that fit outlines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch

from ayni.learning.networks import build_network, load_weights, weights_of
from ayni.task import ImageSettings, UNetSettings
from ayni.tensors import safe
from ayni.trained_model import WEIGHTS_FILE, Scores, TrainedModel
from ayni_export.bundle import BundleInfo, read_bundle
from ayni_export.export import export_model
from ayni_export.graph import DiagnosisGraph, to_onnx
from ayni_export.model_card import model_card
from ayni_export.monai_metadata import monai_metadata
from ayni_export.runtime import Session
from ayni_export.signature import BundleError
from test_diagnose_images import resigned
from trained_home import ROOT, exported_bundle, write_model
from trained_unet import (
    IMAGE,
    TEMPERATURE,
    drawn,
    normalised,
    outlining_bundle,
    outlining_model,
    signing_key,
    unet_home,
)

VERSIONS = {"monai": "1", "pytorch": "1", "numpy": "1"}


def info_with(**changes: object) -> BundleInfo:
    return msgspec.structs.replace(read_bundle(outlining_bundle()).info, **changes)


def test_the_graph_outlines_as_the_trained_network_does() -> None:
    model = TrainedModel.read(unet_home() / "models/federated")
    network = build_network(model.network, model.task.image, 2)
    weights: dict[str, Any] = dict(safe.decode((unet_home() / "models/federated" / WEIGHTS_FILE).read_bytes()))
    load_weights(network, weights)
    images, masks = drawn(20, seed=2)
    with torch.no_grad():
        expected_NSHW = network.eval()(normalised(images)).numpy()
    session = onnxruntime.InferenceSession(outlining_bundle() / "models/model.onnx", providers=["CPUExecutionProvider"])
    logits_NSHW, probabilities_NSHW = session.run(["logits", "probabilities"], {"pixels": images[:, None]})
    assert logits_NSHW.shape == (20, 2, 32, 48)
    np.testing.assert_allclose(logits_NSHW, expected_NSHW, atol=1e-4)
    np.testing.assert_allclose(probabilities_NSHW, 1 / (1 + np.exp(-expected_NSHW / TEMPERATURE)), atol=1e-4)
    seen = logits_NSHW > 0
    dice = 2 * (seen & (masks > 0)).sum() / (seen.sum() + masks.sum())
    assert dice > 0.85  # it has learned something: these are not the answers of a constant


def test_the_graph_tells_nothing_of_the_machine_where_it_was_made() -> None:
    data = (outlining_bundle() / "models/model.onnx").read_bytes()
    for trace in (str(ROOT).encode(), str(Path.home()).encode(), b".py", b"stack_trace", b"class_hierarchy"):
        assert trace not in data


@pytest.mark.parametrize(
    ("image", "network"),
    [
        (ImageSettings(height=64, width=48, channels=3), UNetSettings(channels=(16, 32, 64, 128))),  # the small default
        (ImageSettings(height=32, width=32), UNetSettings(channels=(8, 16, 24), residual_units=2)),
    ],
    ids=["small", "residual"],
)
def test_every_kind_of_u_net_exports_and_agrees_with_torch(
    tmp_path: Path, image: ImageSettings, network: UNetSettings
) -> None:
    task = msgspec.structs.replace(outlining_model().task, image=image, classes=("lung",))
    model = outlining_model(
        task=task, network=network, pixel_mean=(0.5,) * image.channels, pixel_std=(0.2,) * image.channels
    )
    torch.manual_seed(1)
    folder = write_model(tmp_path / "model", model, weights_of(build_network(network, image, 1)))
    info = export_model(folder, tmp_path / "bundle", signing_key=signing_key())
    assert info == read_bundle(tmp_path / "bundle").info
    assert (info.task_kind, info.classes, info.kind) == ("segmentation", ("lung",), "federated")
    assert 0 < info.models[0].parity.logits <= 1e-4
    session = Session(read_bundle(tmp_path / "bundle"))
    for num_images in (1, 2, 5):
        logits, probabilities = session.run(np.zeros((num_images, image.height, image.width, image.channels), np.uint8))
        assert logits.shape == probabilities.shape == (num_images, 1, image.height, image.width)


def test_on_a_large_flat_image_onnx_runtime_still_answers_as_torch() -> None:
    image = ImageSettings(height=256, width=256)
    settings = UNetSettings(channels=(8, 8, 8), features=4)
    model = outlining_model(network=settings, task=msgspec.structs.replace(outlining_model().task, image=image))
    torch.manual_seed(0)
    graph = DiagnosisGraph(build_network(settings, image, 2).eval(), model)
    session = onnxruntime.InferenceSession(to_onnx(graph, model, opset=20), providers=["CPUExecutionProvider"])
    black_BKHW = np.zeros((1, 1, 256, 256), np.uint8)
    with torch.no_grad():
        logits, _ = graph(torch.from_numpy(black_BKHW))
    np.testing.assert_allclose(session.run(["logits"], {"pixels": black_BKHW})[0], logits.numpy(), atol=2e-5)


def test_the_metadata_describe_maps_and_not_classes() -> None:
    metadata = json.loads((outlining_bundle() / "configs/metadata.json").read_bytes())
    assert metadata["description"].startswith("Segmentation of disc, bar")
    assert metadata["eval_metrics"] == {"dice": 0.912, "hd95": 1.5}
    for output in metadata["network_data_format"]["outputs"].values():
        assert (output["type"], output["format"], output["spatial_shape"]) == ("image", "segmentation", [32, 48])
        assert output["channel_def"] == {"0": "disc", "1": "bar"}
    assert metadata["ayni"]["task_kind"] == "segmentation"
    unmeasured = info_with(validation=Scores(num_images=0, dice=0.0))
    assert monai_metadata(unmeasured, VERSIONS)["eval_metrics"] == {}


def test_the_model_card_speaks_of_outlines_and_never_of_findings() -> None:
    card = (outlining_bundle() / "docs/model_card.md").read_text()
    for fact in (
        "It outlines *disc* and *bar* on images of 48 x 32 pixels, grey",
        "| images that show | trained on | held out |",
        "| bar | 60 | 23 |",
        "On 24 held-out images",
        "Dice 0.912",
        "1.5 pixels of what the model sees",
        "calibrated on the pixels of 24 held-out images of the site, which is rough (temperature 1.500)",
        "not a medical device",
    ):
        assert fact in card
    for word in ("ROC", "accuracy", "confidence", "heat map", "**all**", "apart"):
        assert word not in card


def test_what_was_not_measured_or_calibrated_is_not_claimed() -> None:
    card = model_card(info_with(validation=Scores(num_images=0, dice=0.0), temperature=1.0, classes=("lung",)))
    assert "Not measured" in card
    assert "Dice" not in card
    assert "The probabilities are not calibrated, as too few images were held out (temperature 1.000)" in card
    assert "It outlines *lung* on" in card


def test_metadata_of_another_kind_than_the_model_are_a_bundle_error(tmp_path: Path) -> None:
    metadata = (outlining_bundle() / "configs/metadata.json").read_text()
    for name, old, new, error in (
        ("kind", '"task_kind": "segmentation"', '"task_kind": "classification"', "not the one that its metadata"),
        ("height", '"height": 32', '"height": 64', "cannot be loaded|not the one that its metadata"),
        ("classes", '"classes": [', '"classes": ["third", ', "not the one that its metadata"),
    ):
        bundle = Path(shutil.copytree(outlining_bundle(), tmp_path / name))
        assert old in metadata
        changed = resigned(bundle, "configs/metadata.json", metadata.replace(old, new).encode())
        with pytest.raises(BundleError, match=error):
            Session(read_bundle(changed))


def test_a_classification_into_one_class_is_no_bundle_but_a_single_structure_is(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported_bundle(), tmp_path / "bundle"))
    metadata = json.loads((bundle / "configs/metadata.json").read_bytes())
    metadata["ayni"]["classes"] = ["pneumonia"]
    with pytest.raises(BundleError, match="contradicts itself"):
        read_bundle(resigned(bundle, "configs/metadata.json", json.dumps(metadata).encode()))
    metadata["ayni"]["task_kind"] = "segmentation"
    assert read_bundle(resigned(bundle, "configs/metadata.json", json.dumps(metadata).encode())).info.image != IMAGE


def test_a_bundle_from_before_there_were_segmentations_is_a_classification(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported_bundle(), tmp_path / "bundle"))
    metadata = json.loads((bundle / "configs/metadata.json").read_bytes())
    del metadata["ayni"]["task_kind"]
    info = read_bundle(resigned(bundle, "configs/metadata.json", json.dumps(metadata).encode())).info
    assert info == read_bundle(exported_bundle()).info
