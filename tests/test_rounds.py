"""The rounds of a federation, with the clock in the test's hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ayni.errors import RefusedError, UserError
from ayni.wire.messages import Leave, Submit
from ayni_coordinator.by_hand import close_by_hand, extend_by_hand, revoke_site
from ayni_coordinator.database import RoundRow, transaction
from ayni_coordinator.rounds import Decision, RoundFacts, decide, retry_after_s
from ayni_coordinator.views import federation_view
from desk import DEADLINE_S, Desk, task_with

BEFORE, AT, AFTER = 99.0, 100.0, 101.0  # the deadline is 100


@pytest.mark.parametrize(
    ("num_wanted", "num_counted", "quorum", "by_hand", "now_s", "decision"),
    [
        (3, 0, 1, False, BEFORE, "wait"),  # nobody has answered
        (3, 0, 1, False, AT, "extend"),
        (3, 0, 1, True, BEFORE, "wait"),  # by hand, but there is nothing to average
        (3, 0, 1, True, AFTER, "extend"),
        (0, 0, 1, False, BEFORE, "wait"),  # everybody has left
        (1, 2, 2, False, BEFORE, "wait"),  # a quorum, and time for the straggler
        (1, 2, 2, False, AT, "close"),  # the straggler is not waited for
        (1, 1, 2, False, AT, "extend"),  # no quorum
        (1, 1, 2, True, BEFORE, "close"),  # a person may close below the quorum
        (0, 3, 2, False, BEFORE, "close"),  # all have answered
        (0, 2, 2, False, BEFORE, "close"),
        (0, 1, 2, False, BEFORE, "wait"),  # all that are left, but fewer than the quorum: somebody may still join
        (0, 1, 2, False, AFTER, "extend"),
    ],
)
def test_when_a_round_closes(
    num_wanted: int, num_counted: int, quorum: int, by_hand: bool, now_s: float, decision: Decision
) -> None:
    assert decide(RoundFacts(100.0, num_wanted, num_counted, quorum, by_hand), now_s) == decision


def test_a_site_that_waits_asks_often_in_short_rounds_and_rarely_in_long_ones() -> None:
    assert retry_after_s("open", 0, 4) == 0.05
    assert retry_after_s("open", 4, 4) == 0.2  # 4 / 20
    assert retry_after_s("open", 60, 4) == 12  # 60 / 5
    assert retry_after_s("open", 86_400, 4) == 300
    assert retry_after_s("closed", 86_400, 4) == 0.05


def test_many_sites_ask_less_often() -> None:
    assert retry_after_s("open", 1, 1000) == 10
    assert retry_after_s("closed", 10, 1000) == 10


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Three clinics have joined; round 1 is open."""
    desk = Desk(tmp_path / "centre")
    for site in ("north", "south", "west"):
        desk.join(site)
    return desk


def stored_round(desk: Desk, number: int) -> RoundRow:
    with transaction(desk.home.engine) as session:
        row = session.get(RoundRow, number)
    assert row is not None
    return row


def test_round_one_waits_for_the_sites_that_the_task_wants(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "centre")
    for number, site in enumerate(("north", "south")):
        desk.join(site)
        assert (desk.round(site).phase, desk.round(site).num_sites, desk.round(site).wanted) == (
            "waiting", number + 1, False,
        )  # fmt: skip
    desk.pass_time(10 * DEADLINE_S)  # no deadline runs before the start
    assert desk.round("north").phase == "waiting"
    desk.join("west")
    now = desk.round("north")
    assert (now.phase, now.round_number, now.wanted, now.deadline_in_s) == ("open", 1, True, DEADLINE_S)


def test_who_waits_for_others_asks_often_when_one_has_just_come(tmp_path: Path) -> None:
    """Hours may pass between setting up and the first site: a teacher is trained then."""
    desk = Desk(tmp_path / "centre")
    desk.pass_time(3600.0)
    desk.join("north")
    assert desk.round("north").retry_after_s == pytest.approx(0.05)
    desk.pass_time(3600.0)
    assert desk.round("north").retry_after_s == pytest.approx(300.0)
    desk.join("south")
    assert desk.round("north").retry_after_s == pytest.approx(0.05)


