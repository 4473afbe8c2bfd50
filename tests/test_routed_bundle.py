"""A real routed bundle: packed, signed, adapted, and used with ONNX Runtime exactly as it was signed, or not at all."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch

from ayni.errors import IntegrityError, UserError
from ayni.keys import fingerprint
from ayni.learning.networks import build_network, load_weights
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni_export.bundle import Bundle, check_replaceable, read_bundle
from ayni_export.diagnose import diagnose
from ayni_export.routed.adapting import Fitted, Reading, adapted, session_for, write_adapted
from ayni_export.routed.collecting import comparable, notes_of, stack_of
from ayni_export.routed.experts import read_experts, routed_info, weights_of
from ayni_export.routed.pack import export_routed
from ayni_export.routed.record import ADDED_FILES, GRADIENT_FILE, ROUTED_FILE, Adaptation, RoutedInfo
from ayni_export.routed.source import Federation
from ayni_export.routed.words import explained, reasons, verdict
from ayni_export.runtime import Session
from ayni_export.segmentation import Segmentation
from ayni_export.signature import BundleError
from routed_federation import federation, networks, routed_bundle, save_worklist, seen_by
from trained_home import COORDINATOR, exported_bundle
from trained_unet import IMAGE, NETWORK, STRUCTURES, normalised

EXPERTS = ["global", "light", "dark", "silent"]
SIGNED = [
    "LICENSE", "configs/metadata.json", "docs/model_card.md", "models/experts.safetensors", "models/gradient.onnx",
    "models/plain.onnx", "models/plain_with_statistics.onnx", "models/routed.onnx", "models/statistics.safetensors",
]  # fmt: skip


def opened() -> Bundle:
    return read_bundle(routed_bundle())


def about() -> RoutedInfo:
    routed = opened().info.routed
    assert routed is not None
    return routed


def fitted_to(site: str, folder: Path, num_images: int = 8, *, refine: bool = False) -> Fitted:
    return adapted(opened(), save_worklist(folder, site, num_images), Reading(), refine=refine)


@pytest.fixture
def our_bundle(tmp_path: Path) -> Path:
    """Adapted to the dark site's images."""
    write_adapted(opened(), routed_bundle(), fitted_to("dark", tmp_path / "worklist"), tmp_path / "ours")
    return tmp_path / "ours"


def one_hot(expert: int) -> Floats:
    num_layers = len(about().layers)
    return np.repeat(np.eye(1, len(EXPERTS), expert, dtype=np.float32), num_layers, axis=0)


def test_every_tensor_of_every_expert_is_in_it_and_signed_by_the_coordinator() -> None:
    bundle = opened()
    assert sorted(bundle.files) == SIGNED
    assert bundle.signer.fingerprint == fingerprint(COORDINATOR.public_key().public_bytes_raw())
    routed = about()
    assert [expert.site for expert in routed.experts] == EXPERTS
    assert [expert.num_cases for expert in routed.experts] == [0, 64, 64, 0]
    experts = read_experts(bundle)
    names = set(networks()["global"].state_dict()) | {"normalise.mean", "normalise.std"}
    assert {name for layer in experts.layers for name in layer.tensors} == names
    for number, site in enumerate(EXPERTS):
        for name, tensor in networks()[site].state_dict().items():
            assert np.array_equal(experts.stacked[name][number], tensor.numpy().astype(np.float16)), (site, name)


@pytest.mark.parametrize("number", range(len(EXPERTS)))
def test_a_one_hot_routing_answers_as_that_expert_in_torch(number: int) -> None:
    bundle, images = opened(), seen_by("dark", 3, seed=4)[0]
    weights = read_experts(bundle).fold(one_hot(number))
    logits, _ = Session(bundle, weights=weights).run(images[..., np.newaxis])
    network = build_network(NETWORK, IMAGE, len(STRUCTURES))
    load_weights(network, {name: t for name, t in weights.items() if not name.startswith("normalise")})
    with torch.no_grad():
        stored = network(normalised(images))
    assert np.abs(logits - stored.numpy()).max() < 1e-2  # the normalisation is stored with 16 bits too
    assert np.array_equal(
        weights["head.weight"], networks()[EXPERTS[number]].state_dict()["head.weight"].half().float().numpy()
    )


def test_the_graphs_open_by_their_path_in_any_onnx_runtime(our_bundle: Path) -> None:
    image = seen_by("dark", 1, seed=4)[0][:, np.newaxis]
    plain = onnxruntime.InferenceSession(our_bundle / "models/plain.onnx")
    (logits,) = plain.run(["logits"], {"pixels": image})
    session, _ = session_for(read_bundle(our_bundle), [], Reading())
    assert np.array_equal(logits, session.run(image.transpose(0, 2, 3, 1))[0])
    routed = onnxruntime.InferenceSession(our_bundle / ROUTED_FILE)
    adaptation = read_bundle(our_bundle).adaptation
    assert adaptation is not None
    routing = np.array(adaptation.routing, np.float32)
    (mixed,) = routed.run(["logits"], {"pixels": image, "routing": routing})
    assert np.abs(mixed - logits).max() < 1e-4


