"""A bundle: what lies in the folder, and reading it so that only verified bytes are used. Needs no numpy, no torch.

    BUNDLE/configs/metadata.json   MONAI Bundle metadata, and the section `ayni` (BundleInfo)
           models/model.onnx       pixels in; logits and probabilities out
           docs/model_card.md      what a person should read before using it
           LICENSE
           signature.json          SHA-256 of every other file, signed by the site; the coordinator's word on its key

Further models (8 bits, say) will be further entries of `BundleInfo.models`. A routed bundle holds several experts, and
an adapted one says beside the signed files how these are mixed: see `routed/record.py` and docs/routed.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ayni.errors import UserError
from ayni.task import ImageSettings, Kind, Role
from ayni.trained_model import Scores
from ayni_export.routed.record import (
    ADAPTATION_FILE,
    ADDED_FILES,
    EXPLAINED_FILE,
    FOLDED_FILE,
    Adaptation,
    RoutedInfo,
    is_routing,
)
from ayni_export.routed.words import explained
from ayni_export.signature import BundleError, Signature, Signer, check_site, compared_with, verified_signer

METADATA_FILE = "configs/metadata.json"
MODEL_FILE = "models/model.onnx"
MODEL_CARD_FILE = "docs/model_card.md"
LICENSE_FILE = "LICENSE"
SIGNATURE_FILE = "signature.json"
MAX_SMALL_BYTES = 4 << 20
MAX_MODEL_BYTES = 2 << 30
MAX_FILES = 64
MODEL_SUFFIXES = (".onnx", ".safetensors")
VOLUME_RULES = "volume-1"  # as `ayni.data.volumes` has it, which needs numpy

PositiveFinite = Annotated[float, Meta(gt=0, le=1e6)]


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
    task_kind: Kind = "classification"  # `kind` says how it was trained
    classes: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]  # structures, in a segmentation
    image: ImageSettings
    rules: str = ""  # how volumes are turned, resampled and scaled to 8 bits before they are asked about
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[PositiveFinite, ...]
    temperature: PositiveFinite
    site: str
    role: Role | Literal["coordinator"]  # the coordinator makes routed bundles
    kind: str  # "federated", "alone", ... or "routed"
    rounds: int
    steps: int
    chosen: str
    created: str
    num_train_per_class: dict[str, int]
    num_holdout_per_class: dict[str, int]
    validation: Scores
    weights_sha256: str
    layers_of_others: str = ""  # layers that were not trained here, and their licence
    models: Annotated[tuple[ModelFile, ...], Meta(min_length=1)]
    routed: RoutedInfo | None = None

    @property
    def shows_nothing(self) -> bool:
        """Whether its figures are those of guessing. An AUC tells nothing unless two classes are held out."""
        told = self.task_kind == "segmentation" or sum(count > 0 for count in self.num_holdout_per_class.values()) > 1
        return told and self.validation.shows_nothing


class _Metadata(msgspec.Struct):
    """Of the MONAI metadata only our own section is read: the rest is for other programs."""

    ayni: BundleInfo


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte was verified. `files`: those that were signed, by name.

    `adaptation`: of an adapted bundle. It and `folded` (the mixed weights) are not signed: `routed.experts.weights_of`
    mixes the signed experts again, and refuses what is not the same.
    """

    info: BundleInfo
    files: Mapping[str, bytes]
    signer: Signer
    signature_sha256: str = ""
    adaptation: Adaptation | None = None
    folded: bytes = b""

    @property
    def model(self) -> bytes:
        return self.files[self.info.models[0].path]


