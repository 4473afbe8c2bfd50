"""Dual distillation at one site: each known fault of public code in a step is excluded here."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from ayni.errors import UserError
from ayni.learning.dual_kd import Student, TeacherModel, ask_teacher, feature_loss, response_loss
from ayni.learning.losses import class_doubt, mask_doubt
from ayni.learning.networks import initial_weights, load_weights, seeded_network, weights_of
from ayni.learning.objective import CLASSIFICATION, SEGMENTATION
from ayni.learning.teacher import SITE, Teacher, first_weights
from ayni.task import DualKdSettings, ImageSettings, ResNetSettings, UNetSettings
from ayni.task_checks import check_kind
from ayni.tensors.safe import Floats
from small_volumes import SIZE, own_volumes, volume_task

TASK = volume_task()


def teacher_model(seed: int = 9) -> TeacherModel:
    own = own_volumes(TASK)
    return TeacherModel(seeded_network(TASK.teacher_network, TASK, seed), own.normalise)


def test_doubt_is_a_share_of_what_these_outcomes_allow() -> None:
    """The threshold of two classes must not be used with four."""
    even_4, even_2 = torch.full((1, 4), 0.25), torch.full((1, 2), 0.5)
    assert class_doubt(even_4).item() == pytest.approx(1)
    assert class_doubt(even_2).item() == pytest.approx(1)
    some = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    by_hand = -(0.7 * math.log(0.7) + 3 * 0.1 * math.log(0.1)) / math.log(4)
    assert class_doubt(some).item() == pytest.approx(by_hand)
    voxel = mask_doubt(torch.tensor([[[[[0.5]]], [[[0.9]]]]])).flatten()  # structures are told apart
    assert voxel.tolist() == pytest.approx([1.0, -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))])


def test_where_the_teacher_is_in_doubt_it_teaches_nothing() -> None:
    student = torch.tensor([[0.2, 0.8, 0.5]], requires_grad=True)
    loss = response_loss(student, torch.tensor([[0.6, 0.1, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx((0.4**2 + 0) / 2)
    assert student.grad is not None
    assert student.grad.tolist() == [[pytest.approx(-0.4), 0.0, 0.0]]
    assert response_loss(student, torch.ones(1, 3), torch.zeros(1, 3)).item() == 0


def test_feature_loss_is_a_kl_over_channels_at_each_place() -> None:
    student, teacher = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 3.0]]])
    p = 1 / (1 + math.exp(-1.0))
    first = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)  # the second place agrees
    assert feature_loss(student, teacher).item() == pytest.approx(first / 2, rel=1e-5)
    assert feature_loss(student.repeat(3, 1, 1), teacher.repeat(3, 1, 1)).item() == pytest.approx(first / 2, rel=1e-5)
    with pytest.raises(ValueError, match="two shapes"):
        feature_loss(student, teacher[:, :1])


def test_the_teacher_is_asked_about_noisy_copies_and_never_learns() -> None:
    teacher, x = teacher_model(), torch.rand(2, 1, *SIZE)
    settings = DualKdSettings(passes=3, noise=0.5, max_entropy=0.9)
    taught = ask_teacher(teacher, x, settings, SEGMENTATION, seed=4)
    again = ask_teacher(teacher, x, settings, SEGMENTATION, seed=4)
    other = ask_teacher(teacher, x, settings, SEGMENTATION, seed=5)
    assert torch.equal(taught.probabilities, again.probabilities)
    assert not torch.equal(taught.probabilities, other.probabilities)
    assert torch.equal(taught.sure, (mask_doubt(taught.probabilities) < 0.9).float())
    still = ask_teacher(teacher, x, msgspec.structs.replace(settings, noise=0.0), SEGMENTATION, seed=4)
    assert torch.allclose(still.probabilities, torch.sigmoid(teacher.network(x)), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_student_learns_from_the_teacher_on_unlabelled_volumes() -> None:
    """With the supervised half at one and the same labelled volumes, only the teacher can bring its answer nearer."""
    own, teacher = own_volumes(TASK), teacher_model()
    before = weights_of(teacher.network)

    def distance(settings: DualKdSettings) -> float:
        task = msgspec.structs.replace(TASK, dual_kd=settings)
        student = Student(own, teacher, task, "site")
        for number in range(student.num_steps):
            student.step(number)
        x = teacher.normalise(own.unlabelled_UCHW)
        with torch.no_grad():
            return float((torch.sigmoid(student.small(x)) - torch.sigmoid(teacher.network(x))).pow(2).mean())

    strong = DualKdSettings(response_weight=20.0, max_entropy=1.0, ramp_up=0.0, passes=1)
    assert distance(strong) < 0.8 * distance(msgspec.structs.replace(strong, response_weight=0.0, feature_weight=0.0))
    assert all((before[name] == tensor).all() for name, tensor in weights_of(teacher.network).items())


def test_every_term_reaches_the_student() -> None:
    own, teacher = own_volumes(TASK), teacher_model()
    plain = DualKdSettings(response_weight=0.0, feature_weight=0.0, max_entropy=1.0, ramp_up=0.0, passes=1)

    def after(**changes: float) -> dict[str, object]:
        task = msgspec.structs.replace(TASK, dual_kd=msgspec.structs.replace(plain, **changes))
        student = Student(own, teacher, task, "site")
        student.step(0)
        return {name: tensor.tobytes() for name, tensor in weights_of(student.small).items()}

    assert after() == after()
    results = [after(), after(response_weight=1.0), after(feature_weight=1.0), after(response_weight=1.0, ramp_up=1.0)]
    assert all(one != other for i, one in enumerate(results) for other in results[:i])


def test_a_site_without_unlabelled_volumes_is_taught_on_its_training_volumes() -> None:
    own = own_volumes(TASK, num_unlabelled=0)
    student = Student(own, teacher_model(), TASK, "site")
    assert student.step(0)["taught"] > 0


def test_classification_goes_through_the_same_code() -> None:
    resnet = ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 4, 8, 8), stem_stride=2)
    task = msgspec.structs.replace(
        TASK, kind="classification", image=ImageSettings(depth=16, height=16, width=16),
        networks=msgspec.structs.replace(TASK.networks, small=resnet, large=resnet),
    )  # fmt: skip
    check_kind(task)
    teacher = TeacherModel(seeded_network(resnet, task, 3), teacher_model().normalise)
    taught = ask_teacher(teacher, torch.rand(3, 1, 16, 16, 16), DualKdSettings(), CLASSIFICATION, seed=1)
    assert taught.probabilities.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert taught.sure.shape == (3, 1)
    assert taught.features_BFP.shape[:2] == (3, 8)


def test_networks_whose_deepest_features_differ_are_refused_unless_they_are_not_compared() -> None:
    other = DualKdSettings(teacher=UNetSettings(channels=(4, 8, 32), features=4))
    with pytest.raises(UserError, match="32 and 16 channels"):
        check_kind(msgspec.structs.replace(TASK, dual_kd=other))
    check_kind(msgspec.structs.replace(TASK, dual_kd=msgspec.structs.replace(other, feature_weight=0.0)))


def test_the_teacher_learns_its_volumes() -> None:
    task = msgspec.structs.replace(TASK, dual_kd=DualKdSettings(teacher_steps=120))
    teacher = Teacher(own_volumes(task, num_unlabelled=0), task)
    losses = [teacher.step(number)["private"] for number in range(120)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_first_weights_have_learnt_at_the_centre_and_half_precision_holds_them() -> None:
    own, teacher = own_volumes(TASK, num_unlabelled=0), teacher_model()
    done: list[int] = []
    weights = first_weights(own, teacher, TASK, 60, tell=lambda progress: done.append(progress.step))
    assert done[-1] == 60
    assert all((tensor == tensor.astype(np.float16)).all() for tensor in weights.values())
    student = Student(own, teacher, TASK, SITE)  # the same, step by step
    load_weights(student.small, initial_weights(TASK))
    student.num_steps = 60
    for number in range(60):
        student.step(number)
    assert all((weights[name] == tensor.astype(np.float16)).all() for name, tensor in weights_of(student.small).items())
    x = own.normalise(own.train_NCHW)

    def loss(some: dict[str, Floats]) -> float:
        network = seeded_network(TASK.small_network, TASK, 0)
        load_weights(network, some)
        with torch.no_grad():
            return float(SEGMENTATION.supervised(network(x), own.train_truth))

    assert loss(weights) < 0.8 * loss(initial_weights(TASK))
