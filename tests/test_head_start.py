"""First weights that the centre has taught, by labels or a foundation model: what they learn, and that a cut changes
nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from ayni.errors import UserError
from ayni.jobs import Progress
from ayni.learning import steps
from ayni.learning.head_start import HeadStart, taught_weights
from ayni.learning.networks import initial_weights, load_weights, seeded_network, weights_of
from ayni.learning.site_data import PublicImages
from ayni.task import Kind, NetworkSettings, ResNetSettings, Task
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni_coordinator.simulation.averaging import digest
from ayni_coordinator.simulation.collection import Truth
from ayni_coordinator.simulation.method import Method, Public, Setup
from ayni_coordinator.simulation.methods import (
    ayni_head_start,
    ayni_head_start_alone,
    ayni_head_start_fedavg,
    ayni_labelled_start,
    ayni_labelled_start_alone,
    ayni_labelled_start_fedavg,
)
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


def public_with_truth(kind: Kind, num_labelled: int = 20) -> PublicImages:
    """Twenty images, no foundation model, and the truth of the first `num_labelled`."""
    pixels_NHWC, truth = squares(20, kind, 4)
    public = small_public(small_task(kind)).images
    pixels_PCHW = torch.from_numpy(pixels_NHWC).movedim(-1, 1).contiguous()
    told = torch.from_numpy(truth[:num_labelled])
    return dataclasses.replace(public, pixels_PCHW=pixels_PCHW, guidance=None, truth=told)


def answers_of(weights: Mapping[str, Floats], task: Task, public: PublicImages) -> tuple[Floats, Truth]:
    """What the network says of twenty images that nobody has shown it, and the truth."""
    network = seeded_network(task.small_network, task, 0)
    load_weights(network, weights)
    pixels_NHWC, truth = squares(20, task.kind, 5)
    with torch.no_grad():
        return network(public.normalise(torch.from_numpy(pixels_NHWC).movedim(-1, 1))).numpy(), truth


def dice(weights: Mapping[str, Floats], public: PublicImages) -> float:
    answers, truth = answers_of(weights, SQUARES, public)
    seen = answers > 0
    return float(2 * (seen & (truth > 0)).sum() / (seen.sum() + truth.sum()))


def auc(weights: Mapping[str, Floats], task: Task, public: PublicImages) -> float:
    """In which share of the pairs of a bright and a dark image the bright one is called brighter."""
    answers, truth = answers_of(weights, task, public)
    margin = answers[:, 1] - answers[:, 0]
    return float((margin[truth == 1][:, None] > margin[truth == 0]).mean())


def test_outlines_of_the_tasks_own_structures_teach_the_head_that_diagnoses() -> None:
    """On squares that the foundation model never saw; random weights outline none of them."""
    public = public_with_outlines()
    assert dice(initial_weights(SQUARES), public) < 0.6 < 0.9 < dice(taught_weights(public, SQUARES, 150), public)


def test_masks_alone_teach_the_head_that_diagnoses() -> None:
    """One image in four has none."""
    public = public_with_truth("segmentation", 15)
    assert dice(initial_weights(SQUARES), public) < 0.6 < 0.9 < dice(taught_weights(public, SQUARES, 150), public)


def test_labels_alone_teach_the_head_that_diagnoses() -> None:
    """One image in four has none. Labels the wrong way round teach the opposite: it is they that count."""
    wider = ResNetSettings(layers=(1, 1, 1, 1), planes=(8, 8, 8, 8), stem_stride=2)
    task = small_task("classification")
    task = msgspec.structs.replace(
        task,
        networks=NetworkSettings(small=wider, large=wider),
        training=msgspec.structs.replace(task.training, learning_rate=1e-2, batch_size=8),
    )
    public = public_with_truth("classification", 15)
    assert public.truth is not None
    swapped = dataclasses.replace(public, truth=1 - public.truth)
    assert 0.1 < auc(initial_weights(task), task, public) < 0.9
    assert auc(taught_weights(public, task, 100), task, public) > 0.9
    assert auc(taught_weights(swapped, task, 100), task, public) < 0.1


def test_images_with_neither_truth_nor_answer_teach_nothing() -> None:
    """Five are left to learn from, whatever the others are; the fifth counts."""
    public = public_with_truth("segmentation", 5)
    digests = []
    for first in (20, 5, 4):
        pixels_PCHW = public.pixels_PCHW.clone()
        pixels_PCHW[first:] = 255 - pixels_PCHW[first:]
        digests.append(after_six_steps(dataclasses.replace(public, pixels_PCHW=pixels_PCHW)))
    assert digests[0] == digests[1] != digests[2]


def after_six_steps(public: PublicImages) -> str:
    """With four images in a batch every one of twenty has come by after five."""
    return safe.digest(taught_weights(public, SQUARES, 6))


def test_outlines_teach_only_images_without_truth() -> None:
    """Eight of twenty have truth: what the foundation model says of these changes nothing, of the ninth it does."""
    public, digests = public_with_outlines(), []
    assert public.guidance is not None
    truth = torch.from_numpy(squares(20, "segmentation", 4)[1][:8])
    for wrong in (slice(0), slice(8), slice(8, 9)):
        guidance = public.guidance.clone()
        guidance[wrong] *= -1
        digests.append(after_six_steps(dataclasses.replace(public, truth=truth, guidance=guidance)))
    assert digests[0] == digests[1] != digests[2]
    # where all have truth, the foundation model has nothing to say
    whole = public_with_truth("segmentation")
    assert after_six_steps(whole) == after_six_steps(dataclasses.replace(whole, guidance=public.guidance))
    assert after_six_steps(whole) not in digests


def test_classes_of_the_foundation_models_own_teach_beside_truth_also_images_that_have_it() -> None:
    """All six images have truth, and answers of three classes: each changes what the network learns."""
    task = small_task("classification")
    both = small_public(task, labelled=True).images
    by_truth, by_answers = dataclasses.replace(both, guidance=None), dataclasses.replace(both, truth=None)
    first = initial_weights(task)
    one, two, three = (taught_weights(public, task, 3) for public in (both, by_truth, by_answers))
    assert len({safe.digest(weights) for weights in (first, one, two, three)}) == 4
    heads = [{name: tensor for name, tensor in weights.items() if name.startswith("head.")} for weights in (one, two)]
    for head in heads:
        assert head
        assert all(not np.array_equal(tensor, first[name]) for name, tensor in head.items())
    # one step with each half of the lesson is one step with both: their losses are added
    learner = HeadStart(both, task, 1)
    apart = [HeadStart(public, task, 1).step(0)["public"] for public in (by_truth, by_answers)]
    assert learner.step(0)["public"] == pytest.approx(sum(apart), rel=1e-5)


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


def with_both() -> PublicImages:
    """Outlines of all twenty images, and the truth of eight."""
    return dataclasses.replace(public_with_outlines(), truth=public_with_truth("segmentation", 8).truth)


LESSONS: dict[str, Callable[[], PublicImages]] = {
    "answers": public_with_outlines,
    "truth": lambda: public_with_truth("segmentation", 8),
    "both": with_both,
}


@pytest.mark.parametrize("lesson", LESSONS)
def test_what_was_cut_goes_on_to_the_same_weights(lesson: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(steps, "PROGRESS_EVERY_S", 0.0)
    public, checkpoint, done = LESSONS[lesson](), tmp_path / "checkpoint.safetensors", []

    def cut(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught_weights(public, SQUARES, 6, checkpoint=checkpoint, tell=cut)
    resumed = taught_weights(public, SQUARES, 6, checkpoint=checkpoint, tell=lambda one: done.append(one.step))
    assert done[0] > 3
    assert safe.digest(resumed) == safe.digest(taught_weights(public, SQUARES, 6))
    # answers or truth that changed meanwhile are another lesson: the checkpoint is not taken up
    changed = []
    if public.guidance is not None:
        changed.append(dataclasses.replace(public, guidance=-public.guidance))
    if public.truth is not None:
        changed.append(dataclasses.replace(public, truth=1 - public.truth))
    assert changed
    for other in changed:
        taught_weights(public, SQUARES, 6, checkpoint=checkpoint)
        begun: list[Progress] = []
        taught_weights(other, SQUARES, 6, checkpoint=checkpoint, tell=begun.append)
        assert begun[0].step == 1


def test_with_neither_truth_nor_answers_it_is_refused() -> None:
    public = dataclasses.replace(public_with_outlines(), guidance=None)
    with pytest.raises(UserError, match=r"Set guidance\.source or public_set_labelled"):
        HeadStart(public, SQUARES, 3)


STARTS = {
    "answers": (ayni_head_start.METHOD, ayni_head_start_fedavg.METHOD, ayni_head_start_alone.METHOD),
    "truth": (ayni_labelled_start.METHOD, ayni_labelled_start_fedavg.METHOD, ayni_labelled_start_alone.METHOD),
}


@pytest.mark.parametrize("start", STARTS)
def test_in_the_simulation_all_that_begin_so_begin_with_the_same(start: str) -> None:
    """Answers and truth do not travel: the only other thing sent is the public set, as it is without them."""
    federated, by_fedavg, alone = STARTS[start]
    digests, without = set(), small_public(SQUARES).artefact
    for method in (federated, by_fedavg):
        model, broadcast = method.open(quick_setup(method))
        digests.add(digest(model))
        for sent in (broadcast.to("clinic"), broadcast.to("hospital")):
            assert set(sent) <= {"model", "public-set"}
            assert sent.get("public-set", without) == without
    setup = quick_setup(alone)
    digests.add(safe.digest(weights_of(alone.init(setup, setup.sites[0]).network)))  # a clinic
    assert digests == {safe.digest(first_weights(setup))}
    assert digests != {safe.digest(initial_weights(SQUARES))}


def test_in_the_simulation_truth_teaches_other_first_weights_than_answers() -> None:
    answers, truth = (first_weights(quick_setup(methods[0])) for methods in STARTS.values())
    assert safe.digest(answers) != safe.digest(truth)


def quick_setup(method: Method) -> Setup:
    """With three steps in the place of the method's own, of which there are some; unless the method wants the
    foundation model's answers, there are none."""
    setup = small_setup(SQUARES, method)
    assert setup.task.fedhelp.start_steps == START_STEPS
    if not method.guided:
        images = dataclasses.replace(setup.public.images, guidance=None)
        setup = dataclasses.replace(setup, public=Public(setup.public.artefact, images, None, b""))
    return dataclasses.replace(setup, task=with_settings(start_steps=3)(setup.task))
