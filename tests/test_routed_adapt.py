"""The choice of a routing: figures by hand for the start, the steps, the guard and the words."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from statistics import NormalDist, fmean, pstdev, stdev

import numpy as np
import pytest

from ayni.tensors.safe import Floats
from ayni_export.routed.adapt import Ask, Comparison, Setting, candidates, choose, only_global
from ayni_export.routed.at_home import Told, share_of_the_say
from ayni_export.routed.guard import Limits, answers_of, brief, refusals
from ayni_export.routed.mixed_answers import gradient_of_mixed_answers
from ayni_export.routed.refine import Pixels, refined, shared
from ayni_export.routed.start import Places, distance, start_weights
from ayni_export.routed.words import who_spoke
from ayni_export.routed.worklist import MAX_SEEN_BYTES, MAX_SEEN_IMAGES, evenly_spread

NUM_LAYERS = 3
PLACES = Places(1, 1)
DISC = np.zeros((1, 4, 4), np.float32)
DISC[0, 1:3, 1:3] = 0.9  # 4 of 16 pixels
IMAGES = [np.full((4, 4, 1), value, np.uint8) for value in (10, 20)]


def moments(mean: float, variance: float = 1.0) -> Floats:
    return np.array([[mean], [variance]], np.float32)


def test_the_distance_is_the_mean_of_both_kl_divergences() -> None:
    # N(0, 1) and N(2, 4): KL one way ln 2 + (1 + 4) / 8 - 1/2, the other way -ln 2 + (4 + 4) / 2 - 1/2; half their sum
    assert distance(moments(0), moments(2, 4), PLACES) == pytest.approx((5 / 8 + 4 - 1) / 2, rel=1e-3)
    assert distance(moments(2, 4), moments(0), PLACES) == pytest.approx((5 / 8 + 4 - 1) / 2, rel=1e-3)


def test_both_the_images_and_the_features_must_be_near() -> None:
    def site(image: float, feature: float) -> Floats:
        return np.array([[image, 9.0, feature], [1.0, 1.0, 1.0]], np.float32)

    here = site(0, 0)
    like_images, like_features, like_both = site(0, 0.4), site(0.4, 0), site(0.1, 0.1)
    # means .4 apart: .08 nats, .1 apart: .005; with .02 of noise: .1 * .02, .02 * .1 and .025 * .025, to the power -2
    shares = np.array([0.002**-2, 0.002**-2, 0.000625**-2])
    shares /= shares.sum()
    trust = np.exp(-(shares @ [0.08, 0, 0.005]) / 0.1)
    weights_E = start_weights([None, here, here, here], [None, like_images, like_features, like_both], PLACES)
    assert weights_E == pytest.approx((1 - trust) / 4 + np.array([0, *(trust * shares)]), abs=1e-3)


def test_where_no_site_is_near_all_speak_alike() -> None:
    weights_E = start_weights([None, moments(0), moments(0)], [None, moments(2), moments(2.5)], PLACES)
    assert weights_E == pytest.approx([1 / 3] * 3, abs=1e-3)  # 2 nats away and more: exp(-2 / .1) is nothing


def test_who_gave_no_statistics_shares_in_the_rest_and_without_any_the_global_model_gets_all() -> None:
    here = [None, moments(0), None, moments(0)]
    weights_E = start_weights(here, [None, moments(0), None, moments(0.2)], PLACES)
    assert weights_E[0] == weights_E[2]
    assert weights_E[1] > weights_E[3] > weights_E[2] > 0
    assert weights_E.sum() == pytest.approx(1)
    assert start_weights([None, None], [None, None], PLACES).tolist() == [1, 0]


def linear(slopes_E: list[float]) -> Callable[[Pixels, Floats], tuple[float, Floats]]:
    """A loss that is linear in every layer's logits, whatever the image."""

    def gradient(image_hwK: Pixels, logits_LE: Floats) -> tuple[float, Floats]:
        slope_LE = np.repeat(np.array([slopes_E], np.float32) / np.float32(len(logits_LE)), len(logits_LE), axis=0)
        return float((slope_LE * logits_LE).sum()), slope_LE

    return gradient


