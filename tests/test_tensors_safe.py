"""Tensors from a stranger: one kind of error, never a value that is not finite, never code."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.image_set import ImageSet, ImageSetInfo, decode_image_set, encode_image_set
from ayni.tensors.targets import Targets, TargetsInfo, decode_targets, encode_targets
from ayni.tensors.update import assemble, decode_change, decode_update, encode_change, encode_whole

SHAPES = {"a": (3, 2), "b": (4,)}
RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
INFO = TargetsInfo(
    source="hospital", image_set="0" * 64, model_name="m", model_version="1", licence="", classes=("n", "p"), bits=8
)
SET_INFO = ImageSetInfo(name="public", licence="CC BY 4.0", shape=(2, 5, 4, 1))
PIXELS = RNG.integers(0, 256, SET_INFO.shape, dtype=np.uint8)
VALID = [
    encode_whole(WEIGHTS, "fp32"),
    encode_whole(WEIGHTS, "fp16"),
    encode_change(WEIGHTS, density=0.5)[0],
    encode_targets(Targets(INFO, WEIGHTS["a"])),
    encode_image_set(ImageSet(SET_INFO, PIXELS)),
]


def read_every_way(data: bytes) -> None:
    """All readers of bytes from the line; anything but IntegrityError fails the test."""
    for read in (
        safe.decode,
        safe.read_metadata,
        decode_targets,
        decode_image_set,
        lambda bytes_: decode_change(bytes_, SHAPES),
        lambda bytes_: decode_update(bytes_, SHAPES, WEIGHTS),
        lambda bytes_: decode_update(bytes_, SHAPES, None),
        lambda bytes_: assemble([bytes_]),
        lambda bytes_: assemble([VALID[0], bytes_]),
    ):
        with suppress(IntegrityError):
            result: Any = read(data)
            if isinstance(result, dict):
                floats = [tensor for tensor in result.values() if getattr(tensor, "dtype", np.uint8) == np.float32]
                assert all(np.isfinite(tensor).all() for tensor in floats)


@given(st.binary(max_size=300))
def test_whatever_bytes_come_nothing_else_is_raised(data: bytes) -> None:
    read_every_way(data)
    read_every_way(struct.pack("<Q", len(data)) + data)


@given(st.sampled_from(VALID), st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 2))
def test_a_valid_file_with_a_byte_changed_cut_or_added_raises_nothing_else(
    data: bytes, place: int, byte: int, how: int
) -> None:
    place %= len(data)
    changed = (
        data[:place] + bytes([byte]) + data[place + 1 :],
        data[:place],
        data[:place] + bytes([byte]) + data[place:],
    )
    read_every_way(changed[how])


def handmade(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


one_tensor = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "C64", "X", ""]),
        "shape": st.lists(st.integers(-1, 2**63), max_size=4),
        "data_offsets": st.lists(st.integers(0, 40) | st.integers(2**40, 2**64), max_size=3),
    }
)


@given(
    st.dictionaries(st.sampled_from(["a", "codes", "rows", "values"]), one_tensor, max_size=3), st.binary(max_size=40)
)
def test_whatever_header_stands_before_the_tensors_nothing_else_is_raised(header: Any, body: bytes) -> None:
    for metadata in ({}, {"form": "fp32"}, {"form": "sparse", "count": "3"}, {"images": SET_INFO.name}):
        read_every_way(handmade({"__metadata__": metadata, **header}, body))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "BOOL", "C64", "F4"])
def test_every_type_that_the_format_knows_is_read_or_refused(dtype: str) -> None:
    for size in (1, 2, 4, 8):
        header = {"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}
        read_every_way(handmade({"__metadata__": {"form": "fp32"}, **header}, b"\x7f\xf0" * size))


@pytest.mark.parametrize(
    "bomb", [b"[" * 100_000, b'{"a":' * 100_000, b'{"__metadata__":[]}', b'{"__metadata__":{"a":1}}']
)
def test_a_header_that_is_a_bomb_or_no_dictionary_is_refused(bomb: bytes) -> None:
    with pytest.raises(IntegrityError):
        safe.read_metadata(handmade(bomb))
    read_every_way(handmade(bomb))


def test_a_header_that_claims_to_be_huge_is_refused_before_it_is_read() -> None:
    for claimed in (safe.MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        with pytest.raises(IntegrityError, match="cut or too long"):
            safe.decode(struct.pack("<Q", claimed) + b"{}")


def test_ten_thousand_tensors_are_read_and_one_more_is_refused() -> None:
    empty = np.zeros(0, np.float32)
    safe.decode(safetensors.numpy.save({f"t{i}": empty for i in range(safe.MAX_TENSORS)}))
    with pytest.raises(IntegrityError, match="at most"):
        safe.decode(safetensors.numpy.save({f"t{i}": empty for i in range(safe.MAX_TENSORS + 1)}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite_is_refused(value: float, kind: type[np.floating[Any]]) -> None:
    tensor = np.zeros(1000, kind)
    tensor[500] = value
    with pytest.raises(IntegrityError, match="not finite"):
        safe.decode(safetensors.numpy.save({"w": tensor}))


def test_infinities_that_cancel_are_refused_too() -> None:
    with pytest.raises(IntegrityError, match="not finite"):
        safe.decode(safetensors.numpy.save({"w": np.array([np.inf, -np.inf, 1.0], np.float32)}))


def test_names_shapes_and_types_must_be_the_ones_of_the_network() -> None:
    safe.check_like(WEIGHTS, SHAPES)
    wrong: list[dict[str, Any]] = [
        {"a": WEIGHTS["a"]},
        {**WEIGHTS, "c": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].T, "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].ravel(), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].astype(np.int32), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].astype(np.float64), "b": WEIGHTS["b"]},  # might not fit into our 32 bits
    ]
    for tensors in wrong:
        with pytest.raises(IntegrityError):
            safe.check_like(tensors, SHAPES)


def test_the_digest_knows_names_shapes_and_values_but_not_the_order() -> None:
    digest = safe.digest(WEIGHTS)
    assert safe.digest(dict(reversed(WEIGHTS.items()))) == digest
    assert safe.digest({"a": WEIGHTS["b"], "b": WEIGHTS["a"]}) != digest
    assert safe.digest({**WEIGHTS, "a": WEIGHTS["a"].reshape(2, 3)}) != digest
    assert safe.digest({**WEIGHTS, "a": np.nextafter(WEIGHTS["a"], np.float32(9))}) != digest


def test_metadata_come_out_as_they_went_in_and_bytes_do_not_depend_on_their_order() -> None:
    data = safe.encode(WEIGHTS, {"b": "2", "a": "ü"})
    assert safe.read_metadata(data) == {"a": "ü", "b": "2"}
    assert data == safe.encode(WEIGHTS, {"a": "ü", "b": "2"})
    assert safe.digest(safe.decode(data)) == safe.digest(WEIGHTS)
