"""Sites that never trained: a small federation of squares is trained without one group, and every way answers there."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from ayni.learning.fine_tune import fine_tuned
from ayni.learning.networks import seeded_network
from ayni.learning.site_data import own_images
from ayni.learning.statistics import training_statistics
from ayni.task import Task
from ayni_coordinator.simulation.unseen import routing
from ayni_coordinator.simulation.unseen.merging import jensen_shannon
from ayni_coordinator.simulation.unseen.site import LONG_WORKLIST, WORKLIST, Participant, UnseenSite
from ayni_coordinator.simulation.unseen.ways import WAYS
from ayni_export.routed import start
from ayni_export.routed.at_home import Told
from small_setups import few_images_task, small_setup, small_task, squares

TASKS = [small_task("classification"), small_task("segmentation"), few_images_task()]
NUM_IMAGES = 20


@pytest.fixture(scope="module", params=TASKS, ids=["classification", "segmentation", "frozen layers"])
def site(request: pytest.FixtureRequest) -> UnseenSite:
    """Three experts; the second one's site has images like these, the third one's are far darker."""
    task: Task = request.param
    setup = small_setup(task)
    network = seeded_network(task.small_network, task, 1).eval()
    pixels_NHWC, truth = squares(NUM_IMAGES, task.kind, 50)
    dark_NHWC, dark_truth = squares(10, task.kind, 51)
    likes = own_images(*squares(10, task.kind, 52), task, "alike")
    darks = own_images(dark_NHWC // 20, dark_truth, task, "dark")
    participants = [
        Participant(name, own, training_statistics(network, own.train_NCHW, setup.normalise), Told(2, 0.1, 0.0))
        for name, own in (("alike", likes), ("dark", darks))
    ]
    tuned = [fine_tuned(network, each.own, setup.normalise, task, each.name, 4) for each in participants]
    few = own_images(*squares(8, task.kind, 53), task, "unseen")
    return UnseenSite(
        task=task,
        network=network,
        normalise=setup.normalise,
        states=[dict(one.state_dict()) for one in (network, *tuned)],
        participants=participants,
        pixels_NKHW=torch.from_numpy(np.moveaxis(pixels_NHWC, 3, 1).copy()),
        truth=torch.from_numpy(truth),
        few=few,
    )


@pytest.mark.parametrize("name", WAYS)
def test_every_way_answers_every_image_the_same_again_and_leaves_the_experts_alone(site: UnseenSite, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in site.stack.items()}
    torch.use_deterministic_algorithms(True)
    try:
        first, again = WAYS[name](site), WAYS[name](site)
    finally:
        torch.use_deterministic_algorithms(False)
    shape = (NUM_IMAGES, 2) if site.task.kind == "classification" else (NUM_IMAGES, 1, 16, 16)
    assert first.shape == shape
    assert bool(torch.isfinite(first).all())
    assert torch.equal(first, again)
    assert all(torch.equal(before[key], tensor) for key, tensor in site.stack.items())


def test_one_expert_is_that_expert_and_the_soup_is_the_mean_of_weights(site: UnseenSite) -> None:
    for number, state in enumerate(site.states):
        one = site.one(number)
        assert all(torch.equal(one[name], tensor) for name, tensor in state.items())
    soup = site.soup()
    for name, tensor in site.states[0].items():
        mean = torch.stack([state[name].double() for state in site.states]).mean(dim=0)
        assert torch.allclose(soup[name].double(), mean, atol=1e-6), (name, tensor.shape)


def test_worklists_hold_every_image_once_and_are_about_as_long_as_a_clinics(site: UnseenSite) -> None:
    cut = [list(range(NUM_IMAGES))[worklist] for worklist in site.worklists()]
    assert [image for part in cut for image in part] == list(range(NUM_IMAGES))
    assert all(WORKLIST // 2 <= len(part) <= 2 * WORKLIST for part in cut)
    assert site.worklists(LONG_WORKLIST) == [slice(0, NUM_IMAGES)]
    assert len(site.worklists(5)) == 4


def test_the_oracle_is_no_worse_than_any_one_expert(site: UnseenSite) -> None:
    best = site.figures(WAYS["oracle"](site), site.truth).main
    each = [site.figures(site.logits(site.one(e), site.pixels_NKHW), site.truth).main for e in range(site.num_experts)]
    assert best == max(each)


def test_the_oracle_of_the_other_half_chooses_by_images_that_it_does_not_answer(site: UnseenSite) -> None:
    """By hand: for each half in turn the scores of the other one, in the order in which classes are halved."""
    order = torch.argsort(site.truth, stable=True) if site.task.kind == "classification" else torch.arange(NUM_IMAGES)
    each = [site.logits(site.one(e), site.pixels_NKHW) for e in range(site.num_experts)]
    found = WAYS["oracle_half"](site)
    for here, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        figures = [site.figures(logits[other], site.truth[other]).main for logits in each]
        assert torch.equal(found[here], each[figures.index(max(figures))][here])


def test_where_the_experts_are_no_better_at_home_the_global_model_answers(site: UnseenSite) -> None:
    """The gains of -.1 and .1 on two held-out images each are nothing in the mean, and of -.1 and .2 something."""
    alike, dark = site.participants
    for gain, is_used in ((0.1, False), (0.2, True)):
        told = [
            dataclasses.replace(alike, at_home=Told(2, -0.1, 0.0)),
            dataclasses.replace(dark, at_home=Told(2, gain, 0.0)),
        ]
        answered = WAYS["routed"](dataclasses.replace(site, participants=told))
        assert torch.equal(answered, WAYS["global"](site)) is not is_used


def test_the_start_leans_to_the_site_whose_images_are_like_these(site: UnseenSite) -> None:
    weights_E = routing._start(site.looks(site.pixels_NKHW), site, site.participants, start.POWER, start.TRUST)
    given_E = weights_E - weights_E[0]  # beyond what is shared by all
    assert given_E[1] > 10 * given_E[2] >= 0
    assert torch.allclose(weights_E.sum(), torch.tensor(1.0))
    assert not torch.equal(WAYS["routed"](site), WAYS["global"](site))


def test_a_way_that_may_not_see_labels_does_not(site: UnseenSite) -> None:
    blind = UnseenSite(
        site.task, site.network, site.normalise, site.states, site.participants, site.pixels_NKHW,
        torch.zeros_like(site.truth), site.few,
    )  # fmt: skip
    for name in WAYS.keys() - {"oracle", "oracle_half"}:
        assert torch.equal(WAYS[name](site), WAYS[name](blind)), name


def test_the_divergence_of_two_certain_and_contrary_answers_is_ln_two() -> None:
    one, other = torch.tensor([[60.0, -60.0]]), torch.tensor([[-60.0, 60.0]])
    assert jensen_shannon(one, other).tolist() == pytest.approx([math.log(2)], abs=1e-6)
    assert jensen_shannon(one, one).tolist() == pytest.approx([0.0], abs=1e-6)
    maps = torch.full((1, 1, 2, 2), 60.0)
    half = maps.clone()
    half[0, 0, 0] = -60.0  # two of four pixels are contrary
    assert jensen_shannon(maps, half).tolist() == pytest.approx([math.log(2) / 2], abs=1e-6)
