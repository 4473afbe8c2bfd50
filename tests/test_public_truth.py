"""Labels of public images that travel: the artefact, what a clinic's public head learns of them, and who gets them."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn
from torch.nn import functional

from ayni.errors import IntegrityError
from ayni.learning.fedhelp import clinic_public_loss
from ayni.learning.learners import Clinic
from ayni.learning.networks import build_network, weights_of
from ayni.learning.site_data import PublicImages, load_public_images
from ayni.task import FedHelpSettings, ImageSettings, Kind, Task
from ayni.tensors import safe
from ayni.tensors.truth import PublicTruth, TruthInfo, Values, decode_truth, encode_truth
from ayni_coordinator.public_set import encoded_truth
from ayni_coordinator.simulation.methods import (
    ayni_labelled_rounds,
    ayni_labelled_start_own,
    ayni_labelled_throughout,
    fedhelp,
)
from small_setups import NUM_PUBLIC, RESNET, SIDE, small_setup, small_task, squares

CLASSES = ("dark", "bright")
KINDS: list[Kind] = ["classification", "segmentation"]


def truth_of(values: Values) -> PublicTruth:
    return PublicTruth(TruthInfo(image_set="ab", classes=CLASSES, shape=values.shape), values)


@given(
    st.one_of(
        arrays.arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 1)),
        arrays.arrays(np.uint8, arrays.array_shapes(min_dims=4, max_dims=5, max_side=5), elements=st.integers(0, 1)),
    )
)
def test_truth_comes_out_as_it_went_in(values: Values) -> None:
    decoded = decode_truth(encode_truth(truth_of(values)))
    assert np.array_equal(decoded.values, values)
    assert decoded.values.dtype == values.dtype
    assert decoded.info == truth_of(values).info


def bytes_of(shape: tuple[int, ...], plain: bytes, *, deflate: bool = True) -> bytes:
    info = msgspec.json.encode(TruthInfo(image_set="ab", classes=CLASSES, shape=shape)).decode()
    packed = zlib.compress(plain) if deflate else plain
    return safe.encode({"values": np.frombuffer(packed, np.uint8)}, {"truth": info})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes_of((4,), bytes(80_000_000)), "promised length"),
        (bytes_of((4,), bytes(7)), "promised length"),
        (bytes_of((4,), b"no deflate", deflate=False), "damaged"),
        (bytes_of((2,), b"\x00\x00\x02\x00"), "class 2, of 2"),
        (bytes_of((0,), b""), "shape"),
        (bytes_of((-1,), b""), "shape"),
        (bytes_of((2, 3), bytes(6)), "shape"),
        (bytes_of((2**40, 1, 8, 8), b""), "shape"),
        (safe.encode({"values": np.zeros(1, np.uint8)}), "no truth"),
        (b"", "no safetensors"),
    ],
    ids=range(10),
)
def test_what_is_no_truth_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        decode_truth(data)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_must_be_those_of_this_set_and_task(kind: Kind, tmp_path: Path) -> None:
    task = small_task(kind)
    public, (_, truth) = small_setup(task).public, squares(NUM_PUBLIC, kind, 99)
    (tmp_path / "set").write_bytes(public.artefact)

    def load(truth: np.ndarray[tuple[int, ...], np.dtype[np.generic]], image_set: str, of: Task) -> PublicImages | None:
        (tmp_path / "labels").write_bytes(encoded_truth(truth, image_set, of))
        return load_public_images(task, str(tmp_path / "set"), None, None, str(tmp_path / "labels"))

    found = load(truth[:4], public.images.sha256, task)
    assert found is not None
    assert found.truth is not None
    assert np.array_equal(found.truth.numpy(), truth[:4])
    with pytest.raises(IntegrityError, match="another public set"):
        load(truth, "0" * 64, task)
    with pytest.raises(IntegrityError, match="or other classes"):
        load(truth, public.images.sha256, msgspec.structs.replace(task, classes=("left", "right", "both")))
    with pytest.raises(IntegrityError, match="for 6 public images"):
        load(np.concatenate([truth, truth]), public.images.sha256, task)
    if kind == "segmentation":
        with pytest.raises(IntegrityError, match="labels of shape"):
            load(truth[:, :, 1:], public.images.sha256, task)


def test_the_last_outputs_of_the_public_head_learn_labels_and_the_first_the_answers() -> None:
    """Of four images the second and the third have labels."""
    torch.manual_seed(0)
    network, head = build_network(RESNET, ImageSettings(height=SIDE, width=SIDE), 2), nn.Linear(8, 3 + 2)
    x_BCHW, guidance_BG, truth = torch.randn(4, 1, SIDE, SIDE), torch.randn(4, 3), torch.tensor([1, 0])
    is_labelled_B = torch.tensor([False, True, True, False])
    loss = clinic_public_loss(
        network, head, x_BCHW, guidance=guidance_BG, consensus=None, consensus_weight=0.0, truth=truth,
        is_labelled_B=is_labelled_B, settings=FedHelpSettings(guidance_weight=0.5, label_weight=2.0),
    )  # fmt: skip
    outputs_BF = head(network.features(x_BCHW))
    log_BG, teacher_BG = functional.log_softmax(outputs_BF[:, :3], dim=1), functional.softmax(guidance_BG, dim=1)
    divergence = (teacher_BG * (teacher_BG.log() - log_BG)).sum(dim=1).mean()
    log_BC = functional.log_softmax(outputs_BF[:, 3:], dim=1)
    by_hand = 0.5 * divergence - 2.0 * (log_BC[1, 1] + log_BC[2, 0]) / 2
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert network.head.weight.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.extractor.parameters())


def clinic(kind: Kind, *, num_labels: int, guided: bool, **changes: float) -> Clinic:
    task = fedhelp.with_settings(label_weight=1.0, **changes)(small_task(kind))
    setup = small_setup(task, ayni_labelled_rounds.METHOD)
    public = setup.public.images
    assert public.truth is not None
    public = dataclasses.replace(public, truth=public.truth[:num_labels], guidance=public.guidance if guided else None)
    return Clinic(setup.sites[0].own, public, task, "a-clinic", distill=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("guided", "num_labels"), [(True, NUM_PUBLIC), (True, 2), (False, NUM_PUBLIC), (False, 2)])
def test_a_clinic_takes_public_steps_by_labels_with_and_without_a_foundation_model(
    kind: Kind, guided: bool, num_labels: int
) -> None:
    learner = clinic(kind, num_labels=num_labels, guided=guided)
    num_answers = {"classification": 3, "segmentation": 1}[kind] if guided else 0
    assert learner.public_head is not None
    weight = learner.public_head.get_parameter("weight")
    assert len(weight) == num_answers + len(learner.task.classes)
    first = weight.detach().clone()
    losses = [learner.step(number) for number in range(3)]
    assert all(step["public"] > 0 for step in losses)
    moved = (weight.detach() - first).flatten(1).abs().sum(dim=1)
    assert bool((moved > 0).all())  # also the outputs for labels, and those for answers
    assert not any("public" in name for name in weights_of(learner.small))  # it stays here


def test_without_a_label_in_the_batch_and_before_hospitals_answer_nothing_is_learnt() -> None:
    learner = clinic("classification", num_labels=1, guided=False, consensus_weight=1.0)
    before = weights_of(learner.small)
    number = next(n for n in range(9) if not (learner.public_batches.at(n).chosen_B < 1).any())
    assert learner._public_step(number, 0.1) == 0.0
    assert all(np.array_equal(before[name], tensor) for name, tensor in weights_of(learner.small).items())


def test_labels_travel_to_clinics_alone_and_are_charged() -> None:
    for weight in (0.0, 1.0):
        method = dataclasses.replace(
            ayni_labelled_rounds.METHOD, change_task=fedhelp.with_settings(label_weight=weight)
        )
        setup = small_setup(small_task("classification"), method)
        _, broadcast = method.open(setup)
        assert ("labels" in broadcast.to("clinic")) == (weight > 0)
        assert "labels" not in broadcast.to("hospital")
        if weight:
            found = decode_truth(broadcast.to("clinic")["labels"])
            assert found.values.tolist() == [0, 1] * (NUM_PUBLIC // 2)
            assert found.info.image_set == hashlib.sha256(setup.public.artefact).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_labels_before_and_in_the_rounds_teach_the_first_weights_and_travel(kind: Kind) -> None:
    """`ayni_labelled_throughout` begins as `ayni_labelled_start_own` does, with its budget, and its labels travel."""
    first = []
    for method in (ayni_labelled_start_own.METHOD, ayni_labelled_throughout.METHOD):
        setup = small_setup(small_task(kind), method)
        _, broadcast = method.open(setup)
        first.append(broadcast.to_all["model"])
        travel = method is ayni_labelled_throughout.METHOD
        assert ("labels" in broadcast.to("clinic")) == travel
        learner = method.init(setup, setup.sites[0]).learner
        assert (learner.labels is not None) == travel
        assert learner.guidance is None
        batches = learner.num_steps * (2 if travel else 1)  # a private one and a public one, or a private one
        assert batches == setup.num_rounds * setup.steps_per_round("clinic")
    assert first[0] == first[1]
