"""The protocol without I/O: whatever bytes come, a typed message or one peer error."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayni.errors import PeerProtocolError
from ayni.wire.messages import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    VERSION,
    Chunk,
    ExpertIs,
    GetChunk,
    GetManifest,
    GetRound,
    GetUpload,
    Join,
    Joined,
    Leave,
    Left,
    ManifestIs,
    PutChunk,
    Refusal,
    Reply,
    ReplyBody,
    Request,
    RequestBody,
    RoundIs,
    ShareExpert,
    Submit,
    Submitted,
    UploadIs,
    new_request,
    parse_reply,
    parse_request,
    to_frames,
)

KEY, SHA, ID = bytes(range(32)), bytes(32), bytes(16)
REQUESTS: list[RequestBody] = [
    Join(curve_key=KEY, signing_key=KEY, participation="distill"),
    GetManifest(have_version=0),
    GetRound(),
    GetChunk(sha256=SHA, offset=2**40 - 1, length=MAX_PAYLOAD_BYTES),
    GetUpload(sha256=SHA),
    PutChunk(kind="soft-labels", sha256=SHA, offset=0, total_bytes=1),
    Submit(round_number=1, update=SHA, soft_labels=None, num_examples=1, train_s=0.5),
    ShareExpert(expert=SHA),
    ShareExpert(expert=None),
    Leave(),
]
REPLIES: list[ReplyBody] = [
    Joined(site="n", role="clinic", task="t", coordinator_signing_key=KEY, certificate=b"c"),
    ManifestIs(version=3),
    RoundIs(
        phase="open", round_number=1, num_rounds=2, wanted=True, deadline_in_s=1.5, retry_after_s=0.25,
        manifest_version=1, num_sites=3, num_answered=0, now_s=1e9,
    ),
    Chunk(sha256=SHA, offset=0, total_bytes=7),
    UploadIs(sha256=SHA, received_bytes=5, stored=False),
    Submitted(round_number=1, outcome="late"),
    ExpertIs(expert=None),
    Left(),
    Refusal(code="busy", message="later"),
]  # fmt: skip
frame = st.binary(max_size=200)


@pytest.mark.parametrize("body", REQUESTS, ids=lambda body: type(body).__name__)
def test_every_request_comes_out_as_it_went_in(body: RequestBody) -> None:
    request = new_request(body)
    parsed, payload = parse_request(to_frames(request, b"payload"))
    assert (parsed, bytes(payload)) == (request, b"payload")
    assert parse_request(to_frames(request)) == (request, b"")


@pytest.mark.parametrize("body", REPLIES, ids=lambda body: type(body).__name__)
def test_every_reply_comes_out_as_it_went_in(body: ReplyBody) -> None:
    reply = Reply(ID, body)
    parsed, payload = parse_reply(to_frames(reply, memoryview(b"payload")))
    assert (parsed, bytes(payload)) == (reply, b"payload")


def test_the_lists_above_hold_every_message_there_is() -> None:
    assert {type(body) for body in REQUESTS} == set(RequestBody.__args__)
    assert {type(body) for body in REPLIES} == set(ReplyBody.__args__)


def test_request_ids_do_not_repeat() -> None:
    assert len({new_request(GetRound()).id for _ in range(1000)}) == 1000


def parse_both(frames: list[bytes]) -> None:
    """Each parser gives its own type or the one error; anything else fails the test."""
    for parse, kind in ((parse_request, Request), (parse_reply, Reply)):
        try:
            message, payload = parse(frames)
        except PeerProtocolError:
            continue
        assert isinstance(message, kind)
        assert len(payload) <= MAX_PAYLOAD_BYTES


@given(st.lists(frame, max_size=6))
def test_whatever_frames_come_nothing_else_is_raised(frames: list[bytes]) -> None:
    parse_both(frames)


@given(frame)
def test_whatever_header_comes_under_the_right_version_nothing_else_is_raised(header: bytes) -> None:
    parse_both([VERSION, header])


@given(st.sampled_from(REQUESTS + REPLIES), st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3))
def test_a_valid_header_with_a_byte_changed_cut_or_added_raises_nothing_else(
    body: Any, place: int, byte: int, how: int
) -> None:
    message = Request(ID, body) if isinstance(body, RequestBody) else Reply(ID, body)
    header = bytearray(to_frames(message)[1])
    place %= len(header)
    if how == 0:
        header[place] = byte
    elif how == 1:
        del header[place:]
    elif how == 2:
        header.insert(place, byte)
    else:
        header += bytes([byte])
    parse_both([VERSION, bytes(header)])


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.binary(), lambda inner: st.lists(inner)))
def test_well_formed_msgpack_of_another_shape_raises_nothing_else(value: Any) -> None:
    parse_both([VERSION, msgspec.msgpack.encode([ID, value])])


@pytest.mark.parametrize("bomb", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\x92\xc4\x10" + ID + b"\x81\xa4type\x91"])
def test_a_recursion_bomb_is_a_peer_error(bomb: bytes) -> None:
    for depth in (500, 5000):
        header = (bomb * depth)[:MAX_HEADER_BYTES]
        with pytest.raises(PeerProtocolError):
            parse_request([VERSION, header])
        with pytest.raises(PeerProtocolError):
            parse_reply([VERSION, header])


def raw(kind: str, **fields: Any) -> list[bytes]:
    return [VERSION, msgspec.msgpack.encode([ID, {"type": kind, **fields}])]


SUBMIT: dict[str, Any] = {"round_number": 1, "update": SHA, "soft_labels": None, "num_examples": 1, "train_s": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"train_s": float("inf")},
        {"train_s": float("nan")},
        {"train_s": -1.0},
        {"num_examples": 0},
        {"num_examples": 2**31},
        {"round_number": -1},
        {"update": SHA[:31]},
        {"update": SHA + b"x"},
        {"update": "0" * 64},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_value_out_of_its_bounds_is_a_peer_error(change: dict[str, Any]) -> None:
    parse_request(raw("Submit", **SUBMIT))  # the unchanged one is fine
    with pytest.raises(PeerProtocolError):
        parse_request(raw("Submit", **{**SUBMIT, **change}))


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -0.5, 1e12])
def test_a_site_is_never_told_to_wait_for_ever(seconds: float) -> None:
    told = msgspec.structs.asdict(REPLIES[2])
    parse_reply(raw("RoundIs", **told))
    with pytest.raises(PeerProtocolError):
        parse_reply(raw("RoundIs", **{**told, "retry_after_s": seconds}))


def test_a_text_that_is_not_utf8_is_a_peer_error() -> None:
    header = to_frames(Reply(ID, Refusal(code="busy", message="later")))[1]
    with pytest.raises(PeerProtocolError):
        parse_reply([VERSION, bytes(header).replace(b"later", b"\xff\xfe\xff\xfe\xff")])


@pytest.mark.parametrize("version", [b"", b"ayni/2", b"ayni/1x", b"AYNI/1", b"ayni", b"x" * 10_000])
def test_another_version_is_said_with_what_to_do(version: bytes) -> None:
    with pytest.raises(PeerProtocolError, match="update Ayni on the older side"):
        parse_request([version, *to_frames(new_request(GetRound()))[1:]])


def test_frames_too_few_too_many_or_too_large_are_peer_errors() -> None:
    good = [bytes(part) for part in to_frames(new_request(GetRound()), b"p")]
    parse_request(good)
    parse_request([*good[:2], bytes(MAX_PAYLOAD_BYTES)])
    for frames in ([], good[:1], [*good, b""], [*good, b"", b""], [*good[:2], bytes(MAX_PAYLOAD_BYTES + 1)]):
        with pytest.raises(PeerProtocolError):
            parse_request(frames)
    with pytest.raises(PeerProtocolError):
        parse_request([VERSION, bytes(MAX_HEADER_BYTES + 1)])


def test_a_request_is_no_reply_and_a_reply_no_request() -> None:
    with pytest.raises(PeerProtocolError):
        parse_reply(to_frames(new_request(Leave())))
    with pytest.raises(PeerProtocolError):
        parse_request(to_frames(Reply(ID, Left())))


def test_the_largest_honest_header_is_far_below_the_bound() -> None:
    largest = Joined(
        site="s" * 1000, role="hospital", task="t" * 1000, coordinator_signing_key=KEY, certificate=bytes(4096)
    )
    assert len(to_frames(Reply(ID, largest))[1]) < MAX_HEADER_BYTES / 2


def test_a_peers_bytes_are_not_in_the_error_text() -> None:
    secret = b"name-of-a-patient" + random.Random(0).randbytes(16)
    with pytest.raises(PeerProtocolError) as caught:
        parse_request([VERSION, secret])
    assert "patient" not in str(caught.value)
