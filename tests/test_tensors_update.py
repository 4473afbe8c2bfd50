"""A change of the weights as it travels: worked out by hand, nothing lost over the rounds, no bomb goes off."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.tensors.update import assemble, decode_change, decode_update, encode_change, encode_whole


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def test_a_sparse_change_worked_out_by_hand() -> None:
    # In the order of the names: a = [0, 4, -1], b = [2, 0.1]. Half of five is 2.5, rounded to even: 2 values.
    # The largest are 4 (scale 4/127, code 127) and 2 (scale 2/127, code 127): positions 1 and 3, gaps 1 and 2.
    data, seen = encode_change({"b": floats(2, 0.1), "a": floats(0, 4, -1)}, density=0.5)
    packed = safe.decode(data)
    assert safe.read_metadata(data) == {"form": "sparse", "count": "2"}
    assert zlib.decompress(packed["gaps"].tobytes()) == bytes([1, 2, 0, 0, 0, 0, 0, 0])  # low bytes first
    assert zlib.decompress(packed["values"].tobytes()) == bytes([127, 127])
    assert packed["scales"].tolist() == floats(4 / 127, 2 / 127).tolist()
    assert [round(float(value), 5) for value in seen["a"]] == [0, 4, 0]
    assert [round(float(value), 5) for value in seen["b"]] == [2, 0]


def test_signs_and_eight_bits_worked_out_by_hand() -> None:
    # Scale 1.27 / 127 = 0.01; -0.504 becomes code -50, that is -0.50.
    _, seen = encode_change({"w": floats(1.27, -0.504, 0.004)}, density=1.0)
    assert seen["w"] == pytest.approx([1.27, -0.50, 0.0], abs=1e-6)


@given(arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32)), st.floats(0.01, 1.0))
def test_the_sender_knows_exactly_what_the_receiver_sees(values: Floats, density: float) -> None:
    change = {"w": values}
    data, seen = encode_change(change, density=density)
    received = decode_change(data, {"w": values.shape})
    assert np.array_equal(received["w"], seen["w"])
    assert np.count_nonzero(seen["w"]) <= max(1, round(density * values.size))


def test_what_is_left_out_is_sent_later_so_that_nothing_is_lost() -> None:
    rng = np.random.default_rng(1)
    wanted = {"a": rng.normal(size=(7, 9)).astype(np.float32), "b": rng.normal(size=20).astype(np.float32)}
    received = {name: np.zeros_like(tensor) for name, tensor in wanted.items()}
    owed = {name: tensor.copy() for name, tensor in wanted.items()}
    for _ in range(60):
        _, seen = encode_change(owed, density=0.1)
        for name in wanted:
            received[name] += seen[name]
            owed[name] = owed[name] - seen[name]
            assert np.allclose(received[name] + owed[name], wanted[name], atol=1e-5)  # after every round
    assert all(np.abs(tensor).max() < 1e-4 for tensor in owed.values())


def test_a_change_of_nothing_at_all_can_be_sent() -> None:
    data, seen = encode_change({"w": np.zeros(10, np.float32)}, density=0.2)
    assert not seen["w"].any()
    assert not decode_change(data, {"w": (10,)})["w"].any()


def test_training_that_diverged_is_said_before_anything_is_sent() -> None:
    with pytest.raises(IntegrityError, match="learning rate"):
        encode_change({"w": floats(1, np.nan)}, density=0.5)
    with pytest.raises(IntegrityError, match="not finite"):
        encode_whole({"w": floats(70_000)}, "fp16")  # fp16 ends at 65504


def packed(shapes: dict[str, tuple[int, ...]], **changes: Any) -> bytes:
    """A sparse change of one value per tensor, with parts replaced."""
    count = len(shapes)
    parts: dict[str, Any] = {
        "gaps": zlib.compress(bytes([0] + [1] * (count - 1)) + bytes(3 * count)),
        "values": zlib.compress(bytes([100] * count)),
        "scales": np.ones(count, np.float32),
        "count": str(count),
        **changes,
    }
    tensors = {
        name: np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        for name, part in parts.items()
        if name != "count"
    }
    return safe.encode(tensors, {"form": "sparse", "count": parts["count"]})


TWO: dict[str, tuple[int, ...]] = {"a": (1,), "b": (1,)}


def test_the_handmade_change_is_valid_as_it_stands() -> None:
    assert {name: tensor.tolist() for name, tensor in decode_change(packed(TWO), TWO).items()} == {
        "a": [100],
        "b": [100],
    }


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"values": zlib.compress(bytes(50_000_000))}, "promised length"),  # 50 MB in 49 kB
        ({"gaps": zlib.compress(bytes(50_000_000))}, "promised length"),
        ({"values": zlib.compress(b"d")}, "promised length"),
        ({"values": b"no deflate"}, "damaged"),
        ({"gaps": zlib.compress(bytes([0, 2] + [0] * 6))}, "outside"),
        ({"gaps": zlib.compress(bytes([0, 0] + [0] * 6))}, "twice"),
        ({"gaps": zlib.compress(b"\xff" * 8)}, "outside"),
        ({"scales": floats(1)}, "scales"),
        ({"scales": np.ones(2, np.float64)}, "scales"),
        ({"scales": floats(1, np.nan)}, "not finite"),
        ({"scales": floats(1, 3e38)}, "too large"),
        ({"scales": floats(1, -1e9)}, "too large"),
        ({"count": "0"}, "0 values"),
        ({"count": "3"}, "3 values"),
        ({"count": "-1"}, "-1 values"),
        ({"count": "two"}, "damaged"),
        ({"count": "9" * 5000}, "damaged"),
    ],
    ids=str,
)
def test_a_hostile_change_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        decode_change(packed(TWO, **changes), TWO)


def test_a_weight_that_no_sound_training_gives_is_refused() -> None:
    shapes = {"w": (2,)}
    assert decode_update(encode_whole({"w": floats(1e5, -1e5)}, "fp32"), shapes, None)["w"].tolist() == [1e5, -1e5]
    for value in (1e7, -3e38):
        with pytest.raises(IntegrityError, match="too large"):
            decode_update(encode_whole({"w": floats(0, value)}, "fp32"), shapes, None)


def test_whole_weights_and_a_chain_of_changes_make_one_model() -> None:
    whole = encode_whole({"w": floats(1, 2, 3)}, "fp16")
    first, _ = encode_change({"w": floats(0.5, 0, 0)}, density=0.3)
    second, _ = encode_change({"w": floats(0, 0, -3)}, density=0.3)
    assert assemble([whole, first, second])["w"] == pytest.approx([1.5, 2, 0], abs=1e-6)
    assert assemble([whole, first, encode_whole({"w": floats(7, 7, 7)}, "fp32")])["w"].tolist() == [7, 7, 7]


def test_a_chain_that_does_not_fit_is_refused() -> None:
    whole = encode_whole({"w": floats(1, 2, 3)}, "fp32")
    change, _ = encode_change({"w": floats(1, 2, 3)}, density=1)
    with pytest.raises(IntegrityError, match="no parts"):
        assemble([])
    with pytest.raises(IntegrityError):
        assemble([change])
    with pytest.raises(IntegrityError):
        assemble([encode_whole({"w": floats(1, 2)}, "fp32"), change])
    with pytest.raises(IntegrityError, match="without the weights"):
        decode_update(change, {"w": (3,)}, None)
    with pytest.raises(IntegrityError, match="unknown form"):
        decode_update(safe.encode({"w": floats(1)}, {"form": "pickle"}), {"w": (1,)}, None)
    decode_update(whole, {"w": (3,)}, None)
