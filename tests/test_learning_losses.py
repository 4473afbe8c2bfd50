"""Each known fault of public FedHelp code that concerns classification is excluded by a number worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ayni.learning.losses import distillation_loss, ranking_loss


def test_divergence_is_summed_over_classes_and_averaged_over_images() -> None:
    teacher_BC = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    student_BC = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    # first image: .5 ln(.5/.25) + .5 ln(.5/.75) = .143841; second: 0; mean over two images (not over four entries)
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert distillation_loss(student_BC, teacher_BC, temperature=1.0).item() == pytest.approx(expected, abs=1e-6)


def test_divergence_measures_from_the_teacher() -> None:
    teacher_BC = torch.log(torch.tensor([[0.9, 0.1]]))
    student_BC = torch.log(torch.tensor([[0.5, 0.5]]))
    # KL(teacher || student) = .9 ln 1.8 + .1 ln .2 = .368064; the other way round it would be .510826
    assert distillation_loss(student_BC, teacher_BC, temperature=1.0).item() == pytest.approx(0.368064, abs=1e-5)


def test_temperature_softens_both_and_its_square_keeps_the_scale() -> None:
    teacher_BC, student_BC = torch.tensor([[2.0 * math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    # at T = 2 the teacher says (3/4, 1/4): KL = .75 ln 1.5 + .25 ln .5 = .130812, times 4 = .523248
    assert distillation_loss(student_BC, teacher_BC, temperature=2.0).item() == pytest.approx(0.523248, abs=1e-5)


def test_the_hinge_rewards_agreement_not_disagreement() -> None:
    teacher_BC = torch.tensor([[0.0, 3.0]])
    agrees_BC, disagrees_BC = torch.tensor([[-1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
    assert ranking_loss(agrees_BC, teacher_BC, top_k=1, margin=0.1).item() == 0.0  # .1 - 2 < 0
    assert ranking_loss(disagrees_BC, teacher_BC, top_k=1, margin=0.1).item() == pytest.approx(2.1)  # .1 - (-2)


def test_the_hinge_is_a_mean_over_pairs_and_images() -> None:
    teacher_BC = torch.tensor([[9.0, 5.0, 1.0], [9.0, 5.0, 1.0]])
    student_BC = torch.tensor([[1.0, 0.0, 3.0], [5.0, 5.0, 0.0]])
    # top 2 = {0, 1}, outside = {2}; first image: .5 - (1 - 3) = 2.5 and .5 - (0 - 3) = 3.5; second: 0 and 0
    assert ranking_loss(student_BC, teacher_BC, top_k=2, margin=0.5).item() == pytest.approx(6.0 / 4)


def test_the_hinge_teaches_the_order_alone() -> None:
    student_BC = torch.tensor([[0.3, -0.2, 0.1]])
    weak_BC, strong_BC = torch.tensor([[0.02, 0.01, 0.0]]), torch.tensor([[50.0, 2.0, -30.0]])
    weak = ranking_loss(student_BC, weak_BC, top_k=1, margin=0.7)
    assert weak.item() == ranking_loss(student_BC, strong_BC, top_k=1, margin=0.7).item()


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: distillation_loss(s, t, temperature=1.0),
        lambda s, t: ranking_loss(s, t, top_k=1, margin=1.0),
    ],
)
def test_the_student_learns_and_the_teacher_does_not(loss) -> None:  # type: ignore[no-untyped-def]
    student_BC = torch.tensor([[0.2, -0.2]], requires_grad=True)
    teacher_BC = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    loss(student_BC, teacher_BC).backward()
    assert teacher_BC.grad is None
    assert student_BC.grad is not None
    assert student_BC.grad[0, 0] > 0 > student_BC.grad[0, 1]  # a step down moves the student to the teacher's class


@pytest.mark.parametrize("num_copies", [2, 5])
def test_no_term_depends_on_the_batch_size(num_copies: int) -> None:
    student_BC, teacher_BC = torch.tensor([[0.2, -0.4, 1.0]]), torch.tensor([[1.0, 0.0, -1.0]])
    many = student_BC.repeat(num_copies, 1), teacher_BC.repeat(num_copies, 1)
    for_one = distillation_loss(student_BC, teacher_BC, temperature=1.0)
    assert distillation_loss(*many, temperature=1.0).item() == pytest.approx(for_one.item(), abs=1e-6)
    hinge = ranking_loss(student_BC, teacher_BC, top_k=1, margin=0.1)
    assert ranking_loss(*many, top_k=1, margin=0.1).item() == pytest.approx(hinge.item(), abs=1e-6)


def test_one_channel_is_refused_because_its_softmax_says_nothing() -> None:
    with pytest.raises(ValueError, match="C >= 2"):
        distillation_loss(torch.zeros(3, 1), torch.ones(3, 1), temperature=1.0)
