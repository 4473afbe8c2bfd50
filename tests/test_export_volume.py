"""Export of a network for volumes: its graph run by ONNX Runtime, the rules in the bundle, words that fit volumes."""

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

from ayni.data.volumes import VOLUME_RULES, as_seen, back_to_file, padded, read_volume
from ayni.errors import IntegrityError
from ayni.learning.batches import Normaliser
from ayni.learning.networks import Network, build_network, load_weights, weights_of
from ayni.learning.scores import answers
from ayni.task import ResNetSettings, UNetSettings
from ayni.tensors import safe
from ayni.trained_model import WEIGHTS_FILE, TrainedModel
from ayni_export import bundle as parts
from ayni_export.bundle import BundleInfo, read_bundle
from ayni_export.diagnose import diagnose
from ayni_export.export import export_model
from ayni_export.graph import DiagnosisGraph, check_parity, parity_images
from ayni_export.runtime import Session
from ayni_export.signature import BundleError
from ayni_export.volume_answer import OutlinedVolume
from test_diagnose_images import resigned
from trained_home import ROOT, write_model
from trained_volume import (
    IMAGE,
    TEMPERATURE,
    normalised,
    save_drawn,
    seen,
    signing_key,
    volume_bundle,
    volume_home,
    volume_model,
)

FEDERATED = Path("models/federated")


def test_the_graph_outlines_volumes_as_the_trained_network_does() -> None:
    model = TrainedModel.read(volume_home() / FEDERATED)
    network = build_network(model.network, model.task.image, 2)
    weights: dict[str, Any] = dict(safe.decode((volume_home() / FEDERATED / WEIGHTS_FILE).read_bytes()))
    load_weights(network, weights)
    volumes, masks = seen(6, seed=2)
    with torch.no_grad():
        expected_NSDHW = network.eval()(normalised(volumes)).numpy()
    session = onnxruntime.InferenceSession(volume_bundle() / "models/model.onnx", providers=["CPUExecutionProvider"])
    logits_NSDHW, probabilities_NSDHW = session.run(["logits", "probabilities"], {"pixels": volumes})
    assert logits_NSDHW.shape == (6, 2, *IMAGE.size)
    np.testing.assert_allclose(logits_NSDHW, expected_NSDHW, atol=1e-4)
    np.testing.assert_allclose(probabilities_NSDHW, 1 / (1 + np.exp(-expected_NSDHW / TEMPERATURE)), atol=1e-4)
    found = logits_NSDHW > 0
    assert 2 * (found & (masks > 0)).sum() / (found.sum() + masks.sum()) > 0.9  # it has learned something


def test_a_network_that_is_very_sure_is_held_to_torch_in_proportion(tmp_path: Path) -> None:
    """After the task's own hundreds of steps logits reach 60, and 32 bits round them by more than 1e-4."""
    weights: dict[str, Any] = dict(safe.decode((volume_home() / FEDERATED / WEIGHTS_FILE).read_bytes()))
    factor = np.float32(30.0)
    sure = {name: tensor * factor if name.startswith("head.") else tensor for name, tensor in weights.items()}
    folder = write_model(tmp_path / "sure", volume_model(), sure)
    info = export_model(folder, tmp_path / "bundle", signing_key=signing_key())
    assert 1e-4 < info.models[0].parity.logits <= info.models[0].parity.tolerance
    network = build_network(volume_model().network, IMAGE, 2)
    load_weights(network, {**sure, "head.bias": sure["head.bias"] + np.float32(1e-3)})  # that little is still noticed
    graph = DiagnosisGraph(network, volume_model())
    wrong = (tmp_path / "bundle/models/model.onnx").read_bytes()
    with pytest.raises(IntegrityError, match="its probabilities by"):
        check_parity(graph, wrong, volume_model())


@pytest.mark.parametrize(
    ("kind", "network", "patch"),
    [
        ("segmentation", UNetSettings(channels=(4, 8), features=4, residual_units=2), (8, 16, 12)),
        ("classification", ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 8, 8, 8), stem_stride=2), None),
    ],
    ids=["residual-patches", "classes"],
)
def test_every_kind_of_3d_network_exports_and_agrees_with_torch(
    tmp_path: Path, kind: str, network: Any, patch: tuple[int, int, int] | None
) -> None:
    image = msgspec.structs.replace(IMAGE, patch=patch)
    task = msgspec.structs.replace(volume_model().task, kind=kind, image=image)
    torch.manual_seed(1)
    model = volume_model(task=task, network=network)
    built = build_network(network, image, 2)
    folder = write_model(tmp_path / "model", model, weights_of(built))
    info = export_model(folder, tmp_path / "bundle", signing_key=signing_key())
    assert info == read_bundle(tmp_path / "bundle").info
    assert (info.rules, info.image.seen, info.task_kind) == ("volume-1", patch or (16, 24, 20), kind)
    assert 0 < info.models[0].parity.logits <= 1e-4
    assert info.models[0].parity.num_images == 5
    session = Session(read_bundle(tmp_path / "bundle"))
    for num_volumes in (1, 3):
        logits, probabilities = session.run(np.zeros((num_volumes, *image.seen, 1), np.uint8))
        expected = (num_volumes, 2, *(image.seen if kind == "segmentation" else ()))
        assert logits.shape == probabilities.shape == expected
    if patch:
        the_edge_answers_as_training_measures(built, info, tmp_path)


