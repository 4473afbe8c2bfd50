"""A real routed bundle of volumes: fitted to a worklist by the middle of each volume, answered in windows, guarded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from ayni.data.volumes import as_seen, read_volume
from ayni.errors import DataError
from ayni_export.bundle import Bundle, read_bundle
from ayni_export.diagnose import diagnose
from ayni_export.routed.adapting import Fitted, Reading, adapted, write_adapted
from ayni_export.routed.mixed_answers import gradient_of_mixed_answers
from ayni_export.routed.record import GRADIENT_FILE, RoutedInfo
from ayni_export.routed.words import reasons, verdict
from ayni_export.routed.worklist import middle_of_volume, read_worklist
from ayni_export.volume_answer import OutlinedVolume
from routed_volumes import PATCHES, routed_volumes, save_volumes
from trained_volume import affine_of, drawn, places_of

EXPERTS = ["global", "light", "dark", "ignorant"]


def opened() -> Bundle:
    return read_bundle(routed_volumes())


def about() -> RoutedInfo:
    routed = opened().info.routed
    assert routed is not None
    return routed


def fitted_to(site: str, folder: Path, num_volumes: int = 8, *, refine: bool = False) -> Fitted:
    return adapted(opened(), save_volumes(folder, site, num_volumes), Reading(), refine=refine)


@pytest.fixture
def our_bundle(tmp_path: Path) -> Path:
    """Adapted to the dark site's volumes."""
    write_adapted(opened(), routed_volumes(), fitted_to("dark", tmp_path / "worklist"), tmp_path / "ours")
    return tmp_path / "ours"


def test_it_names_the_rules_speaks_of_volumes_and_says_why_there_is_no_gradient() -> None:
    bundle, routed = opened(), about()
    assert (bundle.info.rules, routed.dimensions, bundle.info.image.seen) == ("volume-1", 3, (12, 16, 16))
    assert [expert.site for expert in routed.experts] == EXPERTS
    assert bundle.info.models[0].parity.logits < 1e-4
    assert (routed.has_gradient, GRADIENT_FILE in bundle.files, routed.latency.gradient_ms) == (False, False, None)
    assert routed.why_no_gradient == "the network sees 12 x 16 x 16 at once, and a step would fill the memory"
    card = bundle.files["docs/model_card.md"].decode()
    for words in (
        "| expert | training volumes | volumes behind its statistics |",
        "larger than what the network sees at once, 12 x 16 x 16 voxels, both look at the middle",
        "No gradient is in it: the network sees 12 x 16 x 16 at once",
    ):
        assert words in card


def test_a_worklist_is_answered_by_the_expert_of_the_site_that_it_looks_like(tmp_path: Path) -> None:
    fitted = fitted_to("dark", tmp_path)
    adaptation = fitted.adaptation
    assert adaptation.chosen == "start"
    assert adaptation.weights[EXPERTS.index("dark")] > 0.9
    assert (adaptation.num_images, adaptation.num_in_part) == (8, 8)
    said = " ".join(reasons(about(), adaptation))
    assert "The choice rests on 8 volumes." in said
    assert "8 of them are larger than what the network sees at once" in said
    shape, affine = affine_of("LPS", (1.0, 1.0, 2.0))
    for number, answer in enumerate(diagnose(routed_volumes(), sorted(tmp_path.glob("*.nii.gz")))):
        assert isinstance(answer, OutlinedVolume)
        assert answer.num_windows == 2 * 2 * 2
        _, masks_SXYZ = drawn(places_of(shape, affine), 50 + number)
        (tmp_path / "mask.nii.gz").write_bytes(answer.mask_file)
        labels_XYZ = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
        for label, mask_XYZ in enumerate(masks_SXYZ, start=1):
            found_XYZ = labels_XYZ == label
            assert 2 * (found_XYZ & mask_XYZ).sum() / (found_XYZ.sum() + mask_XYZ.sum()) > 0.7


def test_one_volume_alone_and_in_a_stream_gets_the_same_answer(our_bundle: Path, tmp_path: Path) -> None:
    paths = save_volumes(tmp_path / "later", "dark", 3, seed=80)
    together = diagnose(our_bundle, paths)
    (alone,) = diagnose(our_bundle, paths[1:2])
    assert isinstance(alone, OutlinedVolume)
    same = together[1]
    assert isinstance(same, OutlinedVolume)
    assert alone.structures == same.structures
    assert alone.mask_file == same.mask_file