def test_a_round_closes_when_all_have_answered_and_the_mean_is_published(desk: Desk) -> None:
    before = desk.model()
    for site, add in (("north", 1.0), ("south", 2.0), ("west", 6.0)):
        assert desk.round(site).wanted
        assert desk.answer(site, 1, add) == "counted"
        assert not desk.round(site).wanted
    desk.average()
    after = desk.model()
    assert all(np.allclose(after[name], before[name] + 3.0, atol=1e-5) for name in before)  # (1 + 2 + 6) / 3
    now = desk.round("north")
    assert (now.phase, now.round_number, now.num_answered, now.wanted) == ("open", 2, 0, True)


def test_at_the_deadline_a_quorum_is_enough_and_the_straggler_is_told_so(desk: Desk) -> None:
    before = desk.model()
    desk.answer("north", 1, 1.0)
    desk.answer("south", 1, 3.0)
    desk.pass_time(DEADLINE_S - 10)
    assert desk.round("west").phase == "open"
    desk.pass_time(11)
    desk.average()
    assert desk.answer("west", 1, 99.0) == "late"
    after = desk.model()
    assert all(np.allclose(after[name], before[name] + 2.0, atol=1e-5) for name in before)  # 99 is not in it
    assert "coordinator: round 1 closed with 2 answers; without west" in desk.log()
    assert "west: answered round 1 too late; not used" in desk.log()


def test_a_site_that_was_away_is_welcome_in_the_next_round_with_the_same_key(desk: Desk) -> None:
    desk.answer("north", 1)
    desk.answer("south", 1)
    desk.pass_time(DEADLINE_S + 1)
    desk.average()
    now = desk.round("west")
    assert (now.round_number, now.wanted) == (2, True)
    assert desk.answer("west", 2) == "counted"


def test_a_deadline_without_a_quorum_moves_on_by_itself(desk: Desk) -> None:
    desk.answer("north", 1, 1.0)
    for _ in range(3):
        desk.pass_time(DEADLINE_S + 1)
        now = desk.round("south")
        assert (now.phase, now.round_number, now.deadline_in_s, now.num_answered) == ("open", 1, DEADLINE_S, 1)
    assert sum("1 of 2 answers needed; extended" in line for line in desk.log()) == 3
    assert desk.answer("south", 1, 3.0) == "counted"  # what came in the first hour still counts
    desk.pass_time(DEADLINE_S + 1)
    desk.average()
    assert desk.round("west").round_number == 2


def test_an_answer_is_counted_once_however_often_it_comes(desk: Desk) -> None:
    assert [desk.answer("north", 1, 1.0) for _ in range(3)] == ["counted"] * 3
    now = desk.round("north")
    assert (now.num_answered, now.phase) == (1, "open")
    assert sum(line.startswith("north: answered") for line in desk.log()) == 1
    with pytest.raises(RefusedError, match="another answer"):
        desk.answer("north", 1, 2.0)


def test_a_late_answer_that_is_repeated_fills_no_log(desk: Desk) -> None:
    desk.answer("north", 1)
    desk.answer("south", 1)
    desk.pass_time(DEADLINE_S + 1)
    desk.average()
    assert [desk.answer("west", 1) for _ in range(5)] == ["late"] * 5
    assert sum("too late" in line for line in desk.log()) == 1


def test_an_answer_to_a_round_that_is_not_open_yet_is_refused(desk: Desk) -> None:
    for number in (0, 2, 3, 2**31 - 1):
        with pytest.raises(RefusedError, match="not open"):
            desk.answer("north", number)


def test_close_by_hand_does_not_wait_and_needs_one_answer(desk: Desk) -> None:
    with pytest.raises(UserError, match="nothing to average"):
        close_by_hand(desk.folder)
    desk.answer("north", 1, 1.0)
    close_by_hand(desk.folder)
    desk.pass_time(1)
    desk.average()
    assert desk.round("south").round_number == 2
    assert "coordinator: round 1 closed with 1 answers; without south, west" in desk.log()


def test_extend_by_hand_moves_the_deadline(desk: Desk) -> None:
    desk.answer("north", 1)
    desk.answer("south", 1)
    extend_by_hand(desk.folder, 5 * DEADLINE_S)
    desk.pass_time(4 * DEADLINE_S)
    assert desk.round("west").phase == "open"
    assert desk.answer("west", 1) == "counted"


