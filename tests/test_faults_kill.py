"""kill -9 of real processes at every point of a round: the federation finishes with the same model as an uncut one."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dying_coordinator import POINTS
from small_federation import SITES, Federation

pytestmark = pytest.mark.slow
ROUNDS = 2


@contextmanager
def joined(folder: Path) -> Iterator[Federation]:
    """All sites have joined; nobody serves."""
    with Federation(folder, rounds=ROUNDS) as federation:
        server = federation.serve()
        for site in SITES:
            federation.join(site)
        server.terminate()
        assert server.wait() == 0, federation.log("serve")
        yield federation


def result(federation: Federation) -> dict[str, Any]:
    digests = {f"round {number}": federation.digest(number) for number in range(ROUNDS + 1)}
    return {**digests, **{site: federation.model(site) for site in SITES}}


def audit(federation: Federation) -> list[str]:
    with sqlite3.connect(federation.centre / "coordinator.sqlite") as connection:
        lines = [f"{who}: {what}" for who, what in connection.execute("SELECT who, what FROM audit ORDER BY id")]
    connection.close()
    return lines


def each_answer_is_counted_once(federation: Federation) -> bool:
    lines = audit(federation)
    return all(
        sum(line.startswith(f"{site}: answered round {number} after") for line in lines) == 1
        for site in SITES
        for number in range(1, ROUNDS + 1)
    )


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with joined(tmp_path_factory.mktemp("uncut")) as federation:
        federation.serve()
        for process in [federation.train(site) for site in SITES]:
            assert process.wait() == 0, federation.log("serve")
        assert each_answer_is_counted_once(federation)
        assert len({federation.digest(number) for number in range(ROUNDS + 1)}) == ROUNDS + 1  # every round moved
        return result(federation)


def test_the_coordinator_is_killed_at_each_point_of_a_round(tmp_path: Path, uncut: dict[str, Any]) -> None:
    with joined(tmp_path) as federation:
        sites = [federation.train(site) for site in SITES]
        for point in POINTS:
            assert federation.serve_until(point).wait() == -signal.SIGKILL, federation.log("serve")
        federation.serve()
        for site in sites:
            assert site.wait() == 0, federation.log("serve")
        assert each_answer_is_counted_once(federation)
        assert result(federation) == uncut


DYING = {
    "hospital": ["in training", "acknowledged, not stored"],
    "clinic-a": ["trained, not sent", "acknowledged and stored"],
    "clinic-b": [],
}


def test_sites_are_killed_in_training_and_around_the_acknowledgement(tmp_path: Path, uncut: dict[str, Any]) -> None:
    with joined(tmp_path) as federation, ThreadPoolExecutor(len(SITES)) as threads:
        federation.serve()

        def die_and_go_on(site: str) -> list[int]:
            codes = [federation.train_until(site, point).wait() for point in DYING[site]]
            last = federation.train(site) if codes else federation.train_until(site, "its training process")
            return [*codes, last.wait()]

        for site, codes in zip(SITES, threads.map(die_and_go_on, SITES), strict=True):
            assert codes == [-signal.SIGKILL] * len(DYING[site]) + [0], federation.log(site)
        assert "killed the training process" in federation.log("clinic-b")
        assert each_answer_is_counted_once(federation)
        assert result(federation) == uncut
