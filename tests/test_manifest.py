"""The signed list of artefacts: forged, older and doubled ones are refused; the newest model is found in it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ayni.artefacts.manifest import Artefact, ArtefactKind, Manifest, verified_manifest
from ayni.errors import IntegrityError
from ayni.keys import sign
from ayni.site.agent import Agent
from ayni.site.state import SiteSettings, SiteState
from desk import Desk, task_with

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = KEY.public_key().public_bytes_raw()


def artefact(kind: ArtefactKind, name: str, round_number: int) -> Artefact:
    return Artefact(kind, name, round_number, bytes(32), 7)


def manifest(version: int, *artefacts: Artefact) -> Manifest:
    return Manifest(version=version, issued_s=1000, expires_s=2000, artefacts=artefacts)


def test_a_signed_manifest_comes_out_as_it_went_in() -> None:
    one = manifest(3, artefact("task", "task", 0), artefact("model", "whole", 0))
    assert verified_manifest(one.signed_by(KEY), PUBLIC, known=None) == one
    assert verified_manifest(one.signed_by(KEY), PUBLIC, known=one) == one  # the same again is fine


def test_one_of_another_key_or_purpose_or_with_a_byte_changed_is_refused() -> None:
    one = manifest(1, artefact("model", "whole", 0))
    forged = [
        one.signed_by(Ed25519PrivateKey.generate()),
        sign(msgspec.msgpack.encode(one), "site certificate", KEY),
        one.signed_by(KEY).replace(b"whole", b"wh0le"),
        one.signed_by(KEY)[:-1],
        b"",
    ]
    for data in forged:
        with pytest.raises(IntegrityError):
            verified_manifest(data, PUBLIC, known=None)


@given(st.binary(max_size=200))
def test_whatever_the_right_key_has_signed_the_error_is_integrity(payload: bytes) -> None:
    with pytest.raises(IntegrityError, match="another version of Ayni"):
        verified_manifest(sign(payload, "manifest", KEY), PUBLIC, known=None)


def test_a_roll_back_is_refused_with_what_may_have_happened() -> None:
    with pytest.raises(IntegrityError, match="old backup"):
        verified_manifest(manifest(4).signed_by(KEY), PUBLIC, known=manifest(5))
    assert verified_manifest(manifest(6).signed_by(KEY), PUBLIC, known=manifest(5)).version == 6


def test_two_manifests_of_one_version_are_refused() -> None:
    known = manifest(5, artefact("model", "whole", 0))
    with pytest.raises(IntegrityError, match="two manifests of version 5"):
        verified_manifest(manifest(5, artefact("model", "change", 0)).signed_by(KEY), PUBLIC, known=known)


def test_the_newest_model_is_the_last_whole_one_and_the_changes_after_it() -> None:
    whole, first, second = artefact("model", "whole", 0), artefact("model", "change", 1), artefact("model", "change", 2)
    again, third = artefact("model", "whole", 3), artefact("model", "change", 4)
    noise = artefact("targets", "guidance", 9)
    assert manifest(1, whole).model_chain() == (whole,)
    assert manifest(1, second, noise, whole, first).model_chain() == (whole, first, second)
    assert manifest(1, whole, first, second, again).model_chain() == (again,)
    assert manifest(1, third, whole, again, first, second).model_chain() == (again, third)
    assert manifest(1, noise).model_chain() == ()


def test_the_latest_of_a_kind_and_name_is_found() -> None:
    one = manifest(1, artefact("targets", "consensus", 3), artefact("targets", "consensus", 2))
    newest = one.latest("targets", "consensus")
    assert newest is not None
    assert newest.round_number == 3
    assert one.latest("targets", "guidance") is None
    assert one.latest("model") is None


class Notes:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, what: str, done: int, total: int) -> None:
        pass


def test_an_expired_manifest_warns_and_disables_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "centre", task_with(round={"wait_for_sites": 1}))
    desk.join("north")
    home, notes = tmp_path / "site", Notes()
    home.mkdir()
    old = msgspec.structs.replace(desk.manifest("north"), issued_s=1, expires_s=2)
    settings = SiteSettings(
        endpoint="", coordinator_key=bytes(32), coordinator_signing_key=desk.home.keys.signing_public,
        site="north", role="clinic", task="shadows", participation="weights",
    )  # fmt: skip
    with SiteState(home) as state, desk.line(desk.keys["north"].curve) as line:
        state.store_manifest(old.signed_by(desk.home.keys.signing))
        agent = Agent(home, settings, state, lambda: line, notes)
        assert agent.sync(line, old.version).artefacts == old.artefacts
    assert len(notes.texts) == 1
    assert "expired; going on" in notes.texts[0]
    assert {path.name for path in (home / "artefacts").iterdir()} == {a.sha256.hex() for a in old.artefacts}
