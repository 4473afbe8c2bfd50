"""The same tensors are the same artefact: its hash is its name."""

from __future__ import annotations

import numpy as np
import safetensors.numpy

from ayni.tensors import safe


def test_the_same_tensors_and_metadata_give_the_same_bytes_in_whatever_order() -> None:
    tensors: dict[str, safe.Array] = {"b": np.ones((2, 3), np.float32), "a": np.zeros(5, np.uint8)}
    metadata = {f"key {i}": str(i) for i in range(9)}  # nine keys: one order in 362,880 by chance
    turned = dict(reversed(metadata.items()))
    first = safe.encode(tensors, metadata)
    assert all(safe.encode(dict(reversed(tensors.items())), turned) == first for _ in range(5))
    assert safe.read_metadata(first) == metadata
    assert {name: array.tolist() for name, array in safetensors.numpy.load(first).items()} == {
        "a": [0] * 5,
        "b": [[1.0] * 3] * 2,
    }