@pytest.mark.parametrize("how", ["revoked", "left"])
def test_a_site_that_is_gone_is_not_waited_for_and_what_it_gave_counts(desk: Desk, how: str) -> None:
    before = desk.model()
    desk.answer("north", 1, 1.0)
    desk.answer("south", 1, 2.0)
    for site in ("west", "north"):  # one that has not answered, and one that has
        if how == "revoked":
            revoke_site(desk.folder, site)
        else:
            desk.ask(site, Leave())
    desk.pass_time(1)
    desk.keys = {"south": desk.keys["south"]}
    desk.average()
    assert desk.round("south").round_number == 2
    after = desk.model()
    assert all(np.allclose(after[name], before[name] + 1.5, atol=1e-5) for name in before)
    assert [site.this_round for site in federation_view(desk.folder).sites] == ["-", "wanted", "-"]


def test_the_federation_finishes_after_the_last_round_and_says_so(desk: Desk) -> None:
    for number in (1, 2, 3):
        for site in desk.keys:
            assert desk.answer(site, number, 0.5) == "counted"
        desk.average()
    now = desk.round("north")
    assert (now.phase, now.round_number, now.num_rounds, now.wanted) == ("finished", 3, 3, False)
    again = desk.ask("north", desk.submits["north"])  # its reply was lost, and the round is long over
    assert again.outcome == "counted"
    assert "coordinator: finished after 3 rounds" in desk.log()
    assert federation_view(desk.folder).phase == "finished"
    with pytest.raises(UserError, match="no round is open"):
        close_by_hand(desk.folder)


def test_the_status_of_a_person_says_what_is_stored_and_nothing_else(desk: Desk) -> None:
    def state() -> tuple[str, int, list[str]]:
        view = federation_view(desk.folder)
        return view.phase, view.round_number, [site.this_round for site in view.sites]

    assert state() == ("open", 1, ["wanted", "wanted", "wanted"])
    desk.answer("south", 1)
    assert state() == ("open", 1, ["wanted", "counted", "wanted"])
    desk.answer("north", 1)
    desk.now_s += DEADLINE_S + 1  # the deadline is over, but no coordinator has acted on it
    assert state() == ("open", 1, ["counted", "counted", "wanted"])
    desk.coordinator.tick(desk.now_s)
    assert state() == ("closed", 1, ["counted", "counted", "missed"])
    desk.answer("west", 1)
    assert state() == ("closed", 1, ["counted", "counted", "late"])
    desk.average()
    assert state() == ("open", 2, ["wanted", "wanted", "wanted"])


def test_a_coordinator_that_restarts_knows_answers_deadline_and_round(desk: Desk) -> None:
    desk.answer("north", 1, 1.0)
    desk.pass_time(1000)
    again = desk.restarted()
    now = again.round("south")
    assert (now.phase, now.num_answered, now.wanted) == ("open", 1, True)
    assert now.deadline_in_s == pytest.approx(DEADLINE_S - 1000, abs=5)
    assert again.answer("north", 1, 1.0) == "counted"  # the lost reply asked for again, at the new process
    assert again.round("south").num_answered == 1


def test_a_restart_after_closing_averages_the_same_bits(tmp_path: Path) -> None:
    digests = []
    for folder, cut in (("uncut", False), ("cut", True)):
        (tmp_path / folder).mkdir()
        desk = Desk(tmp_path / folder / "centre", task_with(traffic={"form": "sparse"}))
        for site in ("north", "south", "west"):
            desk.join(site)
        for site, add in (("north", 1.0), ("south", 2.0), ("west", 6.0)):
            desk.answer(site, 1, add)
        assert stored_round(desk, 1).state == "closed"
        if cut:
            desk = desk.restarted()
            desk.pass_time(1)
        desk.average()
        digests.append(stored_round(desk, 1).digest)
    assert digests[0] == digests[1] != ""


def test_a_submit_without_its_artefact_is_not_counted(desk: Desk) -> None:
    submit = Submit(round_number=1, update=bytes(32), soft_labels=None, num_examples=1, train_s=0.0)
    with pytest.raises(RefusedError, match="put it first"):
        desk.ask("north", submit)
    assert desk.round("north").num_answered == 0
