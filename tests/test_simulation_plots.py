"""The pictures of the page of results: well-formed, readable on dark pages, and no name over another."""

from __future__ import annotations

import itertools
from typing import get_args
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayni_coordinator.simulation import svg
from ayni_coordinator.simulation.evidence import TaskEvidence, by_task
from ayni_coordinator.simulation.label_places import Box, places, spread
from ayni_coordinator.simulation.method_titles import Kind
from ayni_coordinator.simulation.plots import bytes_plot, dot_plot
from ayni_coordinator.simulation.results import Row, SiteRole

SVG = "{http://www.w3.org/2000/svg}"
GAINS = {"local": 0.0, "pooled": 0.2, "fedavg": 0.05, "fedprox": 0.05, "fml": 0.06, "fedhelp": 0.1}


def evidence(num_bytes: int = 1000, hospitals: bool = True) -> TaskEvidence:
    roles: tuple[SiteRole, ...] = ("clinic", "hospital") if hospitals else ("clinic",)
    rows = [
        Row(
            task="a<b", method=method, seed=seed, site=role, role=role, num_train=9, seconds=1, rounds=1,
            metrics={"auc": 0.7 + gain + 0.01 * seed}, bytes_down=0,
            bytes_up=0 if method in ("local", "pooled") else num_bytes,
        )
        for method, gain in GAINS.items()
        for seed in range(3)
        for role in roles
    ]  # fmt: skip
    (only,) = by_task(rows)
    return only


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


@pytest.mark.parametrize("draw", [dot_plot, bytes_plot])
def test_a_picture_is_well_formed_white_behind_and_has_a_title(draw: object) -> None:
    assert callable(draw)
    root = ElementTree.fromstring(draw(evidence()))
    title, behind = root[0], root[1]
    assert (title.tag, title.text is not None and title.text.startswith("a<b: ")) == (f"{SVG}title", True)
    assert behind.attrib == {"width": "100%", "height": "100%", "fill": "#ffffff"}


def test_small_and_large_sites_have_panels_of_their_own_and_every_method_a_line() -> None:
    said = texts(dot_plot(evidence()))
    assert {"small sites", "large sites", *GAINS} <= set(said)
    assert "large sites" not in texts(dot_plot(evidence(hospitals=False)))


def test_methods_with_equal_bytes_are_all_named_and_one_without_bytes_is_said() -> None:
    said = texts(bytes_plot(evidence()))
    assert {"fedavg", "fedprox", "fml", "fedhelp", "dashed: local; pooled moves no bytes"} <= set(said)
    assert "no method moved bytes and has local to compare with" in texts(bytes_plot(evidence(num_bytes=0)))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=9).map(sorted))
def test_what_is_spread_keeps_its_order_and_its_distance(xs: list[int]) -> None:
    moved = spread(xs, 14)
    assert len(moved) == len(xs)
    assert all(after - before >= 14 - 1e-9 for before, after in itertools.pairwise(moved))
    assert abs(sum(moved) - sum(xs)) < 1e-6  # about its middle


@given(st.lists(st.tuples(st.floats(100, 700), st.floats(60, 400)), min_size=1, max_size=10))
@settings(max_examples=15, deadline=None)
def test_no_name_lies_over_another_or_over_a_whisker(points: list[tuple[float, float]]) -> None:
    centres = list(zip(spread(sorted(x for x, _ in points), 14), (y for _, y in points), strict=True))
    whiskers = [Box(x - 3, y - 40, x + 3, y + 40) for x, y in centres]
    boxes = places(centres, [60.0] * len(centres), whiskers, Box(-100, 0, 1000, 500))
    assert all(not a.overlap(b) for a, b in itertools.combinations(boxes, 2))
    assert all(not box.overlap(whisker) for box in boxes for whisker in whiskers)


def test_every_kind_of_method_has_a_colour_a_name_and_a_shape() -> None:
    kinds = get_args(Kind)
    assert set(svg.COLOURS) == set(svg.KINDS) == set(kinds)
    assert len({str(svg.mark(kind, 0, 0)) for kind in kinds}) == len(kinds)
