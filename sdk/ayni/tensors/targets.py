"""Distillation targets: what a teacher answered on the public set. One kind of artefact, whatever the source.

The foundation model's one-time answers, one hospital's soft labels on their way up, and the consensus of the
hospitals on its way down all have this form. N = images, C = the teacher's classes or structures, h x w = pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.safe import Array, Floats

Source = Literal["foundation", "hospital", "clinic", "consensus"]
Side = Annotated[int, Meta(ge=0, le=8192)]
MAX_DENSE_BYTES = 1 << 30


class TargetsInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answered, on which images. `image_set` is the SHA-256 of the public set's artefact.

    `height` and `width` are 0 if there is one answer per image, and those of the maps if there is one per pixel;
    `depth` is that of the maps of volumes.
    """

    source: Source
    image_set: str
    model_name: str
    model_version: str
    licence: str
    classes: tuple[str, ...]
    bits: Literal[8, 16]
    height: Side = 0
    width: Side = 0
    depth: Side = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's answer: [C], [C, h, w] or [C, d, h, w]."""
        return (len(self.classes), *(side for side in (self.depth, self.height, self.width) if side))


@dataclass(frozen=True, slots=True)
class Targets:
    """`logits_NC`: N public images in the order of the set, C classes of the teacher (not the task's, perhaps);
    [N, C, h, w] if the teacher answered each pixel."""

    info: TargetsInfo
    logits_NC: Floats


def encode_targets(targets: Targets) -> bytes:
    """8 bits: each image's logits between their own minimum and maximum in 255 steps; 16 bits: half precision.

    Logits that differ by less than 1/255 of the image's range may come out equal. Maps are deflated.
    """
    info, logits_NC = targets.info, np.asarray(targets.logits_NC, np.float32)
    if logits_NC.shape[1:] != info.shape or not np.isfinite(logits_NC).all():
        raise IntegrityError(f"targets must be finite and of shape [images, {', '.join(map(str, info.shape))}]")
    metadata = {"targets": msgspec.json.encode(info).decode()}
    if info.bits == 16:
        answers: Array = np.clip(logits_NC, -65504, 65504).astype(np.float16)
        return safe.encode({"logits": _packed(answers, info)}, metadata)
    axes = tuple(range(1, logits_NC.ndim))
    low = logits_NC.min(axis=axes, keepdims=True)
    step = np.maximum((logits_NC.max(axis=axes, keepdims=True) - low) / np.float32(255), np.float32(1e-12))
    codes = np.rint((logits_NC - low) / step).astype(np.uint8)
    scales = {"low": low.reshape(-1, 1), "step": step.reshape(-1, 1).astype(np.float32)}
    return safe.encode({"codes": _packed(codes, info), **scales}, metadata)


def decode_targets(data: safe.Bytes) -> Targets:
    """Raises IntegrityError, and nothing else, whatever the bytes."""
    tensors = safe.decode(data)
    try:
        info = msgspec.json.decode(safe.read_metadata(data)["targets"], type=TargetsInfo)
    except (KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise IntegrityError(f"these are no distillation targets: {error}") from None
    if bool(info.height) != bool(info.width) or (info.depth and not info.height):
        raise IntegrityError(f"distillation targets of {info.width} x {info.height} x {info.depth} pixels")
    name, kind = ("logits", np.float16) if info.bits == 16 else ("codes", np.uint8)
    expected: dict[str, type[np.generic]] = {name: np.uint8 if info.height else kind}
    if info.bits == 8:
        expected |= {"low": np.float32, "step": np.float32}
    if {name: tensor.dtype for name, tensor in tensors.items()} != {k: np.dtype(v) for k, v in expected.items()}:
        raise IntegrityError("distillation targets with unexpected tensors")
    answers = _unpacked(tensors[name], info, kind) if info.height else tensors[name]
    if answers.shape[1:] != info.shape:
        raise IntegrityError(f"distillation targets of shape {list(answers.shape)} for {len(info.classes)} classes")
    if info.bits == 16:
        logits = answers.astype(np.float32)
        safe.check_floats("logits", logits)
        return Targets(info, logits)
    low, step = tensors["low"].astype(np.float32), tensors["step"].astype(np.float32)
    if low.shape != (len(answers), 1) or step.shape != (len(answers), 1):
        raise IntegrityError("distillation targets whose scales do not fit the answers")
    per_image = (-1,) + (1,) * len(info.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # refused in the next line
        scaled = answers.astype(np.float32) * step.reshape(per_image)
        logits_NC = (low.reshape(per_image) + scaled).astype(np.float32)
    safe.check_floats("logits", logits_NC)
    return Targets(info, logits_NC)


def _packed(answers: Array, info: TargetsInfo) -> Array:
    """Maps are smooth: deflated they take a fraction."""
    return np.frombuffer(zlib.compress(answers.tobytes(), 9), np.uint8) if info.height else answers


def _unpacked(packed: Array, info: TargetsInfo, kind: type[np.generic]) -> np.ndarray[Any, np.dtype[Any]]:
    """[N, C, h, w]; never makes more than is allowed, whatever the bytes promise."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed.tobytes(), MAX_DENSE_BYTES)
    except zlib.error as error:
        raise IntegrityError(f"damaged distillation targets: {error}") from None
    one_image = int(np.prod(info.shape)) * np.dtype(kind).itemsize
    if not inflater.eof or inflater.unused_data or not one_image or not plain or len(plain) % one_image:
        raise IntegrityError("distillation targets are not of the promised length")
    return np.frombuffer(plain, kind).reshape(-1, *info.shape)
