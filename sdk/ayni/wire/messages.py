"""The protocol, free of I/O: typed, frozen, versioned messages. Every message is a request or its one reply.

Frames on the wire: the version, a msgpack header with the message, and at most one payload. Whatever bytes come,
the parsers here return a typed message or raise PeerProtocolError.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ayni.errors import PeerProtocolError
from ayni.keys import Key
from ayni.task import Participation, Role

VERSION = b"ayni/1"
MAX_HEADER_BYTES = 16 << 10
MAX_PAYLOAD_BYTES = 1 << 20
MAX_FRAMES = 3

Sha256 = Annotated[bytes, Meta(min_length=32, max_length=32)]
RequestId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Count = Annotated[int, Meta(ge=0, lt=2**40)]
RoundNumber = Annotated[int, Meta(ge=0, lt=2**31)]
Seconds = Annotated[float, Meta(ge=0, lt=1e12)]
Text = Annotated[str, Meta(max_length=1000)]
UploadKind = Literal["update", "soft-labels", "expert"]
Phase = Literal["waiting", "open", "closed", "finished"]


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    pass


# What a site asks


class Join(_Message, frozen=True, kw_only=True):
    """Asked once with the invitation's key: register these keys. Asking again with the same keys is harmless."""

    curve_key: Key
    signing_key: Key
    participation: Participation


class GetManifest(_Message, frozen=True, kw_only=True):
    """The signed list of artefacts, unless it is still version `have_version`."""

    have_version: Count


class GetRound(_Message, frozen=True, kw_only=True):
    """How the federation stands, seen from this site."""


class GetChunk(_Message, frozen=True, kw_only=True):
    """Part of an artefact that the manifest lists; the reply carries it as payload."""

    sha256: Sha256
    offset: Count
    length: Annotated[int, Meta(ge=1, le=MAX_PAYLOAD_BYTES)]


class GetUpload(_Message, frozen=True, kw_only=True):
    """How much of this artefact has arrived? So an upload goes on where it was cut."""

    sha256: Sha256


class PutChunk(_Message, frozen=True, kw_only=True):
    """Part of an artefact on its way up; the part is the payload."""

    kind: UploadKind
    sha256: Sha256
    offset: Count
    total_bytes: Count


class Submit(_Message, frozen=True, kw_only=True):
    """This site's answer to a round: artefacts that were put before. A repetition is not counted twice."""

    round_number: RoundNumber
    update: Sha256 | None
    soft_labels: Sha256 | None
    num_examples: Annotated[int, Meta(ge=1, lt=2**31)]
    train_s: Seconds


class ShareExpert(_Message, frozen=True, kw_only=True):
    """This site agrees that its personal model (put before) is an expert in later bundles; None: not any more.

    A repetition is harmless; another expert takes the place of the one before.
    """

    expert: Sha256 | None


class Leave(_Message, frozen=True, kw_only=True):
    """This site goes for good; its key is no longer admitted."""


# What the coordinator replies


class Joined(_Message, frozen=True, kw_only=True):
    site: Text
    role: Role
    task: Text
    coordinator_signing_key: Key
    certificate: Annotated[bytes, Meta(max_length=4096)]


class ManifestIs(_Message, frozen=True, kw_only=True):
    """The payload is the signed manifest, or empty if the site has this version."""

    version: Count


class RoundIs(_Message, frozen=True, kw_only=True):
    """`phase`: waiting (for sites to join), open, closed (being averaged), finished.

    `wanted`: this site's answer is still wanted. `retry_after_s` is when asking again makes sense, `now_s` the
    coordinator's clock.
    """

    phase: Phase
    round_number: RoundNumber
    num_rounds: RoundNumber
    wanted: bool
    deadline_in_s: Seconds
    retry_after_s: Seconds
    manifest_version: Count
    num_sites: Count
    num_answered: Count
    now_s: Seconds


class Chunk(_Message, frozen=True, kw_only=True):
    sha256: Sha256
    offset: Count
    total_bytes: Count


class UploadIs(_Message, frozen=True, kw_only=True):
    """`received_bytes` from the start have arrived; `stored` once all have, and the hash was right."""

    sha256: Sha256
    received_bytes: Count
    stored: bool


class Submitted(_Message, frozen=True, kw_only=True):
    """`outcome`: counted; late: the round had closed, and the answer is not used."""

    round_number: RoundNumber
    outcome: Literal["counted", "late"]


class ExpertIs(_Message, frozen=True, kw_only=True):
    """What this site shares now."""

    expert: Sha256 | None


class Left(_Message, frozen=True, kw_only=True):
    pass


RefusalCode = Literal[
    "bad-request", "used-invitation", "not-allowed", "unknown-artefact", "bad-artefact", "too-large", "busy"
]


class Refusal(_Message, frozen=True, kw_only=True):
    """The request was understood and is refused; `message` is for the person at the site."""

    code: RefusalCode
    message: Text


RequestBody = Join | GetManifest | GetRound | GetChunk | GetUpload | PutChunk | Submit | ShareExpert | Leave
ReplyBody = Joined | ManifestIs | RoundIs | Chunk | UploadIs | Submitted | ExpertIs | Left | Refusal


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    id: RequestId
    body: RequestBody


class Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    id: RequestId
    body: ReplyBody


def new_request(body: RequestBody) -> Request:
    return Request(secrets.token_bytes(16), body)


def to_frames(message: Request | Reply, payload: bytes | memoryview = b"") -> list[bytes | memoryview]:
    header = msgspec.msgpack.encode(message)
    return [VERSION, header, payload] if len(payload) else [VERSION, header]


_REQUESTS = msgspec.msgpack.Decoder(Request)
_REPLIES = msgspec.msgpack.Decoder(Reply)


def parse_request(frames: Sequence[bytes | memoryview]) -> tuple[Request, bytes | memoryview]:
    """Raises PeerProtocolError, and nothing else, whatever the bytes."""
    header, payload = _unwrap(frames)
    try:
        return _REQUESTS.decode(header), payload
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerProtocolError(f"bad request: {type(error).__name__}") from None


def parse_reply(frames: Sequence[bytes | memoryview]) -> tuple[Reply, bytes | memoryview]:
    """Raises PeerProtocolError, and nothing else, whatever the bytes."""
    header, payload = _unwrap(frames)
    try:
        return _REPLIES.decode(header), payload
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerProtocolError(f"bad reply: {type(error).__name__}") from None


def _unwrap(frames: Sequence[bytes | memoryview]) -> tuple[bytes | memoryview, bytes | memoryview]:
    sizes = [len(frame) for frame in frames]
    if not 2 <= len(frames) <= MAX_FRAMES or sizes[1] > MAX_HEADER_BYTES or sum(sizes[2:]) > MAX_PAYLOAD_BYTES:
        raise PeerProtocolError(f"expected version, header and payload; got frames of {sizes[:4]} bytes")
    if bytes(frames[0][: len(VERSION) + 1]) != VERSION:
        raise PeerProtocolError("the other side speaks another version of the protocol; update Ayni on the older side")
    return frames[1], frames[2] if len(frames) == 3 else b""
