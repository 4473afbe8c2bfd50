"""First weights that the foundation model has taught at the centre: what they learn, and that a cut changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ayni.errors import UserError
from ayni.jobs import Progress
from ayni.learning import steps
from ayni.learning.head_start import HeadStart, taught_weights
from ayni.learning.networks import initial_weights, load_weights, seeded_network, weights_of
from ayni.learning.site_data import PublicImages
from ayni.tensors import safe
from ayni_coordinator.simulation.averaging import digest
from ayni_coordinator.simulation.method import Method, Setup
from ayni_coordinator.simulation.methods import ayni_head_start, ayni_head_start_alone, ayni_head_start_fedavg
from ayni_coordinator.simulation.methods.ayni_head_start import START_STEPS
from ayni_coordinator.simulation.methods.fedhelp import with_settings
from ayni_coordinator.simulation.training import first_weights
from small_setups import small_public, small_setup, small_task, squares

SQUARES = small_task("segmentation")


def public_with_outlines() -> PublicImages:
    """Twenty images, and a foundation model that outlines the squares rightly."""
    pixels_NHWC, masks_NSHW = squares(20, "segmentation", 4)
    public = small_public(SQUARES).images
    pixels_PCHW = torch.from_numpy(pixels_NHWC).movedim(-1, 1).contiguous()
    return dataclasses.replace(public, pixels_PCHW=pixels_PCHW, guidance=torch.from_numpy(masks_NSHW) * 10.0 - 5.0)


def test_outlines_of_the_tasks_own_structures_teach_the_head_that_diagnoses() -> None:
    """On squares that the foundation model never saw; random weights outline none of them."""
    public, network = public_with_outlines(), seeded_network(SQUARES.small_network, SQUARES, 0)
    pixels_NHWC, masks_NSHW = squares(10, "segmentation", 5)
    x_NCHW = public.normalise(torch.from_numpy(pixels_NHWC).movedim(-1, 1))
    overlaps = []
    for weights in (initial_weights(SQUARES), taught_weights(public, SQUARES, 150)):
        load_weights(network, weights)
        with torch.no_grad():
            seen = (network(x_NCHW) > 0).numpy()
        overlaps.append(2 * (seen & (masks_NSHW > 0)).sum() / (seen.sum() + masks_NSHW.sum()))
    assert overlaps[0] < 0.6 < 0.9 < overlaps[1]


def test_classes_of_the_foundation_models_own_leave_the_head_that_diagnoses_as_it_was() -> None:
    """Also of a segmentation, when it outlines another number of structures."""
    task = small_task("classification")
    two_kinds = torch.cat([public_with_outlines().guidance] * 2, dim=1)  # type: ignore[list-item]
    other = dataclasses.replace(public_with_outlines(), guidance=two_kinds)
    for public, one in ((small_public(task).images, task), (other, SQUARES)):
        before, after = initial_weights(one), taught_weights(public, one, 3)
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert changed
        assert not {name for name in changed if name.startswith("head.")}


def test_half_precision_holds_them_and_the_same_seed_gives_the_same_bits() -> None:
    one, two = (taught_weights(public_with_outlines(), SQUARES, 3) for _ in range(2))
    assert safe.digest(one) == safe.digest(two)
    for tensor in one.values():
        assert np.array_equal(tensor, tensor.astype(np.float16).astype(np.float32))


def test_what_was_cut_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(steps, "PROGRESS_EVERY_S", 0.0)
    public, checkpoint, done = public_with_outlines(), tmp_path / "checkpoint.safetensors", []

    def cut(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught_weights(public, SQUARES, 6, checkpoint=checkpoint, tell=cut)
    resumed = taught_weights(public, SQUARES, 6, checkpoint=checkpoint, tell=lambda one: done.append(one.step))
    assert done[0] > 3
    assert safe.digest(resumed) == safe.digest(taught_weights(public, SQUARES, 6))
    # answers that changed meanwhile are another lesson: the checkpoint is not taken up
    assert public.guidance is not None
    others, begun = dataclasses.replace(public, guidance=-public.guidance), []
    taught_weights(others, SQUARES, 6, checkpoint=checkpoint, tell=lambda one: begun.append(one.step))
    assert begun[0] == 1


def test_without_a_foundation_model_it_is_refused() -> None:
    public = dataclasses.replace(public_with_outlines(), guidance=None)
    with pytest.raises(UserError, match=r"Set guidance\.source"):
        HeadStart(public, SQUARES, 3)


def test_in_the_simulation_all_that_begin_so_begin_with_the_same() -> None:
    digests = set()
    for method in (ayni_head_start.METHOD, ayni_head_start_fedavg.METHOD):
        model, broadcast = method.open(quick_setup(method))
        digests.add(digest(model))
        assert set(broadcast.to("clinic")) <= {"model", "public-set"}  # the answers do not travel
    setup = quick_setup(ayni_head_start_alone.METHOD)
    alone = ayni_head_start_alone.init(setup, setup.sites[0])  # a clinic
    digests.add(safe.digest(weights_of(alone.network)))
    assert digests == {safe.digest(first_weights(setup))}
    assert digests != {safe.digest(initial_weights(SQUARES))}


def quick_setup(method: Method) -> Setup:
    """With three steps in the place of the method's own, of which there are some."""
    setup = small_setup(SQUARES, method)
    assert setup.task.fedhelp.start_steps == START_STEPS
    return dataclasses.replace(setup, task=with_settings(start_steps=3)(setup.task))
