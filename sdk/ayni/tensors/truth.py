"""The labels or masks of public images as an artefact, where the task lets them travel (`fedhelp.label_weight`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.deflated import deflated, inflated
from ayni.tensors.image_set import MAX_SET_BYTES

Values = npt.NDArray[np.int64] | npt.NDArray[np.uint8]


class TruthInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    image_set: str  # SHA-256 of the artefact with the images
    classes: tuple[str, ...]
    shape: Annotated[tuple[int, ...], Meta(min_length=1, max_length=5)]


@dataclass(frozen=True, slots=True)
class PublicTruth:
    """Class numbers [L] or masks [L, S, (D,) H, W] of 0 and 1, of the first L images of a set."""

    info: TruthInfo
    values: Values


def encode_truth(truth: PublicTruth) -> bytes:
    """Two bytes for a label, one bit for a pixel of a mask, deflated."""
    values = truth.values
    if values.shape != truth.info.shape:
        raise IntegrityError(f"truth of shape {list(values.shape)}, not {list(truth.info.shape)}")
    plain = values.astype("<u2") if values.ndim == 1 else np.packbits(values.astype(bool), axis=None)
    return safe.encode({"values": deflated(plain.tobytes())}, {"truth": msgspec.json.encode(truth.info).decode()})


def decode_truth(data: safe.Bytes) -> PublicTruth:
    """Raises IntegrityError, and nothing else, whatever the bytes."""
    tensors = safe.decode(data)
    try:
        info = msgspec.json.decode(safe.read_metadata(data)["truth"], type=TruthInfo)
        packed = tensors["values"].tobytes()
    except (KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise IntegrityError(f"this is no truth of public images: {error}") from None
    masks, count = len(info.shape) > 1, math.prod(info.shape)
    if min(info.shape) < 1 or count > MAX_SET_BYTES or len(info.shape) in (2, 3):
        raise IntegrityError(f"truth of shape {list(info.shape)}")
    num_bytes = -(-count // 8) if masks else 2 * count
    plain = inflated(packed, num_bytes, "truth of public images")
    if masks:
        return PublicTruth(info, np.unpackbits(np.frombuffer(plain, np.uint8), count=count).reshape(info.shape))
    labels_L = np.frombuffer(plain, "<u2").astype(np.int64)
    if labels_L.max() >= len(info.classes):
        raise IntegrityError(f"a label of class {labels_L.max()}, of {len(info.classes)} classes")
    return PublicTruth(info, labels_L)
