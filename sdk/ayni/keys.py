"""The two key pairs that every party has: CURVE (who is on the line) and ed25519 (who made this file)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import Meta

from ayni.artefacts.files import write_atomic
from ayni.errors import IntegrityError, UserError
from ayni.task import Role

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
KEY_FOLDER = "keys"
CERTIFICATE_FILE = "certificate.msgpack"


@dataclass(frozen=True, slots=True, repr=False)  # no repr: a secret must not reach a log
class CurveKeys:
    """A CURVE25519 pair as raw bytes, the form that ZeroMQ takes."""

    public: bytes
    secret: bytes

    @classmethod
    def from_secret(cls, secret: bytes) -> CurveKeys:
        return cls(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw(), secret)

    @classmethod
    def generate(cls) -> CurveKeys:
        return cls.from_secret(X25519PrivateKey.generate().private_bytes_raw())


@dataclass(frozen=True, slots=True, repr=False)
class SiteKeys:
    """Both pairs of one party; they live in HOME/keys, readable by their owner only."""

    curve: CurveKeys
    signing: Ed25519PrivateKey

    @property
    def signing_public(self) -> bytes:
        return self.signing.public_key().public_bytes_raw()

    @classmethod
    def load_or_create(cls, home: Path) -> SiteKeys:
        folder = home / KEY_FOLDER
        if not (folder / "signing.key").exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            write_atomic(folder / "curve.key", CurveKeys.generate().secret, mode=0o600)
            write_atomic(folder / "signing.key", Ed25519PrivateKey.generate().private_bytes_raw(), mode=0o600)
        return cls.load(home)

    @classmethod
    def load(cls, home: Path) -> SiteKeys:
        folder = home / KEY_FOLDER
        try:
            curve, signing = (folder / "curve.key").read_bytes(), (folder / "signing.key").read_bytes()
            return cls(CurveKeys.from_secret(curve), Ed25519PrivateKey.from_private_bytes(signing))
        except FileNotFoundError:
            raise UserError(
                f"{home} holds no keys: it is not the folder of a site. Join with `ayni join` first."
            ) from None
        except ValueError:
            raise UserError(
                f"a key file in {folder} is damaged. Restore it, or join again with a new invitation."
            ) from None


def fingerprint(public_key: bytes) -> str:
    """What people read to each other over the telephone: 80 bits of the key's hash in groups of four.

    >>> fingerprint(bytes(32))
    '6668-7aad-f862-bd77-6c8f'
    """
    text = hashlib.sha256(public_key).hexdigest()[:20]
    return "-".join(text[start : start + 4] for start in range(0, 20, 4))


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Bytes with the key that signed them. What the bytes are for stands in front of them when they are signed."""

    payload: bytes
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)


def sign(payload: bytes, purpose: str, key: Ed25519PrivateKey) -> bytes:
    return Signed(payload, key.sign(purpose.encode() + b"\0" + payload)).to_bytes()


def open_signed(data: bytes, purpose: str, public_key: bytes) -> bytes:
    """The signed payload. Raises IntegrityError, and nothing else, whatever the bytes."""
    try:
        signed = msgspec.msgpack.decode(data, type=Signed)
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            signed.signature, purpose.encode() + b"\0" + signed.payload
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, InvalidSignature):
        raise IntegrityError(
            f"a {purpose} is not signed by the key {fingerprint(public_key)}; it was not used"
        ) from None
    return signed.payload


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The coordinator's word that a signing key belongs to a site of its federation."""

    site: str
    role: Role
    task: str
    signing_key: Key
    issued_s: int

    def signed_by(self, coordinator: Ed25519PrivateKey) -> bytes:
        return sign(msgspec.msgpack.encode(self), "site certificate", coordinator)

    @classmethod
    def verified(cls, data: bytes, coordinator_key: bytes) -> Certificate:
        """Raises IntegrityError, and nothing else, whatever the bytes."""
        payload = open_signed(data, "site certificate", coordinator_key)
        try:
            return msgspec.msgpack.decode(payload, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise IntegrityError("a site certificate of another version; it was not used") from None
