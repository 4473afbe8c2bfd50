"""A change of the weights as it travels: whole, or its largest parts in 8 bits with error feedback.

Sparse form: the changes of all tensors in the order of their names make one vector of n values; the `density * n`
largest in magnitude are sent as the gaps between their positions and 8-bit values with one scale per tensor,
both deflated. What is not sent stays with the sender (`encode_change` returns what the receiver will decode).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.safe import Bytes, Floats

Shapes = Mapping[str, tuple[int, ...]]
FORMS = ("fp32", "fp16", "sparse")


def _flat(tensors: Mapping[str, Floats]) -> Floats:
    return np.concatenate([np.asarray(tensors[name], np.float32).ravel() for name in sorted(tensors)])


def _unflat(flat: Floats, shapes: Shapes) -> dict[str, Floats]:
    tensors, start = {}, 0
    for name in sorted(shapes):
        size = int(np.prod(shapes[name]))
        tensors[name] = flat[start : start + size].reshape(shapes[name])
        start += size
    return tensors


def _scale_of_each(shapes: Shapes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each value of the flat vector, the number of its tensor."""
    sizes = [int(np.prod(shapes[name])) for name in sorted(shapes)]
    return np.repeat(np.arange(len(sizes)), sizes)


def encode_whole(tensors: Mapping[str, Floats], form: str) -> bytes:
    """Whole weights in `fp32` or `fp16`. A value beyond the range of fp16 raises IntegrityError."""
    kind = np.float16 if form == "fp16" else np.float32
    with np.errstate(over="ignore"):
        cast = {name: np.asarray(tensor).astype(kind, copy=False) for name, tensor in tensors.items()}
    for name, tensor in cast.items():
        safe.check_floats(name, tensor)
    return safe.encode(cast, {"form": form})


def encode_change(change: Mapping[str, Floats], *, density: float) -> tuple[bytes, dict[str, Floats]]:
    """Returns the sparse bytes, and the change as the receiver will decode it (float32).

    >>> data, seen = encode_change({"w": np.array([0.0, 1.0, 0.1, -0.5], np.float32)}, density=0.5)
    >>> [round(float(value), 2) for value in seen["w"]]
    [0.0, 1.0, 0.0, -0.5]
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in change.items()}
    flat = _flat(change)
    if not np.isfinite(flat).all():
        raise IntegrityError("the change of the weights is not finite: training diverged; lower the learning rate")
    count = max(1, round(density * flat.size))
    positions = np.sort(np.argpartition(np.abs(flat), flat.size - count)[flat.size - count :])
    owner = _scale_of_each(shapes)[positions]
    largest = np.zeros(len(shapes), np.float32)
    np.maximum.at(largest, owner, np.abs(flat[positions]))
    # A tensor whose changes are all next to nothing has no scale of its own: 127 steps of it would be zero each.
    scales = np.where(largest > 1e-30, largest / np.float32(127), np.float32(1)).astype(np.float32)
    values = np.rint(flat[positions] / scales[owner]).astype(np.int8)
    gaps = np.diff(positions, prepend=0).astype(np.uint32)
    planes = gaps.view(np.uint8).reshape(-1, 4).T  # the low bytes together: they deflate better
    packed: dict[str, safe.Array] = {
        "gaps": np.frombuffer(zlib.compress(planes.tobytes(), 9), np.uint8),
        "values": np.frombuffer(zlib.compress(values.tobytes(), 9), np.uint8),
        "scales": scales,
    }
    data = safe.encode(packed, {"form": "sparse", "count": str(count)})
    return data, decode_change(data, shapes)


def decode_change(data: Bytes, shapes: Shapes) -> dict[str, Floats]:
    """The change that `encode_change` described. Raises IntegrityError, and nothing else, whatever the bytes."""
    packed, metadata = safe.decode(data), safe.read_metadata(data)
    num_values = sum(int(np.prod(shape)) for shape in shapes.values())
    try:
        count = int(metadata["count"])
        if not 0 < count <= num_values:
            raise IntegrityError(f"a sparse change of {count} values; the network has {num_values}")
        planes = _inflate(packed["gaps"].tobytes(), 4 * count)
        values = np.frombuffer(_inflate(packed["values"].tobytes(), count), np.int8)
        given = packed["scales"]
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"a damaged sparse change: {error}") from None
    if given.dtype != np.float32 or given.shape != (len(shapes),):
        raise IntegrityError(f"a sparse change with {given.shape} scales of {given.dtype}; expected {len(shapes)}")
    scales = given.astype(np.float32, copy=False)
    gaps = np.frombuffer(planes, np.uint8).reshape(4, count).T.copy().view(np.uint32).ravel()
    positions = np.cumsum(gaps, dtype=np.int64)
    if positions[-1] >= num_values or (count > 1 and (gaps[1:] == 0).any()):
        raise IntegrityError("a sparse change with positions outside the network, or twice the same")
    flat = np.zeros(num_values, np.float32)
    safe.check_floats("scales", scales, largest=safe.LARGEST_WEIGHT)
    flat[positions] = values.astype(np.float32) * scales[_scale_of_each(shapes)[positions]]
    safe.check_floats("values", flat, largest=safe.LARGEST_WEIGHT)
    return _unflat(flat, shapes)


def _inflate(data: bytes, num_bytes: int) -> bytes:
    """Never makes more than it was promised: a deflate bomb stops here."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, num_bytes)
    except zlib.error as error:
        raise IntegrityError(f"a damaged sparse change: {error}") from None
    if len(plain) != num_bytes or inflater.unconsumed_tail or inflater.decompress(b"", 1):
        raise IntegrityError("a sparse change is not of the promised length")
    return plain


def decode_update(data: Bytes, shapes: Shapes, base: Mapping[str, Floats] | None) -> dict[str, Floats]:
    """The weights that an update stands for: itself if whole, else `base` plus the change (float32).

    Raises IntegrityError, and nothing else, whatever the bytes.
    """
    form = safe.read_metadata(data).get("form")
    if form in ("fp32", "fp16"):
        tensors = safe.decode(data, largest=safe.LARGEST_WEIGHT)
        safe.check_like(tensors, shapes)
        return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    if form != "sparse":
        raise IntegrityError(f"an update of unknown form {form!r}; this version knows {', '.join(FORMS)}")
    if base is None:
        raise IntegrityError("a change of the weights came without the weights that it changes")
    change = decode_change(data, shapes)
    return {name: base[name] + change[name] for name in shapes}


def assemble(parts: Sequence[Bytes]) -> dict[str, Floats]:
    """A model from its artefacts: the first whole, the others changes or whole models in their order."""
    if not parts:
        raise IntegrityError("a model of no parts")
    first = safe.decode(parts[0])
    shapes = {name: tuple(tensor.shape) for name, tensor in first.items()}
    safe.check_like(first, shapes)
    model = {name: np.asarray(tensor, np.float32) for name, tensor in first.items()}
    for part in parts[1:]:
        model = decode_update(part, shapes, model)
    return model
