"""Keys and invitations: one string, hard to get wrong, useless once mistyped."""

from __future__ import annotations

import base64
import stat
import time
from pathlib import Path

import pytest
import zmq
import zmq.utils.z85
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ayni.errors import IntegrityError, UserError
from ayni.invitation import PREFIX, Invitation, check_endpoint
from ayni.keys import Certificate, CurveKeys, SiteKeys, fingerprint, open_signed, sign

KEY = bytes(range(32))
INVITATION = Invitation(bytes(range(16)), KEY, 1_900_000_000, "tcp://ayni.example.org:7700")


@given(st.binary(min_size=32, max_size=32))
def test_our_curve_keys_are_the_ones_zeromq_derives(secret: bytes) -> None:
    theirs = zmq.curve_public(zmq.utils.z85.encode(secret))
    assert CurveKeys.from_secret(secret).public == zmq.utils.z85.decode(theirs)


def test_the_temporary_key_of_an_invitation_is_one_that_zeromq_agrees_with() -> None:
    keys = INVITATION.keys
    assert zmq.curve_public(zmq.utils.z85.encode(keys.secret)) == zmq.utils.z85.encode(keys.public)
    assert keys.public == Invitation.from_string(INVITATION.to_string()).keys.public


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.1:1", "tcp://[::1]:7700", "tcp://a-b.example.org:65535"])
def test_an_invitation_comes_out_as_it_went_in(endpoint: str) -> None:
    invitation = Invitation.new(KEY, endpoint, 1_900_000_000)
    read = Invitation.from_string(invitation.to_string())
    assert (read.secret, read.coordinator_key, read.expires_s, read.endpoint) == (
        invitation.secret, KEY, 1_900_000_000, endpoint,
    )  # fmt: skip


def test_spaces_line_breaks_and_small_letters_are_forgiven() -> None:
    text = INVITATION.to_string()
    lines = "  " + "\n".join(text.lower()[start : start + 10] + " " for start in range(0, len(text), 10)) + "\r\n"
    assert Invitation.from_string(lines).to_string() == text


def test_any_one_letter_changed_is_refused() -> None:
    text = INVITATION.to_string()
    for place in range(len(PREFIX), len(text)):
        for letter in "AQ7":
            if text[place] != letter:
                with pytest.raises(UserError):
                    Invitation.from_string(text[:place] + letter + text[place + 1 :])


def test_every_cut_and_every_pair_swapped_is_refused() -> None:
    text = INVITATION.to_string()
    for length in range(len(text)):
        with pytest.raises(UserError):
            Invitation.from_string(text[:length])
    for place in range(len(PREFIX), len(text) - 1):
        if text[place] != text[place + 1]:
            with pytest.raises(UserError):
                Invitation.from_string(text[:place] + text[place + 1] + text[place] + text[place + 2 :])


@given(st.text(max_size=300))
def test_whatever_text_is_given_the_error_is_the_users(text: str) -> None:
    for given_text in (text, PREFIX + text):
        with pytest.raises(UserError):
            Invitation.from_string(given_text)


@given(st.binary(max_size=200))
def test_whatever_bytes_an_invitation_holds_the_error_is_the_users(body: bytes) -> None:
    with pytest.raises(UserError):
        Invitation.from_string(PREFIX + base64.b32encode(body).decode().rstrip("="))


@pytest.mark.parametrize(
    "endpoint",
    ["", "example.org:77", "ipc:///tmp/x", "tcp://a.org", "tcp://a b:1", "tcp://x:1\n", "tcp://x:0", "tcp://x:65536"],
)
def test_an_address_that_cannot_be_dialled_is_refused(endpoint: str) -> None:
    with pytest.raises(UserError, match="looks like tcp://"):
        check_endpoint(endpoint)


def test_secrets_do_not_show_in_a_repr() -> None:
    keys = CurveKeys.generate()
    for thing in (INVITATION, keys, SiteKeys(keys, Ed25519PrivateKey.generate())):
        assert repr(keys.secret)[2:10] not in repr(thing)
        assert "secret" not in repr(thing)


def test_keys_are_made_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    first, second = SiteKeys.load_or_create(tmp_path), SiteKeys.load_or_create(tmp_path)
    assert (first.curve.secret, first.signing_public) == (second.curve.secret, second.signing_public)
    for name in ("curve.key", "signing.key"):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_a_kill_between_the_two_key_files_costs_nothing(tmp_path: Path) -> None:
    SiteKeys.load_or_create(tmp_path)
    (tmp_path / "keys" / "signing.key").unlink()  # the file that is written last
    assert SiteKeys.load_or_create(tmp_path).signing_public == SiteKeys.load(tmp_path).signing_public


def test_a_damaged_or_missing_key_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ayni join"):
        SiteKeys.load(tmp_path)
    SiteKeys.load_or_create(tmp_path)
    (tmp_path / "keys" / "curve.key").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        SiteKeys.load(tmp_path)


def test_a_signature_holds_for_its_bytes_its_purpose_and_its_key_only() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    signed = sign(b"payload", "manifest", key)
    assert open_signed(signed, "manifest", public) == b"payload"
    for data, purpose, who in (
        (signed, "site certificate", public),
        (signed, "manifest", other.public_key().public_bytes_raw()),
        (signed.replace(b"payload", b"payl0ad"), "manifest", public),
        (signed[:-1], "manifest", public),
        (b"", "manifest", public),
    ):
        with pytest.raises(IntegrityError):
            open_signed(data, purpose, who)


@given(st.binary(max_size=300))
def test_whatever_bytes_are_opened_as_signed_the_error_is_integrity(data: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(KEY)
    with pytest.raises(IntegrityError):
        open_signed(data, "manifest", key.public_key().public_bytes_raw())
    with pytest.raises(IntegrityError):
        Certificate.verified(sign(data, "site certificate", key), key.public_key().public_bytes_raw())


def test_a_certificate_names_the_site_and_its_key() -> None:
    coordinator = Ed25519PrivateKey.generate()
    certificate = Certificate(site="north", role="clinic", task="t", signing_key=KEY, issued_s=int(time.time()))
    signed = certificate.signed_by(coordinator)
    assert Certificate.verified(signed, coordinator.public_key().public_bytes_raw()) == certificate
    assert len(fingerprint(KEY).split("-")) == 5