def test_no_steps_give_the_start_itself_bit_for_bit() -> None:
    start_E = np.array([0.1, 0.7, 0.2], np.float32)
    refined_LE, refinement = refined(IMAGES, start_E, linear([1, -1, 0]), NUM_LAYERS, num_steps=0)
    assert np.array_equal(refined_LE, shared(start_E, NUM_LAYERS))
    assert refinement.num_steps == 0


def test_the_first_step_of_adam_goes_by_the_sign_of_each_slope() -> None:
    start_E = np.full(3, 1 / 3, np.float32)
    refined_LE, refinement = refined(IMAGES[:1], start_E, linear([1, -1, 0]), NUM_LAYERS)
    # logits move by -.2 / (1 + .001), +.2 / (1 + .001), 0
    powers = np.exp(np.array([-0.2, 0.2, 0]) / 1.001)
    assert refined_LE == pytest.approx(np.array([powers / powers.sum()] * NUM_LAYERS), abs=1e-6)
    assert (refinement.num_steps, refinement.num_own) == (1, 0)  # one image, one step


def test_a_long_worklist_gives_every_layer_a_row_of_its_own() -> None:
    def gradient(image_hwK: Pixels, logits_LE: Floats) -> tuple[float, Floats]:
        slope_LE = np.zeros_like(logits_LE)
        slope_LE[0] = [1, -1]  # only the first layer pulls
        return 0.0, slope_LE

    for num_images, num_own in ((31, 0), (32, 1)):
        images = [np.zeros((4, 4, 1), np.uint8)] * num_images
        refined_LE, refinement = refined(images, np.full(2, 0.5, np.float32), gradient, 3, num_steps=1)
        assert (refinement.num_steps, refinement.num_own) == (1 + num_own, num_own)
        # all move together once, by -.2 / (1 + .001) and +.2 / (1 + .001); then the first layer does so by itself
        steps_L = np.array([1 + num_own, 1, 1])
        first_L = 1 / (1 + np.exp(2 * 0.2 / 1.001 * steps_L))
        assert refined_LE == pytest.approx(np.stack([first_L, 1 - first_L], axis=1), abs=1e-6)


def test_answers_have_no_layers_so_their_rows_stay_alike() -> None:
    answers = [np.array([[2.0, -1.0]]), np.array([[1.0, 3.0]])]  # one structure in two places
    gradient = gradient_of_mixed_answers(lambda image_hwK, expert: answers[expert], 2)
    images = [np.zeros((4, 4, 1), np.uint8)] * 32
    refined_LE, refinement = refined(images, np.full(2, 0.5, np.float32), gradient, NUM_LAYERS)
    assert refinement.num_own > 0
    assert np.array_equal(refined_LE, shared(refined_LE[0], NUM_LAYERS))
    assert refined_LE[0, 0] != pytest.approx(0.5, abs=0.01)


def test_the_same_images_give_the_same_steps_whatever_was_refined_before() -> None:
    start_E = np.array([0.5, 0.5], np.float32)
    first, _ = refined(IMAGES, start_E, linear([1, -1]), NUM_LAYERS)
    refined(IMAGES[:1], start_E, linear([-5, 3]), NUM_LAYERS)
    again, _ = refined(IMAGES, start_E, linear([1, -1]), NUM_LAYERS)
    assert np.array_equal(first, again)


def test_a_third_of_the_images_are_asked_for_gradients() -> None:
    asked: list[int] = []

    def gradient(image_hwK: Pixels, logits_LE: Floats) -> tuple[float, Floats]:
        asked.append(int(image_hwK[0, 0, 0]))
        return 0.0, np.zeros_like(logits_LE)

    images = [np.full((4, 4, 1), number, np.uint8) for number in range(16)]
    _, refinement = refined(images, np.full(2, 0.5, np.float32), gradient, NUM_LAYERS)
    assert asked == [0, 3, 6, 9, 12, 15]
    assert refinement.num_steps == 4


