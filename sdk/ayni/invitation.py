"""An invitation: one string that is a temporary identity, the coordinator's key and its address.

The string holds a 16-byte secret. HKDF makes a CURVE key pair from it on both sides; the coordinator stores only the
public half and the expiry. So there is no anonymous port and no trust on first use (prior art: kubeadm join).
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ayni.errors import UserError
from ayni.keys import CurveKeys

PREFIX = "AYNI1-"
_FIXED = struct.Struct(">16s32sI")
_ENDPOINT = re.compile(r"tcp://[A-Za-z0-9.\-\[\]:]+:(\d{1,5})")


@dataclass(frozen=True, slots=True, repr=False)  # no repr: the secret must not reach a log
class Invitation:
    """`endpoint` is the only address that a site needs; `expires_s` is in seconds since 1970."""

    secret: bytes
    coordinator_key: bytes
    expires_s: int
    endpoint: str

    @classmethod
    def new(cls, coordinator_key: bytes, endpoint: str, expires_s: int) -> Invitation:
        check_endpoint(endpoint)
        return cls(secrets.token_bytes(16), coordinator_key, expires_s, endpoint)

    @property
    def keys(self) -> CurveKeys:
        """The temporary identity with which the coordinator lets one site in."""
        derived = HKDF(SHA256(), 32, salt=None, info=b"ayni invitation curve key/1").derive(self.secret)
        return CurveKeys.from_secret(derived)

    def to_string(self) -> str:
        """Capital letters, digits and one hyphen: it fits the dense mode of a QR code, and can be read out."""
        body = _FIXED.pack(self.secret, self.coordinator_key, self.expires_s) + self.endpoint.encode()
        body += hashlib.sha256(body).digest()[:4]
        return PREFIX + base64.b32encode(body).decode().rstrip("=")

    @classmethod
    def from_string(cls, text: str) -> Invitation:
        """Forgives spaces, line breaks and small letters; raises UserError for anything else that is wrong."""
        compact = "".join(text.split()).upper()
        if not compact.startswith(PREFIX):
            raise UserError(f"this is no invitation: it should start with {PREFIX}. Copy the whole string again.")
        letters = compact.removeprefix(PREFIX)
        try:
            body = base64.b32decode(letters + "=" * (-len(letters) % 8))
        except ValueError:
            raise UserError("the invitation has a letter that cannot be in one. Copy the whole string again.") from None
        content, checksum = body[:-4], body[-4:]
        if len(content) <= _FIXED.size or hashlib.sha256(content).digest()[:4] != checksum:
            raise UserError("the invitation is mistyped or cut short. Copy the whole string again.")
        secret, coordinator_key, expires_s = _FIXED.unpack(content[: _FIXED.size])
        endpoint = content[_FIXED.size :].decode(errors="replace")
        check_endpoint(endpoint)
        return cls(secret, coordinator_key, expires_s, endpoint)


def check_endpoint(endpoint: str) -> None:
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or not 0 < int(found[1]) < 65536:
        raise UserError(f"{endpoint!r} is no address of a coordinator; it looks like tcp://name.example.org:7700.")
