"""A bundle: what lies in the folder, and reading it so that only verified bytes are used. Needs no numpy, no torch.

    BUNDLE/configs/metadata.json   MONAI Bundle metadata, and the section `ayni` (BundleInfo)
           models/model.onnx       pixels in; logits and probabilities out
           docs/model_card.md      what a person should read before using it
           LICENSE
           signature.json          SHA-256 of every other file, signed (ed25519)

Further models (8 bits, say) will be further entries of `BundleInfo.models`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from ayni import keys
from ayni.errors import IntegrityError, UserError
from ayni.task import ImageSettings, Role
from ayni.trained_model import Scores

METADATA_FILE = "configs/metadata.json"
MODEL_FILE = "models/model.onnx"
MODEL_CARD_FILE = "docs/model_card.md"
LICENSE_FILE = "LICENSE"
SIGNATURE_FILE = "signature.json"
MAX_SMALL_BYTES = 4 << 20
MAX_MODEL_BYTES = 2 << 30
MAX_FILES = 64

PositiveFinite = Annotated[float, Meta(gt=0, le=1e6)]


class BundleError(IntegrityError):
    """A bundle that is damaged, changed or signed by somebody else: nothing was done with it."""

    exit_code = 2


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How closely ONNX Runtime follows torch: largest absolute differences over `num_images` images."""

    num_images: int
    logits: float
    probabilities: float
    tolerance: float  # of the logits
    pytorch_version: str
    onnxruntime_version: str


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str
    precision: Literal["fp32"]
    parity: Parity


class BundleInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `ayni` of the metadata: all that diagnosis and its report need to know."""

    format: Literal[1] = 1
    name: str
    version: str  # day of training and the first digits of the weights' hash: another model, another version
    task: str
    title: str
    intended_use: str
    classes: Annotated[tuple[str, ...], Meta(min_length=2, max_length=1000)]
    image: ImageSettings
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[PositiveFinite, ...]
    temperature: PositiveFinite
    site: str
    role: Role
    kind: str
    rounds: int
    steps: int
    chosen: str
    created: str
    num_train_per_class: dict[str, int]
    num_holdout_per_class: dict[str, int]
    validation: Scores
    weights_sha256: str
    models: Annotated[tuple[ModelFile, ...], Meta(min_length=1)]


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`signature.json`; bytes are hexadecimal. `certificate` is the coordinator's word on the signing key."""

    format: Literal["ayni-bundle/1"] = "ayni-bundle/1"
    files: dict[str, str]
    signing_key: str
    signature: str
    certificate: str | None = None


class _Metadata(msgspec.Struct):
    """Of the MONAI metadata only our own section is read: the rest is for other programs."""

    ayni: BundleInfo


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte was verified. `signer_checked`: the signer is the one that was asked for."""

    info: BundleInfo
    model: bytes
    signing_key: bytes
    certificate: bytes | None
    signer_checked: bool

    @property
    def signer(self) -> str:
        return keys.fingerprint(self.signing_key)


def sign_files(files: dict[str, bytes], key: Ed25519PrivateKey, certificate: bytes | None) -> bytes:
    """The content of `signature.json` for these files."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    signed = msgspec.msgpack.decode(keys.sign(_listing(hashes), "bundle", key), type=keys.Signed)
    signature = Signature(
        files=hashes,
        signing_key=key.public_key().public_bytes_raw().hex(),
        signature=signed.signature.hex(),
        certificate=certificate.hex() if certificate is not None else None,
    )
    return msgspec.json.format(msgspec.json.encode(signature), indent=2) + b"\n"


def read_bundle(folder: Path, *, signer: str | None = None) -> Bundle:
    """Read and verify every file. `signer` is the fingerprint that the signing key must have, if given.

    Raises UserError if there is no bundle, and BundleError if it is not exactly what was signed.
    """
    if not (folder / SIGNATURE_FILE).is_file():
        raise UserError(f"{folder} is not a bundle: there is no {SIGNATURE_FILE} in it. Make one with `ayni export`.")
    signature = _read_signature(folder)
    files = _read_files(folder)
    _check_files(folder, files, signature.files)
    key = _verified_key(folder, signature)
    if signer is not None and _plain(signer) != _plain(keys.fingerprint(key)):
        raise BundleError(
            f"{folder} is signed by {keys.fingerprint(key)}, not by {signer}. Ask the site for its fingerprint "
            "by telephone; do not use this bundle before the two agree."
        )
    info = _read_info(folder, files)
    certificate = bytes.fromhex(signature.certificate) if signature.certificate else None
    return Bundle(info, files[info.models[0].path], key, certificate, signer_checked=signer is not None)


