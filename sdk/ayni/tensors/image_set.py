"""The public image set as an artefact: 8-bit images (or volumes) of one size, in a fixed order, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.deflated import deflated, inflated

MAX_SET_BYTES = 4 << 30


class ImageSetInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    licence: str
    shape: Annotated[tuple[int, ...], Meta(min_length=4, max_length=5)]  # images, (depth,) height, width, channels


@dataclass(frozen=True, slots=True)
class ImageSet:
    info: ImageSetInfo
    pixels_NHWC: npt.NDArray[np.uint8]


def encode_image_set(images: ImageSet) -> bytes:
    """Lossless: differences between neighbouring rows, deflated (about a tenth less than the pixels for X-rays)."""
    pixels_NHWC = np.ascontiguousarray(images.pixels_NHWC)
    if pixels_NHWC.dtype != np.uint8 or pixels_NHWC.shape != images.info.shape:
        raise IntegrityError(f"an image set must be 8-bit and of shape {list(images.info.shape)}")
    rows = pixels_NHWC.copy()
    rows[:, 1:] -= pixels_NHWC[:, :-1]  # wraps around; undone by the cumulative sum
    return safe.encode({"rows": deflated(rows.tobytes())}, {"images": msgspec.json.encode(images.info).decode()})


def decode_image_set(data: safe.Bytes) -> ImageSet:
    """Raises IntegrityError, and nothing else, whatever the bytes."""
    tensors = safe.decode(data)
    try:
        info = msgspec.json.decode(safe.read_metadata(data)["images"], type=ImageSetInfo)
        packed = tensors["rows"].tobytes()
    except (KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise IntegrityError(f"this is no image set: {error}") from None
    num_bytes = 1
    for size in info.shape:
        if size < 1:
            raise IntegrityError(f"an image set of shape {list(info.shape)}")
        num_bytes *= size
    if num_bytes > MAX_SET_BYTES:
        raise IntegrityError(f"an image set of {num_bytes} bytes; at most {MAX_SET_BYTES} are read")
    plain = inflated(packed, num_bytes, "an image set")
    rows = np.frombuffer(plain, np.uint8).reshape(info.shape)
    return ImageSet(info, np.cumsum(rows, axis=1, dtype=np.uint8))