@pytest.mark.parametrize("site", ["light", "dark"])
def test_a_worklist_is_answered_by_the_expert_of_the_site_that_it_looks_like(site: str, tmp_path: Path) -> None:
    fitted = fitted_to(site, tmp_path)
    assert fitted.adaptation.chosen == "start"
    assert fitted.adaptation.weights[EXPERTS.index(site)] > 0.9
    assert fitted.adaptation.num_images == 8
    truth = seen_by(site, 8, seed=9)[1] > 0
    answers = diagnose(routed_bundle(), sorted(tmp_path.glob("*.png")))
    for answer, masks in zip(answers, truth, strict=True):
        assert isinstance(answer, Segmentation)
        found = np.stack([structure.mask_HW for structure in answer.structures])
        assert 2 * (found & masks).sum() / (found.sum() + masks.sum()) > 0.8


def test_the_same_worklist_gives_the_same_routing_whatever_was_asked_before(tmp_path: Path) -> None:
    first = fitted_to("dark", tmp_path / "a", refine=True).adaptation
    fitted_to("light", tmp_path / "b", refine=True)
    again = fitted_to("dark", tmp_path / "a", refine=True).adaptation
    assert msgspec.structs.replace(again, created=first.created) == first
    assert first.refinement is not None
    assert first.refinement.num_steps == 3  # of eight images every third is asked, a step each


def test_one_image_alone_and_in_a_stream_gets_the_same_answer(our_bundle: Path, tmp_path: Path) -> None:
    images = save_worklist(tmp_path / "later", "dark", 5, seed=21)
    together = diagnose(our_bundle, images)
    (alone,) = diagnose(our_bundle, images[3:4])
    assert isinstance(alone, Segmentation)
    same = together[3]
    assert isinstance(same, Segmentation)
    for one, other in zip(alone.structures, same.structures, strict=True):
        assert np.array_equal(one.mask_HW, other.mask_HW)
        assert one.highest == other.highest


def test_a_single_image_is_a_worklist_too(tmp_path: Path) -> None:
    adaptation = fitted_to("dark", tmp_path, num_images=1).adaptation
    assert (adaptation.num_images, adaptation.chosen) == (1, "start")


def test_an_adapted_bundle_holds_what_was_signed_and_mixes_it_again_to_the_same_bits(our_bundle: Path) -> None:
    bundle = read_bundle(our_bundle)
    assert bundle.signer == opened().signer
    assert {name: bundle.files[name] for name in SIGNED} == dict(opened().files)
    assert bundle.adaptation is not None
    weights = weights_of(bundle, bundle.adaptation)
    stored = safe.decode((our_bundle / "models/weights.safetensors").read_bytes())
    for name, tensor in stored.items():
        assert np.array_equal(tensor, weights[name])
    words = (our_bundle / "docs/adaptation.md").read_text()
    assert words.startswith("# How this bundle was adapted\n\nThe model of dark speaks")
    assert "dark 0.0" in words
    check_replaceable(our_bundle)  # it is a bundle, and nothing else lies in it


def change(path: Path) -> None:
    """In the middle; of the record the first digit of a share, as its last digits may be of no weight."""
    data = bytearray(path.read_bytes())
    share = re.search(rb'"routing": \[\s*\[\s*(\d)', data)
    data[share.start(1) if share else len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*SIGNED, *ADDED_FILES])
def test_one_changed_bit_in_an_adapted_bundle_is_noticed(our_bundle: Path, name: str, tmp_path: Path) -> None:
    change(our_bundle / name)
    with pytest.raises(BundleError):
        session_for(read_bundle(our_bundle), [], Reading())


@pytest.mark.parametrize("name", ADDED_FILES)
def test_an_adapted_bundle_that_is_not_whole_is_refused(our_bundle: Path, name: str) -> None:
    (our_bundle / name).unlink()
    with pytest.raises(BundleError):
        read_bundle(our_bundle)