def verify_certificate(bundle: Bundle, coordinator_key: bytes) -> keys.Certificate:
    """The coordinator's word that this bundle's signer is a site of its federation. Raises BundleError."""
    if bundle.certificate is None:
        raise BundleError("the bundle brings no certificate of a coordinator. Export it again at a site that has one.")
    try:
        certificate = keys.Certificate.verified(bundle.certificate, coordinator_key)
    except IntegrityError as error:
        raise BundleError(str(error)) from None
    if certificate.signing_key != bundle.signing_key or certificate.site != bundle.info.site:
        raise BundleError(f"the certificate in the bundle is not one of site {bundle.info.site!r} and its key.")
    return certificate


def is_bundle(folder: Path) -> bool:
    """Whether a folder may be replaced by a new bundle: it has what only a bundle has."""
    return (folder / SIGNATURE_FILE).is_file() and (folder / METADATA_FILE).is_file()


def _listing(hashes: dict[str, str]) -> bytes:
    return msgspec.json.encode({"format": "ayni-bundle/1", "files": hashes}, order="deterministic")


def _plain(fingerprint: str) -> str:
    return "".join(fingerprint.split()).replace("-", "").lower()


def _read_signature(folder: Path) -> Signature:
    try:
        return msgspec.json.decode(_read_file(folder / SIGNATURE_FILE, MAX_SMALL_BYTES), type=Signature)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BundleError(f"{folder / SIGNATURE_FILE} is damaged. Copy the bundle again.") from None


def _read_files(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file() or len(files) >= MAX_FILES:
            raise BundleError(f"{path} does not belong into a bundle. Copy the bundle again, and nothing else with it.")
        if name != SIGNATURE_FILE:
            files[name] = _read_file(path, MAX_MODEL_BYTES if path.suffix == ".onnx" else MAX_SMALL_BYTES)
    return files


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1) if path.stat().st_size > max_bytes else file.read()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}). Copy the bundle again.") from None
    if len(data) > max_bytes:
        raise BundleError(f"{path} is larger than {max_bytes >> 20} MiB. Copy the bundle again.")
    return data


def _check_files(folder: Path, files: dict[str, bytes], hashes: dict[str, str]) -> None:
    if missing := sorted(set(hashes) - set(files)):
        raise BundleError(f"the bundle {folder} is not whole: {missing[0]} is missing. Copy it again.")
    if extra := sorted(set(files) - set(hashes)):
        raise BundleError(f"the bundle {folder} holds {extra[0]}, which was not signed. Remove it or copy it again.")
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise BundleError(
                f"the bundle {folder} was changed or damaged: {name} is not what was signed. Copy it again."
            )


def _verified_key(folder: Path, signature: Signature) -> bytes:
    try:
        key = bytes.fromhex(signature.signing_key)
        signed = keys.Signed(_listing(signature.files), bytes.fromhex(signature.signature))
        if signature.certificate is not None:
            bytes.fromhex(signature.certificate)
        keys.open_signed(signed.to_bytes(), "bundle", key)
    except (ValueError, IntegrityError):
        raise BundleError(f"the signature of the bundle {folder} is wrong. Export it again at the site.") from None
    return key


def _read_info(folder: Path, files: dict[str, bytes]) -> BundleInfo:
    try:
        info = msgspec.json.decode(files[METADATA_FILE], type=_Metadata).ayni
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{folder / METADATA_FILE} is not of this version of Ayni ({error}).") from None
    channels = info.image.channels
    if len(info.pixel_mean) != channels or len(info.pixel_std) != channels or info.models[0].path not in files:
        raise BundleError(f"{folder / METADATA_FILE} contradicts itself. Export the bundle again.")
    return info
