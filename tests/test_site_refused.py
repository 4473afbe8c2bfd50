"""A refused or lost answer does not stop a site: the next round must not wait for it."""

from __future__ import annotations

from pathlib import Path

from ayni.site.agent import Agent
from ayni.site.state import Answer, SiteSettings, SiteState
from desk import Desk


class Notes:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, what: str, done: int, total: int) -> None:
        pass


def test_an_answer_that_is_refused_or_gone_is_told_and_put_aside(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "centre")
    for site in ("north", "south", "west"):
        desk.join(site)
    desk.pass_time(1)
    home, notes = tmp_path / "north", Notes()
    (home / "outbox").mkdir()
    (home / "outbox" / "update-0001.safetensors").write_bytes(b"no tensors at all")
    settings = SiteSettings(
        endpoint="tcp://127.0.0.1:7700",
        coordinator_key=bytes(32),
        coordinator_signing_key=desk.home.keys.signing_public,
        site="north",
        role="clinic",
        task="shadows",
        participation="weights",
    )
    with SiteState(home) as state:
        state.put_answer(Answer(1, "update-0001.safetensors", "", 5, 1.0))
        state.put_answer(Answer(2, "update-0002.safetensors", "", 5, 1.0))  # its file is gone
        agent = Agent(home, settings, state, lambda: desk.line(desk.keys["north"].curve), notes)
        with desk.line(desk.keys["north"].curve) as line:
            for answer in state.pending_answers():
                agent._deliver(line, answer)
        assert state.outcomes() == {1: "refused", 2: "refused"}
        assert state.pending_answers() == []
    assert "not used" in notes.texts[0]
    assert "north" in notes.texts[0]
    assert desk.round("north").wanted  # it may still answer the round that is open