@pytest.mark.parametrize("row", [[0.5, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [2.0, -1.0, 0.0, 0.0], [1e400, 0, 0, 0]])
def test_a_routing_that_is_off_the_simplex_is_refused(our_bundle: Path, row: list[float]) -> None:
    told = json.loads((our_bundle / "adaptation.json").read_bytes())
    told["routing"][0] = row
    (our_bundle / "adaptation.json").write_text(json.dumps(told))
    with pytest.raises(BundleError):
        read_bundle(our_bundle)


def test_another_routing_does_not_pass_for_the_one_whose_weights_are_there(our_bundle: Path) -> None:
    told = json.loads((our_bundle / "adaptation.json").read_bytes())
    told["routing"] = one_hot(1).tolist()
    (our_bundle / "adaptation.json").write_text(json.dumps(told))
    changed = msgspec.json.decode((our_bundle / "adaptation.json").read_bytes(), type=Adaptation)
    (our_bundle / "docs/adaptation.md").write_text(explained(about(), changed))
    bundle = read_bundle(our_bundle)
    with pytest.raises(BundleError, match="mixed weights are not those"):
        session_for(bundle, [], Reading())


def test_an_adaptation_of_another_bundle_or_of_a_plain_one_is_refused(our_bundle: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(exported_bundle(), tmp_path / "plain"))
    for name in ADDED_FILES:
        shutil.copy(our_bundle / name, plain / name)
    with pytest.raises(BundleError, match="was not signed"):
        read_bundle(plain)
    told = json.loads((our_bundle / "adaptation.json").read_bytes()) | {"bundle_sha256": "0" * 64}
    (our_bundle / "adaptation.json").write_text(json.dumps(told))
    with pytest.raises(BundleError, match="does not belong"):
        read_bundle(our_bundle)


def test_an_expert_of_another_network_or_site_twice_makes_no_bundle() -> None:
    made = federation()
    first, second, *others = made.experts
    wrong = dataclasses.replace(second, weights={**second.weights, "head.bias": np.zeros(7, np.float32)})
    too_large = dataclasses.replace(second, weights={**second.weights, "head.bias": np.full(2, 1e5, np.float32)})
    for experts in ((first, wrong, *others), (first, second, second), (second, first), (), (first, too_large)):
        with pytest.raises(IntegrityError):
            stack_of(dataclasses.replace(made, experts=experts), "fp16")
    stack_of(dataclasses.replace(made, experts=(first, too_large)), "fp32")  # it has room for that


def test_statistics_that_were_made_in_another_global_model_are_left_out() -> None:
    made = federation()
    first, second, *others = made.experts
    older = dataclasses.replace(second, info=msgspec.structs.replace(second.info, reference_digest="0" * 64))
    changed = dataclasses.replace(made, experts=(first, older, *others))
    assert set(comparable(changed)) == {"dark"}
    assert [note.num_cases for note in notes_of(changed)] == [0, 0, 64, 0]


def at_home(made: Federation, *gains: tuple[int, float]) -> Federation:
    """The sites' experts with these held-out images and gains."""
    told = [
        dataclasses.replace(one, info=msgspec.structs.replace(one.info, num_held_out=number, home_gain=gain))
        for one, (number, gain) in zip(made.experts[1:], gains, strict=True)
    ]
    return dataclasses.replace(made, experts=(made.experts[0], *told))


def test_what_experts_gain_at_home_is_the_mean_over_images_over_the_very_model_that_is_packed(tmp_path: Path) -> None:
    """(4 * .1 - 12 * .05) / 16; the third one compared itself with another global model."""
    made = at_home(federation(), (4, 0.1), (12, -0.05), (50, 0.9))
    info = export_routed(made, tmp_path / "bundle").routed
    assert info is not None
    assert (info.num_held_out, info.home_unit, info.say) == (16, "Dice", 0)
    assert info.home_gain == pytest.approx(-0.0125)
    card = (tmp_path / "bundle/docs/model_card.md").read_text()
    assert "+0.100 Dice on 4 held-out images |" in card
    assert "| the model of silent | 64 | none | not told |" in card
    assert "On 16 held-out images of their own sites the experts are no better than the global model" in card
    assert "The global model answers alone: at their own sites the experts are no better than it." in card


def test_where_experts_are_no_better_at_home_a_worklist_is_answered_by_the_global_model(tmp_path: Path) -> None:
    images = save_worklist(tmp_path, "dark", 8)
    for gain, chosen in ((-0.01, "global"), (0.0, "global"), (0.01, "start")):
        bundle = tmp_path / f"bundle{gain}"
        export_routed(at_home(federation(), (4, gain), (4, gain), (0, 0.0)), bundle)
        opened = read_bundle(bundle)
        adaptation = adapted(opened, images, Reading(), refine=True).adaptation
        assert (adaptation.chosen == "global") == (chosen == "global")
        assert any(far is not None for far in adaptation.distances) == (chosen != "global")  # nothing was compared
        said = [verdict(routed_info(opened), adaptation), *reasons(routed_info(opened), adaptation)]
        assert any("at their own sites the experts are no better" in text for text in said) == (chosen == "global")
        assert any("On 8 held-out images of their own sites" in text for text in said)
        how = "before any image was seen" if chosen == "global" else "by how the images look"
        assert f"This was chosen {how}" in explained(routed_info(opened), adaptation)
        assert any("The choice rests on 8 images" in text for text in said) == (chosen != "global")


def test_a_plain_bundle_cannot_be_adapted_and_what_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing to adapt"):
        adapted(read_bundle(exported_bundle()), [], Reading())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not a bundle"):
        write_adapted(opened(), routed_bundle(), fitted_to("dark", tmp_path / "w", 1), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_the_gradient_in_the_bundle_was_held_against_torch() -> None:
    routed = about()
    assert routed.gradient_parity is not None
    assert routed.gradient_parity < 1e-4
    assert opened().info.models[0].parity.logits < 1e-4
    assert GRADIENT_FILE in opened().files
