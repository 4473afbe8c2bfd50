"""Who comes in: an invitation works once, for one site, until it expires, and for nothing but joining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ayni.errors import NotAdmittedError, RefusedError, UserError
from ayni.invitation import Invitation
from ayni.keys import Certificate, CurveKeys, SiteKeys
from ayni.site.site import Site
from ayni.wire import line
from ayni.wire.messages import (
    GetChunk,
    GetManifest,
    GetRound,
    GetUpload,
    Join,
    Joined,
    Leave,
    PutChunk,
    ShareExpert,
    Submit,
)
from ayni_coordinator.by_hand import new_invitation, revoke_site
from desk import DEADLINE_S, Desk, served

HOUR_S = 3600.0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "centre")


def join(desk: Desk, invitation: Invitation, keys: SiteKeys, **changes: Any) -> Joined:
    asked = Join(
        **{
            "curve_key": keys.curve.public,
            "signing_key": keys.signing_public,
            "participation": "weights",
            **changes,
        }
    )
    with desk.line(invitation.keys) as one_line:
        reply, _ = one_line.ask(asked, "join")
    assert isinstance(reply, Joined)
    return reply


def test_a_site_joins_and_its_certificate_names_it(desk: Desk, tmp_path: Path) -> None:
    keys = SiteKeys.load_or_create(tmp_path / "north")
    joined = join(desk, desk.invite("north", "hospital"), keys)
    certificate = Certificate.verified(joined.certificate, desk.home.keys.signing_public)
    assert (certificate.site, certificate.role, certificate.signing_key) == ("north", "hospital", keys.signing_public)
    assert joined.coordinator_signing_key == desk.home.keys.signing_public
    assert desk.is_admitted(keys.curve)
    assert any(line.startswith("north: joined as hospital") for line in desk.log())


def test_a_lost_reply_is_answered_again_with_the_same_keys_and_counted_once(desk: Desk, tmp_path: Path) -> None:
    keys, invitation = SiteKeys.load_or_create(tmp_path / "north"), desk.invite("north")
    assert join(desk, invitation, keys) == join(desk, invitation, keys)
    assert sum("joined as" in line for line in desk.log()) == 1


def test_an_invitation_that_was_used_lets_no_other_key_in(desk: Desk, tmp_path: Path) -> None:
    invitation = desk.invite("north")
    join(desk, invitation, SiteKeys.load_or_create(tmp_path / "north"))
    thief = SiteKeys.load_or_create(tmp_path / "thief")
    with pytest.raises(RefusedError, match="has been used by 'north'"):
        join(desk, invitation, thief)
    assert not desk.is_admitted(thief.curve)


def test_an_invitation_expires(desk: Desk, tmp_path: Path) -> None:
    invitation = desk.invite("north", valid_s=HOUR_S)
    desk.now_s += HOUR_S + 1  # before the coordinator has looked at the clock again
    with pytest.raises(RefusedError, match="valid invitation"):
        join(desk, invitation, SiteKeys.load_or_create(tmp_path / "north"))
    desk.pass_time(1)
    with pytest.raises(NotAdmittedError):
        join(desk, invitation, SiteKeys.load_or_create(tmp_path / "north"))


def test_a_second_invitation_for_the_same_name_withdraws_the_first(desk: Desk, tmp_path: Path) -> None:
    keys = SiteKeys.load_or_create(tmp_path / "north")
    first, second = desk.invite("north"), desk.invite("north")
    with pytest.raises(NotAdmittedError):
        join(desk, first, keys)
    assert join(desk, second, keys).site == "north"


def test_an_invitation_can_be_taken_back_before_it_is_used(desk: Desk, tmp_path: Path) -> None:
    invitation = desk.invite("north")
    revoke_site(desk.folder, "north")
    desk.pass_time(1)
    with pytest.raises(NotAdmittedError):
        join(desk, invitation, SiteKeys.load_or_create(tmp_path / "north"))
    assert "coordinator: withdrew the invitation of 'north'" in desk.log()
    with pytest.raises(UserError, match="no site"):
        revoke_site(desk.folder, "north")
    desk.join("north")  # the name is still free


def test_a_name_is_given_once(desk: Desk) -> None:
    desk.join("north")
    with pytest.raises(UserError, match="already"):
        desk.invite("north")
    revoke_site(desk.folder, "north")
    with pytest.raises(UserError, match="revoked"):
        desk.invite("north")


@pytest.mark.parametrize("how", ["revoke", "leave"])
def test_a_site_that_is_gone_cannot_come_back_with_its_old_invitation(desk: Desk, tmp_path: Path, how: str) -> None:
    keys, invitation = SiteKeys.load_or_create(tmp_path / "north"), desk.invite("north")
    join(desk, invitation, keys)
    if how == "revoke":
        revoke_site(desk.folder, "north")  # another process; this one has not read the register again
        with pytest.raises(RefusedError, match="revoked"):
            join(desk, invitation, keys)
        desk.pass_time(1)
    else:
        desk.line(keys.curve).ask(Leave(), "control")
    assert not desk.is_admitted(keys.curve)
    for again in (keys, SiteKeys.load_or_create(tmp_path / "other")):
        with pytest.raises(NotAdmittedError):
            join(desk, invitation, again)


def test_a_temporary_key_can_do_nothing_but_join(desk: Desk) -> None:
    invitation = desk.invite("north")
    requests: list[Any] = [
        GetManifest(have_version=0),
        GetRound(),
        GetChunk(sha256=bytes.fromhex(desk.listed()[0].sha256), offset=0, length=10),
        GetUpload(sha256=bytes(32)),
        PutChunk(kind="update", sha256=bytes(32), offset=0, total_bytes=1),
        Submit(round_number=1, update=bytes(32), soft_labels=None, num_examples=1, train_s=0.0),
        ShareExpert(expert=bytes(32)),
        Leave(),
    ]
    for request in requests:
        with desk.line(invitation.keys) as one_line, pytest.raises(RefusedError, match="only be used to join"):
            one_line.ask(request, "control", b"x")
    assert list(desk.home.uploads.iterdir()) == []


def test_a_key_of_the_coordinator_of_another_site_or_of_an_invitation_is_refused(desk: Desk, tmp_path: Path) -> None:
    desk.join("north")
    keys, invitation = SiteKeys.load_or_create(tmp_path / "south"), desk.invite("south")
    for taken in (
        desk.home.keys.curve.public,
        desk.keys["north"].curve.public,
        invitation.keys.public,
        desk.invite("west").keys.public,
    ):
        with pytest.raises(RefusedError, match="another site"):
            join(desk, invitation, keys, curve_key=taken)
    assert join(desk, invitation, keys).site == "south"


def test_a_site_cannot_join_for_a_second_one(desk: Desk, tmp_path: Path) -> None:
    desk.join("north")
    keys = SiteKeys.load_or_create(tmp_path / "second")
    with pytest.raises(RefusedError, match="valid invitation"):
        desk.ask("north", Join(curve_key=keys.curve.public, signing_key=keys.signing_public, participation="weights"))


def test_a_key_that_nobody_knows_gets_nothing(desk: Desk) -> None:
    stranger = CurveKeys.generate()
    frames = [b"ayni/1", b"whatever"]
    assert desk.coordinator.handle(stranger.public, frames, desk.now_s) is None
    assert not desk.is_admitted(stranger)


def test_a_revoked_key_gets_nothing_within_a_second_also_on_a_live_line(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "REPLY_TIMEOUT_S", 0.1)
    desk.join("north")
    connection = desk.line(desk.keys["north"].curve)
    connection.ask(GetRound(), "control")
    revoke_site(desk.folder, "north")
    desk.pass_time(1)
    with pytest.raises(NotAdmittedError):
        connection.ask(GetRound(), "control")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "é", "x" * 65, ".hidden", "a\n"])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(desk: Desk, name: str) -> None:
    with pytest.raises(UserError, match="cannot be invited"):
        new_invitation(desk.folder, name, "clinic", HOUR_S)


def test_the_sdk_joins_by_the_string_and_says_what_is_wrong(desk: Desk, tmp_path: Path) -> None:
    text = desk.invite("north").to_string()

    def dial(keys: CurveKeys) -> Any:
        return desk.line(keys)._dial

    site = Site.join(text, tmp_path / "home", dial=dial)
    assert (site.settings.site, site.settings.role) == ("north", "clinic")
    with pytest.raises(UserError, match="joined already"):
        Site.join(text, tmp_path / "home", dial=dial)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        Site.join(text, tmp_path / "full", dial=dial)
    expired = desk.invite("south", valid_s=-DEADLINE_S).to_string()
    with pytest.raises(NotAdmittedError, match="expired on"):
        Site.join(expired, tmp_path / "late", dial=dial)
    assert Site.join(desk.invite("south").to_string(), tmp_path / "late", dial=dial).settings.site == "south"


def test_a_kill_after_the_request_and_before_the_settings_were_written_costs_nothing(
    desk: Desk, tmp_path: Path
) -> None:
    text = desk.invite("north").to_string()

    def dial(keys: CurveKeys) -> Any:
        return desk.line(keys)._dial

    first = Site.join(text, tmp_path / "home", dial=dial)
    (tmp_path / "home" / "site.json").unlink()  # what is written last
    again = Site.join(text, tmp_path / "home", dial=dial)
    assert again.keys.curve.public == first.keys.curve.public


def test_an_invitation_can_be_used_in_the_moment_in_which_it_was_made(desk: Desk, tmp_path: Path) -> None:
    with served(desk) as endpoint:
        for name in ("north", "south", "west"):
            made = new_invitation(desk.folder, name, "clinic", HOUR_S)  # by another process, as it were
            here = Invitation(made.secret, made.coordinator_key, made.expires_s, endpoint)
            assert Site.join(here, tmp_path / name).settings.site == name
    desk.close()
