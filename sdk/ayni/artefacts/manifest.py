"""The signed list of what the coordinator distributes. Its version only grows; a roll-back is refused."""

from __future__ import annotations

from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ayni.errors import IntegrityError
from ayni.keys import open_signed, sign
from ayni.wire.messages import Count, RoundNumber, Sha256, Text

ArtefactKind = Literal["task", "public-set", "targets", "model", "bundle", "teacher"]
_PURPOSE = "manifest"


class Artefact(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One content-addressed file. `name` tells artefacts of a kind apart ("guidance", "labels", "consensus"; "whole",
    "change").

    A model of round r is the last `whole` one before it and the `change`s after that; `digest` is the SHA-256 of the
    tensors (`ayni.tensors.safe.digest`) that come out.
    """

    kind: ArtefactKind
    name: Text
    round_number: RoundNumber
    sha256: Sha256
    num_bytes: Count
    digest: bytes = b""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Count
    issued_s: Count
    expires_s: Count
    artefacts: tuple[Artefact, ...]

    def signed_by(self, key: Ed25519PrivateKey) -> bytes:
        return sign(msgspec.msgpack.encode(self), _PURPOSE, key)

    def latest(self, kind: ArtefactKind, name: str | None = None) -> Artefact | None:
        found = [a for a in self.artefacts if a.kind == kind and (name is None or a.name == name)]
        return max(found, key=lambda artefact: artefact.round_number, default=None)

    def model_chain(self) -> tuple[Artefact, ...]:
        """What makes the newest global model: the last whole one, then the changes after it, in order."""
        models = sorted((a for a in self.artefacts if a.kind == "model"), key=lambda artefact: artefact.round_number)
        start = max((i for i, artefact in enumerate(models) if artefact.name == "whole"), default=0)
        return tuple(models[start:])


def verified_manifest(data: bytes, coordinator_key: bytes, *, known: Manifest | None) -> Manifest:
    """Raises IntegrityError if it is not signed by this key, older than `known`, or another one of its version."""
    payload = open_signed(data, _PURPOSE, coordinator_key)
    try:
        manifest = msgspec.msgpack.decode(payload, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise IntegrityError("a manifest of another version of Ayni; update Ayni on the older side") from None
    if known and manifest.version < known.version:
        raise IntegrityError(
            f"the coordinator offers manifest {manifest.version}, older than {known.version}, which was seen before; "
            "nothing was changed here. Ask the coordinator whether an old backup was restored."
        )
    if known and manifest.version == known.version and manifest != known:
        raise IntegrityError(
            f"the coordinator signed two manifests of version {known.version}; the second was not used"
        )
    return manifest