def the_edge_answers_as_training_measures(network: Network, info: BundleInfo, folder: Path) -> None:
    """Padding, windows and the sigmoid included: from a file to a label map, against torch and MONAI's windows."""
    path = save_drawn(folder / "v.nii.gz", 3, "RAS", (1.0, 1.5, 2.0))
    (answer,) = diagnose(folder / "bundle", [path])
    assert isinstance(answer, OutlinedVolume)
    assert answer.num_windows == 3 * 2 * 3  # 16 x 24 x 20 in patches of 8 x 16 x 12
    voxels_DHW = padded(as_seen(read_volume(path), info.image), info.image)
    normalise = Normaliser(info.pixel_mean, info.pixel_std)
    logits_NSDHW = answers(network.eval(), torch.from_numpy(voxels_DHW)[None, None], normalise)
    back_SXYZ = back_to_file(torch.sigmoid(logits_NSDHW[0] / info.temperature).numpy(), read_volume(path))
    expected = [int(np.count_nonzero(back_XYZ >= 0.5)) for back_XYZ in back_SXYZ]
    assert min(expected) > 0
    assert [each.num_voxels for each in answer.structures] == pytest.approx(expected, abs=2)  # at .5 rounding decides
    assert [each.highest for each in answer.structures] == pytest.approx(back_SXYZ.max(axis=(1, 2, 3)), abs=1e-5)


def test_a_graph_of_other_weights_is_not_passed() -> None:
    model = TrainedModel.read(volume_home() / FEDERATED)
    torch.manual_seed(5)
    other = DiagnosisGraph(build_network(model.network, model.task.image, 2).eval(), model)
    with pytest.raises(IntegrityError, match="differ from torch's"):
        check_parity(other, (volume_bundle() / "models/model.onnx").read_bytes(), model)


def test_parity_is_asked_on_flat_noisy_and_drawn_volumes_that_differ_along_every_axis() -> None:
    volumes = parity_images(1, 8, 12, 10)
    assert volumes.shape == (5, 1, 8, 12, 10)
    assert volumes.dtype == np.uint8
    assert (volumes[0].max(), volumes[1].min()) == (0, 255)
    np.testing.assert_array_equal(volumes, parity_images(1, 8, 12, 10))
    for axis in (1, 2, 3):
        assert np.abs(np.diff(volumes[3].astype(int), axis=axis)).max() > 0


def test_the_rules_are_in_the_bundle_and_other_ones_are_refused(tmp_path: Path) -> None:
    assert parts.VOLUME_RULES == VOLUME_RULES == read_bundle(volume_bundle()).info.rules
    metadata = (volume_bundle() / "configs/metadata.json").read_text()
    for number, rules in enumerate(("volume-2", "")):
        bundle = Path(shutil.copytree(volume_bundle(), tmp_path / f"bundle-{number}"))
        wrong = metadata.replace('"rules": "volume-1"', f'"rules": "{rules}"').encode()
        with pytest.raises(BundleError, match=f"by the rules '{rules}', which .* Update Ayni"):
            read_bundle(resigned(bundle, "configs/metadata.json", wrong))


def test_metadata_and_model_card_speak_of_volumes() -> None:
    metadata = json.loads((volume_bundle() / "configs/metadata.json").read_bytes())
    assert metadata["network_data_format"]["inputs"]["pixels"]["spatial_shape"] == [16, 24, 20]
    for output in metadata["network_data_format"]["outputs"].values():
        assert (output["format"], output["spatial_shape"]) == ("segmentation", [16, 24, 20])
    assert metadata["eval_metrics"]["dice_ball"] == 0.93
    card = (volume_bundle() / "docs/model_card.md").read_text()
    for fact in (
        "It outlines *ball* and *bar* on volumes of up to 16 x 24 x 20 voxels of 2 x 1 x 1 mm",
        "| volumes that show | trained on | held out |",
        "On 24 held-out volumes",
        "distances 1.5 mm",
        "distances 0.42 mm",
        "ball: Dice 0.930, HD95 1.000",
        "calibrated on the voxels of 24 held-out volumes of the site, which is rough (temperature 1.500)",
        "rules volume-1",
        "uint8 [volumes, 1, 16, 24, 20]",
    ):
        assert fact in card, fact
    for word in ("pixels of", "heat map", "an image of another kind"):
        assert word not in card.lower()


def test_the_graph_tells_nothing_of_the_machine_where_it_was_made() -> None:
    data = (volume_bundle() / "models/model.onnx").read_bytes()
    for trace in (str(ROOT).encode(), str(Path.home()).encode(), b".py", b"stack_trace"):
        assert trace not in data
