"""Our reader and writer against the safetensors library, and files that the format forbids."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from ayni.errors import IntegrityError
from ayni.tensors import safe

DTYPES = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint8, np.bool_]
TENSORS: dict[str, safe.Array] = {
    **{f"of {dtype.__name__}": np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES},
    "scalar": np.array(1.5, np.float32),
    "empty": np.zeros((3, 0, 2), np.float32),
    "not contiguous": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "other byte order": np.arange(3, dtype=">f4"),
}


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype.newbyteorder("<")
        np.testing.assert_array_equal(tensor, right[name], strict=False)


def test_the_library_reads_what_we_write() -> None:
    assert_equal(safetensors.numpy.load(safe.encode(TENSORS, {"form": "fp32"})), TENSORS)


def test_we_read_what_the_library_writes_from_bytes_and_from_a_view() -> None:
    plain = {name: np.ascontiguousarray(tensor) for name, tensor in TENSORS.items() if name != "other byte order"}
    data = safetensors.numpy.save(plain, {"form": "fp32"})
    for given in (data, memoryview(data)):
        assert_equal(safe.decode(given), plain | {"scalar": plain["scalar"].reshape(1)})
        assert safe.read_metadata(given) == {"form": "fp32"}


def test_without_metadata_the_bytes_are_those_of_the_library() -> None:
    tensors: dict[str, safe.Array] = {
        "b": np.ones(3, np.float32),
        "a": np.ones(2, np.float32),
        "wide": np.ones(2, np.float64),
    }
    assert safe.encode(tensors) == safetensors.numpy.save(tensors)


def entry(start: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "U8", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 4, [4]), "b": entry(2, 6, [4])},  # overlap
        {"a": entry(0, 2, [2]), "b": entry(4, 6, [2])},  # a gap
        {"a": entry(0, 4, [4])},  # bytes that belong to nothing
        {"a": entry(0, 8, [8])},  # beyond the end
        {"a": entry(0, 6, [5])},  # another length than the shape says
        {"a": entry(6, 0, [6])},
        {"a": entry(0, 6, [-6])},
        {"a": {**entry(0, 6, [6]), "more": 1}},
    ],
)
def test_tensors_must_lie_one_behind_the_other_and_fill_the_file(header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(IntegrityError):
        safe.decode(struct.pack("<Q", len(text)) + text + bytes(6))