def test_the_guards_figures_by_hand() -> None:
    half = np.full((1, 4, 4), 0.25, np.float32)
    half[0, 1:3, 1:4] = 0.75  # 6 of 16 pixels, 4 of them in the disc
    reference, replies = [brief(DISC), brief(DISC)], [brief(half), brief(DISC)]
    answers = answers_of(replies, reference)
    assert answers.shares == pytest.approx(((6 + 4) / 2 / 16,))
    assert answers.agreement == pytest.approx((2 * 4 / (6 + 4) + 1) / 2)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    disc = 4 / 16 * -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert answers.entropy == pytest.approx((quarter + disc) / 2, abs=1e-6)


def test_images_in_which_nothing_is_outlined_by_either_agree() -> None:
    empty = [brief(np.zeros((2, 3, 5), np.float32))]
    assert answers_of(empty, empty).agreement == 1


def test_the_guard_counts_classes_that_are_the_same() -> None:
    reference = [brief(np.array(p, np.float32)) for p in ([0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1])]
    replies = [brief(np.array(p, np.float32)) for p in ([0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1])]
    answers = answers_of(replies, reference)
    assert answers.shares == (0.5, 0.5)
    assert answers.agreement == 0.75
    usual = answers_of(reference, reference)
    assert refusals(answers, usual, ("no", "yes"), dense=False, limits=Limits(least_same_class=0.7)) == ()
    (refused,) = refusals(answers, usual, ("no", "yes"), dense=False, limits=Limits(least_same_class=0.8))
    assert "same as the global model in only 75 %" in refused


def setting() -> Setting:
    return Setting(("disc",), dense=True)


def answering(by_expert: list[Floats]) -> Callable[[Floats], Ask]:
    """A mixture answers what the expert with the most weight does."""
    return lambda routing_LE: lambda image_hwK: by_expert[int(routing_LE[0].argmax())]


NEAR_THE_SECOND = Comparison([None, moments(0)], [None, moments(0)], PLACES)


def test_a_mixture_that_collapses_to_background_falls_back_to_the_global_model_and_says_so() -> None:
    choice = choose(IMAGES, NEAR_THE_SECOND, NUM_LAYERS, answering([DISC, 0 * DISC]), setting())
    assert choice.chosen == "global"
    assert np.array_equal(choice.routing_LE, only_global(NUM_LAYERS, 2))
    (tried,) = choice.tried
    assert tried.weights == (0, 1)
    assert "far less of disc: 0.0 % of the image, where the global model outlines 25.0 %" in tried.refused[0]
    assert "overlap with the global model's by only 0.00" in tried.refused[1]


def test_a_mixture_that_floods_the_image_or_is_less_sure_is_refused() -> None:
    flood, unsure = np.full_like(DISC, 0.99), np.clip(DISC, 0.3, 0.7)
    for answer, reason in ((flood, "far more of disc"), (unsure, "less sure")):
        choice = choose(IMAGES, NEAR_THE_SECOND, NUM_LAYERS, answering([DISC, answer]), setting())
        assert choice.chosen == "global"
        assert any(reason in refused for refused in choice.tried[0].refused)


def test_a_mixture_that_the_guard_passes_is_the_start_bit_for_bit() -> None:
    choice = choose(IMAGES, NEAR_THE_SECOND, NUM_LAYERS, answering([DISC, 1.05 * DISC]), setting())
    assert (choice.chosen, choice.refinement) == ("start", None)
    start_E = start_weights(NEAR_THE_SECOND.here, NEAR_THE_SECOND.there, PLACES)
    assert np.array_equal(choice.routing_LE, shared(start_E, NUM_LAYERS))
    assert choice.distances == (None, 0.0)


def test_refined_steps_that_make_answers_less_sure_give_way_to_the_start() -> None:
    near = Comparison([None, moments(0), moments(0)], [None, moments(0), moments(0.1)], PLACES)
    made = candidates(near, IMAGES, NUM_LAYERS, linear([0, 1, -1]))
    assert [each.name for each in made] == ["refined", "start"]
    assert made[0].routing_LE[0, 2] > made[1].routing_LE[0, 2]
    slightly = np.clip(DISC, 0.001, 0.9)

    def ask_with(routing_LE: Floats) -> Ask:
        return lambda image_hwK: slightly if np.array_equal(routing_LE, made[0].routing_LE) else DISC

    choice = choose(IMAGES, near, NUM_LAYERS, ask_with, setting(), linear([0, 1, -1]))
    assert choice.chosen == "start"
    assert "less sure than those that it started from" in choice.tried[0].refused[-1]
    assert choice.refinement is not None
    surer = choose(IMAGES, near, NUM_LAYERS, lambda routing_LE: lambda image_hwK: DISC, setting(), linear([0, 1, -1]))
    assert surer.chosen == "refined"


