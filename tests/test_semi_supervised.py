"""The rivals of dual distillation: what each takes from unlabelled images, with numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ayni.learning.batches import Batch
from ayni_coordinator.simulation.method import Setup
from ayni_coordinator.simulation.methods import fixmatch, mean_teacher, pseudo_label
from ayni_coordinator.simulation.methods._semi_supervised import State, hard_loss, init
from ayni_coordinator.simulation.run import method_named
from small_setups import small_setup, small_task


def begun(name: str) -> tuple[Setup, State]:
    method = method_named(name)
    setup = small_setup(small_task("segmentation"), method)
    return setup, init(setup, setup.sites[0])


def constant(state: State, value: float) -> None:
    with torch.no_grad():
        for weight in state.network.parameters():
            weight.fill_(value)


def test_the_mean_teacher_follows_the_student_slowly_and_not_the_other_way_round() -> None:
    """A running mean that runs backwards (nearly all of the student, a little of the teacher) is a known fault."""
    setup, state = begun("mean_teacher")
    constant(state, 1.0)
    mean_teacher.before_round(setup, state)
    constant(state, 2.0)
    state.trainer.taken = 10_000  # no longer young: it keeps .99 of itself
    mean_teacher.follow(setup, state)
    assert all(torch.allclose(weight, torch.tensor(1.01)) for weight in state.kept.parameters())
    assert all((weight == 2.0).all() for weight in state.network.parameters())
    state.trainer.taken = 1  # young: after one step it is the mean of both
    mean_teacher.follow(setup, state)
    assert all(torch.allclose(weight, torch.tensor(1.505)) for weight in state.kept.parameters())


def test_the_mean_teacher_stays_at_its_site_from_round_to_round() -> None:
    setup, state = begun("mean_teacher")
    mean_teacher.before_round(setup, state)
    kept = state.kept
    mean_teacher.before_round(setup, state)
    assert state.kept is kept
    assert not any(weight.requires_grad for weight in kept.parameters())


def test_only_what_is_sure_counts_as_a_label_on_either_side() -> None:
    setup = small_setup(small_task("segmentation"))
    probabilities = torch.tensor([[[[0.97, 0.94, 0.5, 0.02]]]])
    logits = torch.tensor([[[[1.0, 5.0, -5.0, 1.0]]]], requires_grad=True)
    loss = hard_loss(setup, logits, probabilities, 0.95)
    inside, outside = math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(1.0))
    assert loss.item() == pytest.approx((inside + outside) / 4)  # a mean over all four places
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert [bool(gradient) for gradient in logits.grad.flatten()] == [True, False, False, True]


def test_classes_are_believed_by_their_highest_probability() -> None:
    setup = small_setup(small_task("classification"))
    probabilities = torch.tensor([[0.96, 0.04], [0.6, 0.4]])
    loss = hard_loss(setup, torch.tensor([[0.0, 1.0], [9.0, 0.0]]), probabilities, 0.95)
    assert loss.item() == pytest.approx(math.log(1 + math.e) / 2)


def test_fixmatch_changes_greys_strongly_and_hides_one_box() -> None:
    x = torch.full((3, 1, 20, 10), 5.0)
    changed = fixmatch.strongly_changed(x, torch.Generator().manual_seed(1))
    hidden = changed == 0
    assert hidden.sum(dim=(1, 2, 3)).tolist() == [8 * 4] * 3  # .4 of each side
    rows = hidden[0, 0].any(dim=1).nonzero().flatten()
    assert rows.tolist() == list(range(int(rows[0]), int(rows[0]) + 8))
    assert (x == 5.0).all()
    assert changed[~hidden].std() > 0.3
    volume = fixmatch.strongly_changed(torch.full((1, 1, 10, 10, 10), 5.0), torch.Generator().manual_seed(1))
    assert int((volume == 0).sum()) == 4**3


def test_pseudo_labels_come_from_the_global_model_and_begin_after_a_third() -> None:
    setup, state = begun("pseudo_label")
    pseudo_label.before_round(setup, state)
    constant(state, 0.0)  # the site's network goes on, the labels are still those of the round's first model
    assert any((weight != 0).any() for weight in state.kept.parameters())
    batch: Batch = state.unlabelled.at(0)
    state.trainer.taken = 0
    assert pseudo_label.labelled_by_itself(setup, state, batch).item() == 0
    state.trainer.taken = state.trainer.num_steps - 1
    with torch.no_grad():  # surely nothing anywhere
        state.kept.head.weight.zero_()
        state.kept.head.bias.fill_(-9.0)
    assert pseudo_label.labelled_by_itself(setup, state, batch).item() == pytest.approx(math.log(2), rel=1e-5)


def test_their_sites_learn_from_their_unlabelled_images() -> None:
    setup, state = begun("fixmatch")
    assert len(state.unlabelled.pixels_NCHW) == 5
    assert torch.equal(state.unlabelled.pixels_NCHW, setup.sites[0].own.unlabelled_UCHW)