def read_bundle(folder: Path, *, signer: str | None = None) -> Bundle:
    """Read and verify every file. `signer` is the fingerprint of the site's key or of its coordinator's, if given.

    Raises UserError if there is no bundle, and BundleError if it is not exactly what was signed, or not by `signer`.
    """
    if not (folder / SIGNATURE_FILE).is_file():
        raise UserError(f"{folder} is not a bundle: there is no {SIGNATURE_FILE} in it. Make one with `ayni export`.")
    signature = _read_signature(folder)
    files = _read_files(folder)
    added = {name: files.pop(name) for name in ADDED_FILES if name in files and name not in signature.files}
    _check_files(folder, files, signature.files)
    signed_by = verified_signer(signature, folder)
    if signer is not None:
        signed_by = compared_with(signed_by, signer, folder)
    info = _read_info(folder, files)
    if signed_by.certificate is not None:
        check_site(signed_by.certificate, info.site, info.task)
    signature_sha256 = hashlib.sha256(_read_file(folder / SIGNATURE_FILE, MAX_SMALL_BYTES)).hexdigest()
    adaptation = _read_adaptation(folder, added, info, signature_sha256) if added else None
    return Bundle(info, files, signed_by, signature_sha256, adaptation, added.get(FOLDED_FILE, b""))


def check_replaceable(folder: Path) -> None:
    """Raises UserError unless there is nothing in `folder` but the files of a bundle, by the names it signed."""
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return
    if folder.is_symlink() or not (folder / SIGNATURE_FILE).is_file() or not (folder / METADATA_FILE).is_file():
        raise UserError(f"{folder} exists and is not a bundle: it was left as it is. Choose another name.")
    known = {*_read_signature(folder).files, SIGNATURE_FILE}
    known |= set(ADDED_FILES) if (folder / ADAPTATION_FILE).is_file() else set()
    for path in sorted(folder.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and path.relative_to(folder).as_posix() not in known:
            raise UserError(
                f"{path} does not belong to the bundle that is there, and replacing it would delete that file. "
                "Move the file away, or choose another name."
            )


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
            files[name] = _read_file(path, MAX_MODEL_BYTES if path.suffix in MODEL_SUFFIXES else MAX_SMALL_BYTES)
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


def _read_info(folder: Path, files: dict[str, bytes]) -> BundleInfo:
    try:
        info = msgspec.json.decode(files[METADATA_FILE], type=_Metadata).ayni
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{folder / METADATA_FILE} is not of this version of Ayni ({error}).") from None
    channels, too_few = info.image.channels, info.task_kind == "classification" and len(info.classes) < 2
    fits = len(info.pixel_mean) == len(info.pixel_std) == channels
    if too_few or not fits or info.models[0].path not in files:
        raise BundleError(f"{folder / METADATA_FILE} contradicts itself. Export the bundle again.")
    if info.rules != (VOLUME_RULES if info.image.depth else ""):
        raise BundleError(
            f"{folder} wants its images prepared by the rules {info.rules!r}, which this version of Ayni does not "
            "know: its answers would mean nothing. Update Ayni."
        )
    return info


def _read_adaptation(folder: Path, added: dict[str, bytes], info: BundleInfo, signature_sha256: str) -> Adaptation:
    """What `ayni adapt` put beside the signed files. The mixed weights are checked by whoever uses them."""
    again = "Adapt the routed bundle again (`ayni adapt`)."
    if info.routed is None:
        raise BundleError(f"the bundle {folder} holds {min(added)}, which was not signed. Remove it or copy it again.")
    if missing := sorted(set(ADDED_FILES) - set(added)):
        raise BundleError(f"the bundle {folder} is not whole: {missing[0]} is missing. {again}")
    try:
        adaptation = msgspec.json.decode(added[ADAPTATION_FILE], type=Adaptation)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{folder / ADAPTATION_FILE} is damaged ({error}). {again}") from None
    if adaptation.bundle_sha256 != signature_sha256 or not is_routing(adaptation.routing, info.routed):
        raise BundleError(f"{folder / ADAPTATION_FILE} does not belong to this bundle. {again}")
    if added[EXPLAINED_FILE] != explained(info.routed, adaptation).encode():
        raise BundleError(f"the bundle {folder} was changed: {EXPLAINED_FILE} does not say what was adapted. {again}")
    return adaptation
