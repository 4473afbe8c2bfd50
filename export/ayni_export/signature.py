"""`signature.json` of a bundle: who made these files, and which coordinator says so. Needs no numpy, no torch.

The site's key signs the files. The coordinator's certificate names that key, so a clinic that knows the coordinator's
fingerprint knows every site of its federation. Both keys stand in the file, and so anybody can bring keys of their own:
only a fingerprint that came by another way, by telephone say, tells who signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ayni import keys
from ayni.errors import IntegrityError

Compared = Literal["", "site", "coordinator"]


class BundleError(IntegrityError):
    """A bundle that is damaged, changed or signed by somebody else: nothing was done with it."""

    exit_code = 2


class Vouched(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The coordinator's word on the signing key (keys.Certificate, signed by it); bytes are hexadecimal."""

    coordinator_key: str
    certificate: str


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`signature.json`; bytes are hexadecimal. `files`: SHA-256 by name."""

    format: Literal["ayni-bundle/1"] = "ayni-bundle/1"
    files: dict[str, str]
    signing_key: str
    signature: str
    vouched: Vouched | None = None


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed, as far as the file itself can say; `compared` tells with whose fingerprint a person compared it."""

    signing_key: bytes
    coordinator_key: bytes | None = None
    certificate: keys.Certificate | None = None
    compared: Compared = ""

    @property
    def fingerprint(self) -> str:
        return keys.fingerprint(self.signing_key)

    @property
    def coordinator(self) -> str:
        """The fingerprint of the coordinator that vouches for the signing key, or empty."""
        return keys.fingerprint(self.coordinator_key) if self.coordinator_key is not None else ""


def sign_files(files: Mapping[str, bytes], key: Ed25519PrivateKey, vouched: Vouched | None) -> bytes:
    """The content of `signature.json` for these files."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    signed = msgspec.msgpack.decode(keys.sign(_listing(hashes), "bundle", key), type=keys.Signed)
    signature = Signature(
        files=hashes,
        signing_key=key.public_key().public_bytes_raw().hex(),
        signature=signed.signature.hex(),
        vouched=vouched,
    )
    return msgspec.json.format(msgspec.json.encode(signature), indent=2) + b"\n"


def verified_signer(signature: Signature, folder: Path) -> Signer:
    """Verify the signature, and the certificate if there is one. `folder` is for the error. Raises BundleError."""
    try:
        key = bytes.fromhex(signature.signing_key)
        signed = keys.Signed(_listing(signature.files), bytes.fromhex(signature.signature))
        keys.open_signed(signed.to_bytes(), "bundle", key)
    except (ValueError, IntegrityError):
        raise BundleError(f"the signature of the bundle {folder} is wrong. Export it again at the site.") from None
    if signature.vouched is None:
        return Signer(key)
    return Signer(key, *verified_certificate(signature.vouched, key))


def verified_certificate(vouched: Vouched, signing_key: bytes) -> tuple[bytes, keys.Certificate]:
    """The coordinator's key, and its word that `signing_key` belongs to a site. Raises BundleError."""
    try:
        coordinator_key = bytes.fromhex(vouched.coordinator_key)
        certificate = keys.Certificate.verified(bytes.fromhex(vouched.certificate), coordinator_key)
    except (ValueError, IntegrityError):
        raise BundleError(
            "the certificate of the site's key is damaged, or not of that coordinator. Export again at the site; if "
            "that fails, join again."
        ) from None
    if certificate.signing_key != signing_key:
        raise BundleError(
            f"the coordinator's certificate is for the key {keys.fingerprint(certificate.signing_key)}, and the bundle "
            f"is signed by {keys.fingerprint(signing_key)}. Export again with the key with which the site joined."
        )
    return coordinator_key, certificate


def check_site(certificate: keys.Certificate, site: str, task: str) -> None:
    """A certificate is for one site in one task. Raises BundleError if it is for another."""
    if (certificate.site, certificate.task) != (site, task):
        raise BundleError(
            f"the coordinator's certificate is for site {certificate.site!r} in task {certificate.task!r}, and the "
            f"model is of site {site!r} in task {task!r}. Export it at the site that trained it."
        )


def compared_with(signer: Signer, wanted: str, folder: Path) -> Signer:
    """The signer, if `wanted` is the fingerprint of its key or of its coordinator's. Raises BundleError."""
    if _plain(wanted) == _plain(signer.fingerprint):
        return replace(signer, compared="site")
    if signer.coordinator and _plain(wanted) == _plain(signer.coordinator):
        return replace(signer, compared="coordinator")
    vouching = f"vouched for by {signer.coordinator}" if signer.coordinator else "no coordinator vouches for it"
    raise BundleError(
        f"{folder} is signed by {signer.fingerprint} ({vouching}), not by {wanted}. Ask the site or the coordinator "
        "for its fingerprint by telephone; do not use this bundle before the two agree."
    )


def _listing(hashes: Mapping[str, str]) -> bytes:
    return msgspec.json.encode({"format": "ayni-bundle/1", "files": hashes}, order="deterministic")


def _plain(fingerprint: str) -> str:
    return "".join(fingerprint.split()).replace("-", "").lower()