def test_experts_that_are_no_better_at_home_are_not_even_tried() -> None:
    told = dataclasses.replace(setting(), say=0.0)
    choice = choose(IMAGES, NEAR_THE_SECOND, NUM_LAYERS, answering([]), told)
    assert (choice.chosen, choice.tried, choice.distances) == ("global", (), (None, 0.0))
    assert np.array_equal(choice.routing_LE, only_global(NUM_LAYERS, 2))


def test_what_a_mixture_may_not_say_is_the_global_models() -> None:
    """The start is the second expert alone; with a quarter of the say it gets a quarter."""
    quarter = choose(
        IMAGES, NEAR_THE_SECOND, NUM_LAYERS, answering([DISC, DISC]), dataclasses.replace(setting(), say=0.25)
    )
    assert quarter.routing_LE.tolist() == [[0.75, 0.25]] * NUM_LAYERS


def test_the_share_of_the_say_is_what_a_normal_mean_says() -> None:
    """Each image by hand beside the sites' means and deviations: z of the mean, by Python's own normal distribution."""
    one, other = [0.3, -0.1, 0.2, 0.0], [0.1, 0.5]
    told = [Told(len(gains), fmean(gains), pstdev(gains)) for gains in (one, other)]
    both = [*one, *other]
    z = fmean(both) / (stdev(both) / len(both) ** 0.5)
    assert share_of_the_say(told) == pytest.approx(2 * NormalDist().cdf(z) - 1)
    worse = [told[0]._replace(gain=-0.1), Told(0, 0.0, 0.0), told[1]._replace(gain=-0.2)]
    assert share_of_the_say(worse) == 0
    assert [share_of_the_say([Told(n, 0.1, 0.0)]) for n in (1, 2)] == [1.0, 1.0]
    assert share_of_the_say([Told(1, -0.1, 0.0)]) == 1.0  # of one image nothing follows
    assert share_of_the_say([Told(3, 0.0, 0.0)]) == 0


@pytest.mark.parametrize(("seen", "num_experts"), [([], 2), (IMAGES, 1)])
def test_without_images_or_other_experts_the_global_model_answers(seen: list[Pixels], num_experts: int) -> None:
    nothing = Comparison([None] * num_experts, [None] * num_experts, PLACES)
    choice = choose(seen, nothing, NUM_LAYERS, answering([]), setting())
    assert (choice.chosen, choice.tried) == ("global", ())
    assert choice.routing_LE.tolist() == [[1.0, 0.0][:num_experts]] * NUM_LAYERS


def test_a_long_worklist_is_thinned_out_evenly_and_stays_small() -> None:
    images = [np.full((64, 64, 1), number % 256, np.uint8) for number in range(1000)]
    seen, num_images = evenly_spread(iter(images))
    numbers = [int(image[0, 0, 0]) for image in seen]
    assert num_images == 1000
    assert MAX_SEEN_IMAGES // 2 < len(seen) <= MAX_SEEN_IMAGES
    assert len({(b - a) % 256 for a, b in itertools.pairwise(numbers)}) == 1
    large = [np.zeros((1024, 1024, 3), np.uint8) for _ in range(9)]
    assert sum(image.nbytes for image in evenly_spread(large)[0]) <= MAX_SEEN_BYTES


def test_who_speaks_in_words() -> None:
    names = ("the global model", "the model of north")
    assert who_spoke(names, (0.0, 1.0)) == "the model of north speaks alone"
    assert who_spoke(names, (0.005, 0.995)) == "the model of north speaks almost alone"
    assert who_spoke(names, (0.6, 0.4)) == "the global model speaks with 60 %, the model of north with 40 %"
