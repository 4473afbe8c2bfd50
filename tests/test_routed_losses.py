"""The unsupervised terms by hand, batch-invariant, of a weight that matters; views whose way back is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from ayni_export.routed.losses import WEIGHTS, compactness, consistency, entropy, terms_of, total
from ayni_export.routed.views import View, view

SHAPES = {"classes": (3, 4), "maps": (3, 2, 16, 12), "volumes": (3, 2, 8, 6, 10)}
every_kind = pytest.mark.parametrize("kind", SHAPES)


def some(kind: str, seed: int = 0) -> Tensor:
    return 2 * torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@every_kind
def test_every_term_is_a_mean_over_images(kind: str) -> None:
    """Twice the batch, the same terms; a batch's term is the mean of its images' (entropy was once a sum over them)."""
    logits, others = some(kind), some(kind, seed=1)
    whole = terms_of(logits, others)
    twice = terms_of(torch.cat([logits, logits]), torch.cat([others, others]))
    alone = [terms_of(logits[i : i + 1], others[i : i + 1]) for i in range(len(logits))]
    for name, term in whole.items():
        torch.testing.assert_close(twice[name], term)
        torch.testing.assert_close(torch.stack([terms[name] for terms in alone]).mean(), term)
        assert term.ndim == 0


@every_kind
def test_every_term_matters_and_so_does_its_gradient(kind: str) -> None:
    """A shape term of public code was 1e-6 beside the others."""
    weights = WEIGHTS["classification" if kind == "classes" else "segmentation"]
    logits = some(kind).requires_grad_()
    parts, slopes = {}, {}
    for name, term in terms_of(logits, some(kind, seed=1)).items():
        parts[name] = weights[name] * term.item()
        slopes[name] = weights[name] * torch.autograd.grad(term, logits, retain_graph=True)[0].norm().item()
    for sizes in (parts, slopes):
        assert min(sizes.values()) > 0.02 * max(sizes.values()), sizes


def test_entropy_by_hand() -> None:
    quarters_BC = torch.log(torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]))
    assert entropy(quarters_BC).item() == pytest.approx((1.5 * math.log(2) / math.log(3) + 1) / 2)
    quarter_BSHW = torch.full((2, 1, 3, 3), math.log(1 / 3))  # probability 1/4
    assert entropy(quarter_BSHW).item() == pytest.approx(0.811278, abs=1e-6)  # bits of a coin of 1/4


def test_one_structure_has_an_entropy_although_a_softmax_over_it_has_none() -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    assert entropy(logits).item() == pytest.approx(1)
    assert consistency(logits, logits.detach() + 1).item() > 0.1


def test_sure_answers_have_no_entropy_and_no_infinite_gradient() -> None:
    for shape in SHAPES.values():
        logits = torch.full(shape, -200.0)
        logits[:, 0] = 200.0
        logits.requires_grad_()
        loss = total(terms_of(logits, -logits.detach()), dict.fromkeys(terms_of(logits, logits), 1.0))
        assert entropy(logits).item() == pytest.approx(0, abs=1e-6)
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@every_kind
def test_consistency_is_the_mean_of_both_divergences(kind: str) -> None:
    logits, others = some(kind), some(kind, seed=1)
    family = torch.distributions.Categorical if kind == "classes" else torch.distributions.Bernoulli
    p, q = family(logits=logits), family(logits=others)
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(consistency(logits, others), both.mean() / 2)
    assert consistency(logits, logits).item() == 0
    assert consistency(logits, others) == consistency(others, logits)


@pytest.mark.parametrize("kind", ["maps", "volumes"])
def test_compactness_is_scipys_morphological_gradient_over_the_area(kind: str) -> None:
    probabilities = torch.sigmoid(some(kind)).numpy()
    size = (3,) * (probabilities.ndim - 2)
    expected = [
        ndimage.morphological_gradient(structure, size, mode="nearest").sum() / structure.sum()
        for image in probabilities
        for structure in image
    ]
    assert compactness(some(kind)).item() == pytest.approx(np.mean(expected))


def test_one_region_is_more_compact_than_the_same_area_in_pieces() -> None:
    square, pieces = torch.full((1, 1, 32, 32), -20.0), torch.full((1, 1, 32, 32), -20.0)
    square[:, :, 4:12, 4:12] = 20.0
    pieces[:, :, 4:28:3, 4:28:3] = 20.0  # 8 x 8 single pixels
    assert (square > 0).sum() == (pieces > 0).sum() == 64
    assert compactness(square).item() == pytest.approx((100 - 36) / 64, abs=1e-4)
    assert compactness(pieces).item() == pytest.approx(9, abs=1e-3)


def test_nothing_found_has_no_outline_and_no_division_by_zero() -> None:
    logits = torch.full((1, 1, 16, 16), -90.0, requires_grad=True)
    loss = compactness(logits)
    assert loss.item() == 0
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_no_term_without_a_weight_and_no_weight_without_a_term() -> None:
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert total(terms, {"a": 10.0, "b": 0.5}).item() == 21.5
    for weights in ({"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}):
        with pytest.raises(ValueError, match="weights of"):
            total(terms, weights)
    with pytest.raises(ValueError, match="one shape"):
        consistency(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="compactness is of maps"):
        compactness(torch.zeros(1, 2))


@pytest.mark.parametrize("kind", ["maps", "volumes"])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_way_back_is_exact(kind: str, mirror: bool) -> None:
    images = some(kind)
    for seed in range(5):
        chosen = view(seed, num_axes=images.ndim - 2, mirror=mirror)
        moved = View(chosen.mirrored, chosen.shift, contrast=1, brighter=0).of(images)
        assert not torch.equal(moved, images)
        assert torch.equal(chosen.back(moved), images)
        assert chosen.mirrored == mirror


def test_a_view_by_hand() -> None:
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[None, None]
    seen = View(mirrored=True, shift=(1, -1), contrast=2, brighter=0.5).of(image)
    # mirrored 321 / 654, down by one 654 / 321, left by one 546 / 213
    assert seen[0, 0].tolist() == [[10.5, 8.5, 12.5], [4.5, 2.5, 6.5]]


def test_a_volume_is_mirrored_from_left_to_right() -> None:
    """Along its columns, its last axis: head and foot, front and back stay where they are."""
    volume = torch.arange(12.0).reshape(1, 1, 2, 3, 2)
    seen = View(mirrored=True, shift=(0, 1, 0), contrast=1, brighter=0).of(volume)
    # rows of the first slice 01 / 23 / 45, mirrored 10 / 32 / 54, back by one 54 / 10 / 32
    assert seen[0, 0, 0].tolist() == [[5, 4], [1, 0], [3, 2]]
    assert seen[0, 0, 1].tolist() == [[11, 10], [7, 6], [9, 8]]


def test_views_are_seeded_and_differ() -> None:
    views = [view(seed) for seed in range(20)]
    assert views == [view(seed) for seed in range(20)]
    assert len({chosen.shift for chosen in views}) > 5
    for chosen in views:
        assert all(1 <= abs(pixels) <= 3 for pixels in chosen.shift)
        assert 0.1 <= abs(chosen.contrast - 1) <= 0.2
        assert 0.1 <= abs(chosen.brighter) <= 0.2
