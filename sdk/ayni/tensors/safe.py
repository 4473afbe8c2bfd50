"""Tensors as safetensors, checked before use. Nothing here can run code that came over the wire.

The format is eight bytes of length, a JSON header and the raw tensors, so reading it is a matter of checking the
header and looking at the bytes where they lie: a file that is mapped into memory is never copied.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from ayni.errors import IntegrityError

Bytes = bytes | memoryview
Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
MAX_TENSORS = 10_000  # safetensors itself accepts 100,000 empty tensors
MAX_HEADER_BYTES = 4 << 20
LARGEST_WEIGHT = 1e6  # far above any sound training, far below what 32 bits hold
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_NAME_OF_TYPE = {text: name for name, text in _TYPES.items()}
_Size = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in the header; the offsets count from the header's end."""

    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=32)]
    data_offsets: tuple[_Size, _Size]


def encode(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Bytes of a safetensors file; `metadata` are strings in its header. The same input gives the same bytes."""
    little = {name: np.asarray(t, t.dtype.newbyteorder("<"), order="C") for name, t in tensors.items()}
    order = sorted(little, key=lambda name: (-little[name].itemsize, name))  # so every tensor is aligned
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    start = 0
    for name in order:
        tensor = little[name]
        offsets = [start, start := start + tensor.nbytes]
        header[name] = {"dtype": _NAME_OF_TYPE[tensor.dtype.str], "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(little[name].data for name in order)])


def _header(data: Bytes) -> tuple[dict[str, msgspec.Raw], dict[str, str], Bytes]:
    """The tensors' entries, the metadata, and the bytes behind the header."""
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
        raise IntegrityError("these bytes are no safetensors file: the header is cut or too long")
    body = memoryview(data)[8 + header_bytes :]
    try:
        entries = msgspec.json.decode(data[8 : 8 + header_bytes], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", b"{}"), type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"these bytes are no safetensors file: {type(error).__name__}") from None
    return entries, metadata, body


def read_metadata(data: Bytes) -> dict[str, str]:
    """The strings in a safetensors header. Raises IntegrityError, and nothing else, whatever the bytes."""
    return _header(data)[1]


def decode(data: Bytes, *, largest: float = math.inf) -> dict[str, Array]:
    """Tensors of a safetensors file, floats finite; they look into `data` and cannot be written to.

    `largest` bounds the magnitude of floats, so that both are found in one pass.

    Raises IntegrityError, and nothing else, whatever the bytes.
    """
    raw, _, body = _header(data)
    if len(raw) > MAX_TENSORS:
        raise IntegrityError(f"{len(raw)} tensors in one file; at most {MAX_TENSORS} are read")
    try:
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
        tensors, end = {}, 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            tensors[name] = _tensor(entry, body, end)
            end = entry.data_offsets[1]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, ValueError) as error:
        raise IntegrityError(f"these bytes are no safetensors file: {error}") from None
    if end != len(body):
        raise IntegrityError(f"these bytes are no safetensors file: {len(body) - end} bytes belong to no tensor")
    for name, tensor in tensors.items():
        check_floats(name, tensor, largest=largest)
    return tensors


def _tensor(entry: _Entry, body: Bytes, expected_start: int) -> Array:
    """Tensors lie one behind the other, without gaps and without overlaps."""
    dtype = np.dtype(_TYPES[entry.dtype])
    start, end = entry.data_offsets
    count = math.prod(entry.shape)
    if start != expected_start or end - start != count * dtype.itemsize or end > len(body):
        raise ValueError(f"a tensor of shape {list(entry.shape)} cannot lie at {start} to {end}")
    return np.frombuffer(body, dtype, count, start).reshape(entry.shape)


def check_floats(name: str, tensor: Array, *, largest: float = math.inf) -> None:
    """The largest and the smallest value are finite exactly when all are, and cost no second array.

    One hostile answer must not overflow the mean, which would stop the round for everybody: hence `largest`.
    """
    if tensor.dtype.kind != "f" or not tensor.size:
        return
    high, low = float(tensor.max()), float(tensor.min())
    if not (math.isfinite(high) and math.isfinite(low)):
        raise IntegrityError(f"tensor {name!r} holds values that are not finite (NaN or infinity)")
    if max(high, -low) > largest:
        raise IntegrityError(f"tensor {name!r} holds values too large for weights (above {largest:g})")


def check_like(tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Names and shapes must be exactly these, and all floats of at most 32 bits; raises IntegrityError."""
    if set(tensors) != set(shapes):
        missing, extra = sorted(set(shapes) - set(tensors))[:3], sorted(set(tensors) - set(shapes))[:3]
        raise IntegrityError(f"tensor names differ from the task's network: missing {missing}, unexpected {extra}")
    for name, tensor in tensors.items():
        if tensor.shape != tuple(shapes[name]):
            raise IntegrityError(f"tensor {name!r} has shape {list(tensor.shape)}, ours is {list(shapes[name])}")
        if tensor.dtype.kind != "f" or tensor.dtype.itemsize > 4:
            raise IntegrityError(f"tensor {name!r} has type {tensor.dtype}, not floating point of at most 32 bits")


def digest(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over names, shapes and float32 values in the order of the names: the same model, the same text."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name], dtype=np.float32)
        state.update(f"{name}:{values.shape};".encode())
        state.update(values.data)
    return state.hexdigest()
