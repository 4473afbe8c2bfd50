"""Distillation targets: what a teacher answered on the public set. One kind of artefact, whatever the source.

The foundation model's one-time answers, one hospital's soft labels on their way up, and the consensus of the
hospitals on its way down all have this form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.safe import Floats

Source = Literal["foundation", "hospital", "consensus"]


class TargetsInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answered, on which images. `image_set` is the SHA-256 of the public set's artefact."""

    source: Source
    image_set: str
    model_name: str
    model_version: str
    licence: str
    classes: tuple[str, ...]
    bits: Literal[8, 16]


@dataclass(frozen=True, slots=True)
class Targets:
    """`logits_NC`: N public images in the order of the set, C classes of the teacher (not the task's, perhaps)."""

    info: TargetsInfo
    logits_NC: Floats


def encode_targets(targets: Targets) -> bytes:
    """8 bits: each image's logits between their own minimum and maximum in 255 steps; 16 bits: half precision.

    Logits that differ by less than 1/255 of the image's range may come out equal.
    """
    logits_NC = np.asarray(targets.logits_NC, np.float32)
    if logits_NC.ndim != 2 or logits_NC.shape[1] != len(targets.info.classes) or not np.isfinite(logits_NC).all():
        raise IntegrityError(f"targets must be finite and of shape [images, {len(targets.info.classes)}]")
    metadata = {"targets": msgspec.json.encode(targets.info).decode()}
    if targets.info.bits == 16:
        return safe.encode({"logits": np.clip(logits_NC, -65504, 65504).astype(np.float16)}, metadata)
    low_N1 = logits_NC.min(axis=1, keepdims=True)
    step_N1 = np.maximum((logits_NC.max(axis=1, keepdims=True) - low_N1) / np.float32(255), np.float32(1e-12))
    codes_NC = np.rint((logits_NC - low_N1) / step_N1).astype(np.uint8)
    return safe.encode({"codes": codes_NC, "low": low_N1, "step": step_N1.astype(np.float32)}, metadata)


def decode_targets(data: safe.Bytes) -> Targets:
    """Raises IntegrityError, and nothing else, whatever the bytes."""
    tensors = safe.decode(data)
    try:
        info = msgspec.json.decode(safe.read_metadata(data)["targets"], type=TargetsInfo)
    except (KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise IntegrityError(f"these are no distillation targets: {error}") from None
    expected = {"logits": np.float16} if info.bits == 16 else {"codes": np.uint8, "low": np.float32, "step": np.float32}
    if {name: tensor.dtype for name, tensor in tensors.items()} != {k: np.dtype(v) for k, v in expected.items()}:
        raise IntegrityError("distillation targets with unexpected tensors")
    answers = tensors["logits" if info.bits == 16 else "codes"]
    if answers.ndim != 2 or answers.shape[1] != len(info.classes):
        raise IntegrityError(f"distillation targets of shape {list(answers.shape)} for {len(info.classes)} classes")
    if info.bits == 16:
        return Targets(info, answers.astype(np.float32))
    low_N1, step_N1 = tensors["low"].astype(np.float32), tensors["step"].astype(np.float32)
    if low_N1.shape != (len(answers), 1) or step_N1.shape != (len(answers), 1):
        raise IntegrityError("distillation targets whose scales do not fit the answers")
    with np.errstate(over="ignore", invalid="ignore"):  # refused in the next line
        logits_NC = (low_N1 + answers.astype(np.float32) * step_N1).astype(np.float32)
    safe.check_floats("logits", logits_NC)
    return Targets(info, logits_NC)
