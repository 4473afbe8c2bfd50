"""Tensors as safetensors, checked before use. Nothing here can run code that came over the wire."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from ayni.errors import IntegrityError

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
MAX_TENSORS = 10_000  # safetensors itself accepts 100,000 empty tensors
MAX_HEADER_BYTES = 4 << 20
LARGEST_WEIGHT = 1e6  # far above any sound training, far below what 32 bits hold


def encode(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Bytes of a safetensors file; `metadata` are strings in its header. The same input gives the same bytes."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    data: bytes = safetensors.numpy.save(contiguous)
    if not metadata:
        return data
    # the library writes metadata in the random order of a hash map; the order here is that of the names
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8:end])}).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header, memoryview(data)[end:]])


def read_metadata(data: bytes) -> dict[str, str]:
    """The strings in a safetensors header. Raises IntegrityError, and nothing else, whatever the bytes."""
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
        raise IntegrityError("these bytes are no safetensors file: the header is cut or too long")
    try:
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {})
    except (ValueError, RecursionError, AttributeError) as error:
        raise IntegrityError(f"these bytes are no safetensors file: {type(error).__name__}") from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise IntegrityError("the safetensors metadata are not strings")
    return metadata


def decode(data: bytes) -> dict[str, Array]:
    """Tensors of a safetensors file, floats finite. Raises IntegrityError, and nothing else, whatever the bytes."""
    read_metadata(data)  # bounds the header before the library parses it
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise IntegrityError(f"these bytes are no safetensors file: {error}") from None
    if len(tensors) > MAX_TENSORS:
        raise IntegrityError(f"{len(tensors)} tensors in one file; at most {MAX_TENSORS} are read")
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    return tensors


def check_finite(name: str, tensor: Array) -> None:
    """A sum of float64 is not finite exactly when a part of it is not, and costs no second array."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = tensor.dtype.kind != "f" or np.isfinite(np.sum(tensor, dtype=np.float64))
    if not finite:
        raise IntegrityError(f"tensor {name!r} holds values that are not finite (NaN or infinity)")


def check_magnitude(name: str, tensor: Floats) -> None:
    """One hostile answer must not overflow the mean, which would stop the round for everybody."""
    if tensor.size and max(tensor.max(), -tensor.min()) > LARGEST_WEIGHT:
        raise IntegrityError(f"tensor {name!r} holds values too large for weights (above {LARGEST_WEIGHT:g})")


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