def test_the_same_worklist_gives_the_same_routing_whatever_was_asked_before(tmp_path: Path) -> None:
    first = fitted_to("dark", tmp_path / "a", refine=True).adaptation
    fitted_to("light", tmp_path / "b", 2, refine=True)
    again = fitted_to("dark", tmp_path / "a", refine=True).adaptation
    assert msgspec.structs.replace(again, created=first.created) == first


def test_an_expert_that_makes_answers_less_sure_is_refused_and_the_global_model_answers(tmp_path: Path) -> None:
    """The light site's statistics point to two experts alike, and one of them knows nothing."""
    adaptation = fitted_to("light", tmp_path).adaptation
    assert adaptation.chosen == "global"
    assert adaptation.weights == (1, 0, 0, 0)
    (tried,) = adaptation.tried
    assert tried.weights[1] == pytest.approx(tried.weights[3], abs=1e-6)
    assert "its answers are less sure" in tried.refused[0]
    assert verdict(about(), adaptation).endswith("a mixture was tried, and the guard refused it.")


def test_without_a_gradient_graph_steps_of_mixed_answers_find_the_expert_that_knows_something(tmp_path: Path) -> None:
    adaptation = fitted_to("light", tmp_path, refine=True).adaptation
    assert adaptation.chosen == "refined"
    assert adaptation.weights[1] > 0.7 > 2 * adaptation.weights[3]
    assert adaptation.refinement is not None
    assert adaptation.refinement.loss_last < adaptation.refinement.loss_first
    assert any(
        "3 gradient steps on unlabelled volumes, of the experts' mixed answers as there is no gradient" in sentence
        for sentence in reasons(about(), adaptation)
    )


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5, 6)])
def test_the_gradient_of_mixed_answers_is_torchs_of_their_entropy(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    answers_E = random.normal(0, 2, (4, *shape)).astype(np.float32)
    logits_LE = np.repeat(random.normal(0, 1, (1, 4)).astype(np.float32), 7, axis=0)
    gradient = gradient_of_mixed_answers(lambda image, number: answers_E[number], 4, temperature=1.5)
    found, slope_LE = gradient(np.zeros((1, 1, 1), np.uint8), logits_LE)

    def entropy(logits_E: Tensor) -> Tensor:
        mixed = torch.tensordot(torch.softmax(logits_E, 0), torch.from_numpy(answers_E).double() / 1.5, dims=1)
        family: Any = torch.distributions.Categorical if mixed.ndim == 1 else torch.distributions.Bernoulli
        most_nats = np.log(3) if mixed.ndim == 1 else np.log(2)
        return cast(Tensor, family(logits=mixed).entropy().mean() / most_nats)

    logits_E = torch.from_numpy(logits_LE[0]).double()
    assert found == pytest.approx(entropy(logits_E).item(), abs=1e-6)
    assert slope_LE.shape == (7, 4)
    np.testing.assert_allclose(slope_LE.sum(axis=0), torch.func.grad(entropy)(logits_E), atol=1e-6)


def test_of_a_large_volume_the_middle_is_looked_at_and_a_bad_file_is_left_out(tmp_path: Path) -> None:
    info = opened().info
    (path,) = save_volumes(tmp_path, "light", 1)
    (tmp_path / "bad.nii").write_text("hello")
    whole_DHW = as_seen(read_volume(path), info.image)
    worklist = read_worklist(info, [path, tmp_path / "bad.nii"], resize=False, allow_burned_in=False)
    assert (worklist.num_images, worklist.num_unreadable, worklist.num_in_part) == (1, 1, 1)
    # 16 x 24 x 20 voxels, of which the network sees 12 x 16 x 16
    np.testing.assert_array_equal(worklist.seen[0][..., 0], whole_DHW[2:14, 4:20, 2:18])
    assert worklist.seen[0].base is None  # or the whole volume would stay in memory
    at_once = msgspec.structs.replace(info, image=msgspec.structs.replace(PATCHES, patch=None, height=30))
    seen_dhwK, is_part = middle_of_volume(at_once, path, allow_burned_in=False)
    assert not is_part
    np.testing.assert_array_equal(seen_dhwK[:, 3:27, :, 0], whole_DHW)
    assert not seen_dhwK[:, :3].any()


def test_a_class_is_told_from_the_whole_volume_or_not_at_all(tmp_path: Path) -> None:
    (path,) = save_volumes(tmp_path, "light", 1)
    image = msgspec.structs.replace(PATCHES, patch=None, width=18)
    info = msgspec.structs.replace(opened().info, task_kind="classification", image=image)
    with pytest.raises(DataError, match=r"16 x 24 x 20 voxels .* takes 16 x 24 x 18"):
        middle_of_volume(info, path, allow_burned_in=False)
