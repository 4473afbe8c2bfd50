"""Means with intervals over seeds and sites: hand-worked cases, pairing, and how often an interval holds the truth."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ayni_coordinator.simulation.statistics import Cells, Estimate, estimate, paired_difference


def width(known: Estimate | None) -> float:
    assert known is not None
    assert known.interval is not None
    return known.interval[1] - known.interval[0]


def test_the_mean_is_over_all_seeds_and_sites() -> None:
    known = estimate({(0, "a"): 1.0, (0, "b"): 3.0, (1, "a"): 5.0, (1, "b"): 7.0})
    assert known is not None
    assert (known.mean, known.num_seeds, known.num_sites, known.num_cells) == (4.0, 2, 2, 4)


def test_of_two_seeds_one_is_drawn_and_of_three_two() -> None:
    two = estimate({(0, "a"): 1.0, (1, "a"): 3.0})
    three = estimate({(0, "a"): 0.0, (1, "a"): 3.0, (2, "a"): 6.0})
    assert two is not None
    assert three is not None
    assert two.interval == (1.0, 3.0)  # one seed or the other, half of the resamples each
    assert three.interval == (0.0, 6.0)  # the least seed twice: one in nine, and so the greatest


def test_seeds_and_sites_are_drawn_apart_and_cross() -> None:
    """Seeds 0 and 10, sites 0 and 1: a resample is one cell of the table, each in a quarter of the resamples."""
    known = estimate({(0, "a"): 0.0, (0, "b"): 1.0, (1, "a"): 10.0, (1, "b"): 11.0})
    assert known is not None
    assert (known.mean, known.interval) == (5.5, (0.0, 11.0))


def test_equal_differences_have_an_interval_of_no_width_however_the_figures_vary() -> None:
    theirs = {(seed, site): 0.5 * seed + 0.25 * ord(site) for seed in range(3) for site in "abcd"}
    known = paired_difference({key: value + 0.125 for key, value in theirs.items()}, theirs)
    assert known == Estimate(0.125, (0.125, 0.125), 3, 4, 12)
    assert known.above_zero


def test_a_method_level_with_another_is_neither_above_nor_below_zero() -> None:
    known = paired_difference({(0, "a"): 1.0, (1, "a"): 2.0}, {(0, "a"): 1.0, (1, "a"): 2.0})
    assert known is not None
    assert (known.mean, known.interval, known.above_zero, known.below_zero) == (0.0, (0.0, 0.0), False, False)


def test_only_what_both_have_is_paired() -> None:
    ours, theirs = {(0, "a"): 5.0, (1, "a"): 6.0, (1, "b"): 9.0}, {(0, "a"): 2.0, (1, "a"): 3.0, (2, "a"): 9.0}
    assert paired_difference(ours, theirs) == Estimate(3.0, (3.0, 3.0), 2, 1, 2)
    assert paired_difference(ours, {(7, "z"): 1.0}) is None


def test_a_missing_cell_and_one_that_is_no_number_do_not_count() -> None:
    known = estimate({(0, "a"): 1.0, (0, "b"): 3.0, (1, "a"): 5.0, (1, "b"): math.nan})
    assert known is not None
    assert (known.mean, known.num_cells, known.interval) == (3.0, 3, (1.0, 5.0))
    assert estimate({}) is None


def test_one_seed_has_no_interval() -> None:
    known = estimate({(0, "a"): 1.0, (0, "b"): 3.0})
    assert known is not None
    assert known.interval is None
    assert not known.above_zero


@given(
    seeds=st.lists(st.floats(-1, 1), min_size=3, max_size=5).filter(lambda v: max(v) - min(v) > 0.2),
    noise=st.lists(st.floats(-0.01, 0.01), min_size=40, max_size=40),
    gain=st.floats(-0.5, 0.5),
)
@settings(max_examples=50, deadline=None)
def test_a_paired_interval_is_narrower_than_either_methods_own_when_seeds_move_both(
    seeds: list[float], noise: list[float], gain: float
) -> None:
    keys = [(seed, site) for seed in range(len(seeds)) for site in "abcd"]
    theirs = {(seed, site): seeds[seed] + noise[n] for n, (seed, site) in enumerate(keys)}
    ours = {(seed, site): seeds[seed] + gain + noise[n + 20] for n, (seed, site) in enumerate(keys)}
    assert width(paired_difference(ours, theirs)) < min(width(estimate(ours)), width(estimate(theirs)))


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6), st.floats(-1, 1))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_figures_and_a_shift_of_all_change_nothing_else(values: list[float], shift: float) -> None:
    cells = {(n // 2, "ab"[n % 2]): value for n, value in enumerate(values)}
    known = estimate(cells)
    assert known == estimate(dict(reversed(cells.items())))
    moved = estimate({key: value + shift for key, value in cells.items()})
    assert known is not None
    assert moved is not None
    assert math.isclose(moved.mean, known.mean + shift, abs_tol=1e-9)
    assert math.isclose(width(moved), width(known), abs_tol=1e-9)


def test_with_three_seeds_and_four_sites_it_holds_the_true_mean_nine_times_in_ten_and_single_results_do_not() -> None:
    """Seeds, sites and chance vary alike, true mean zero. Resampling the twelve results as if each stood alone is what
    an interval over seeds and sites must not be mistaken for. Over many tables: .90 against .72."""
    random = np.random.RandomState(1)
    num_tables, held, held_alone = 400, 0, 0
    for _ in range(num_tables):
        figures_SK = random.normal(size=(3, 1)) + random.normal(size=(1, 4)) + random.normal(size=(3, 4))
        cells: Cells = {(s, "abcd"[k]): float(figures_SK[s, k]) for s in range(3) for k in range(4)}
        known = estimate(cells)
        assert known is not None
        assert known.interval is not None
        held += known.interval[0] <= 0 <= known.interval[1]
        alone_B = figures_SK.ravel()[random.randint(0, 12, size=(500, 12))].mean(axis=1)
        low, high = np.quantile(alone_B, (0.025, 0.975))
        held_alone += low <= 0 <= high
    assert 0.85 <= held / num_tables <= 0.95
    assert held_alone / num_tables < 0.8
