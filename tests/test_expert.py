"""An expert as bytes: what goes in comes out, and whatever else comes is refused with one error."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.expert import Expert, ExpertInfo, decode_expert, encode_expert

WEIGHTS = {
    "head.bias": np.array([0.5, -0.1], np.float32),
    "head.weight": np.array([[1.0, 2.0], [3.0, 0.1]], np.float32),
}
STATISTICS = np.array([[0.0, 1.0, -2.0], [1.0, 0.5, 0.0]], np.float32)


def info(**changes: Any) -> ExpertInfo:
    settings: dict[str, Any] = {
        "site": "clinic-a", "task": "pneumonia", "rounds": 3, "decay": 0.1, "num_train": 48, "pixel_mean": (0.5,),
        "pixel_std": (0.2,), "reference_digest": "ab" * 32, "num_cases": 48,
    }  # fmt: skip
    return ExpertInfo(**{**settings, **changes})


def as_bytes(told: ExpertInfo, **tensors: Any) -> bytes:
    return safe.encode(tensors, {"expert": msgspec.json.encode(told).decode(), "form": "fp32"})


def test_in_32_bits_everything_comes_back() -> None:
    data = encode_expert(Expert(info(), WEIGHTS, STATISTICS))
    back = decode_expert(data)
    assert back.info == info()
    assert {name: tensor.tolist() for name, tensor in back.weights.items()} == {
        name: tensor.tolist() for name, tensor in WEIGHTS.items()
    }
    assert back.statistics_2F is not None
    assert back.statistics_2F.tolist() == STATISTICS.tolist()
    assert encode_expert(back) == data


def test_in_16_bits_weights_are_rounded_and_statistics_are_not() -> None:
    statistics = STATISTICS + np.float32(0.1)
    back = decode_expert(encode_expert(Expert(info(), WEIGHTS, statistics), "fp16"))
    assert back.weights["head.weight"].dtype == np.float32
    assert float(back.weights["head.weight"][1, 1]) == 0.0999755859375  # the half-precision number next to 0.1
    assert back.statistics_2F is not None
    assert back.statistics_2F.tolist() == statistics.tolist()


def test_the_library_reads_the_same() -> None:
    tensors = safetensors.numpy.load(encode_expert(Expert(info(), WEIGHTS, STATISTICS)))
    assert sorted(tensors) == ["statistics", "weights.head.bias", "weights.head.weight"]
    assert tensors["weights.head.weight"].tolist() == WEIGHTS["head.weight"].tolist()


def test_an_expert_need_not_have_statistics() -> None:
    back = decode_expert(encode_expert(Expert(info(reference_digest="", num_cases=0), WEIGHTS)))
    assert back.statistics_2F is None


def test_an_expert_without_statistics_may_say_how_good_it_is_at_home() -> None:
    told = info(num_cases=0, num_held_out=5, home_gain=-0.25, home_spread=0.5)
    assert decode_expert(encode_expert(Expert(told, WEIGHTS))).info == told


def test_decoded_arrays_are_copies() -> None:
    data = bytearray(encode_expert(Expert(info(), WEIGHTS, STATISTICS)))
    back = decode_expert(memoryview(data))
    data[-100:] = bytes(100)
    assert back.weights["head.bias"].tolist() == WEIGHTS["head.bias"].tolist()


@pytest.mark.parametrize(
    ("weights", "statistics", "changes"),
    [
        ({}, STATISTICS, {}),
        ({"w": np.array([np.nan], np.float32)}, STATISTICS, {}),
        ({"w": np.array([1e7], np.float32)}, STATISTICS, {}),
        ({"num_batches_tracked": np.array([3], np.int64)}, STATISTICS, {}),
        (WEIGHTS, None, {}),  # promised and missing
        (WEIGHTS, STATISTICS, {"num_cases": 4}),  # too few for anybody's privacy
        (WEIGHTS, STATISTICS, {"reference_digest": ""}),
        (WEIGHTS, -STATISTICS, {}),  # a variance below zero
        (WEIGHTS, STATISTICS[:1], {}),
        (WEIGHTS, STATISTICS[:, :0], {}),
        (WEIGHTS, np.full((2, 3), np.inf, np.float32), {}),
        (WEIGHTS, STATISTICS, {"pixel_std": (0.2, 0.2)}),
        (WEIGHTS, STATISTICS, {"home_gain": 0.1}),  # on no image
        (WEIGHTS, STATISTICS, {"home_spread": 0.1}),
        (WEIGHTS, None, {"num_cases": 0, "reference_digest": "", "num_held_out": 5}),  # over an unknown model
        (WEIGHTS, STATISTICS, {"num_held_out": 4}),  # too few
        (WEIGHTS, STATISTICS, {"num_held_out": 5, "home_gain": 1001.0}),
        (WEIGHTS, STATISTICS, {"num_held_out": 5, "home_gain": math.nan}),
        (WEIGHTS, STATISTICS, {"num_held_out": 5, "home_spread": -0.1}),
    ],
)
def test_what_cannot_be_an_expert_is_neither_written_nor_read(
    weights: dict[str, Any], statistics: Any, changes: dict[str, Any]
) -> None:
    with pytest.raises(IntegrityError):
        encode_expert(Expert(info(**changes), weights, statistics))
    tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
    with pytest.raises(IntegrityError):
        decode_expert(
            as_bytes(info(**changes), **tensors, **({} if statistics is None else {"statistics": statistics}))
        )


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[" * 100_000,
        msgspec.json.encode(info()).decode().replace("clinic-a", "../clinic"),
        msgspec.json.encode(info()).decode().replace("0.2", "1e999"),
        msgspec.json.encode(info()).decode().replace('"rounds":3', '"rounds":-3'),
        msgspec.json.encode(info()).decode().replace('"decay":0.1', '"decay":1.5'),
        msgspec.json.encode(info()).decode().replace('"rounds"', '"more":1,"rounds"'),
        msgspec.json.encode(info()).decode().replace("abab", "xxxx"),
    ],
)
def test_who_says_nonsense_about_an_expert_is_refused(text: str) -> None:
    tensors = {"weights.w": np.ones(1, np.float32), "statistics": STATISTICS}
    with pytest.raises(IntegrityError):
        decode_expert(safe.encode(tensors, {"expert": text}))


def test_unexpected_tensors_and_types_are_refused() -> None:
    good = {"weights.w": np.ones(1, np.float32), "statistics": STATISTICS}
    decode_expert(as_bytes(info(), **good))
    more: list[dict[str, Any]] = [
        {"optimiser.w": np.ones(1, np.float32)},
        {"weights.": np.ones(1, np.float32)},
        {"weights.v": np.ones(1, np.float64)},
        {"weights.v": np.ones(1, np.uint8)},
        {"statistics": STATISTICS.astype(np.float16)},
    ]
    for extra in more:
        with pytest.raises(IntegrityError):
            decode_expert(as_bytes(info(), **{**good, **extra}))


@given(st.data())
def test_a_damaged_expert_is_read_or_refused(data: st.DataObject) -> None:
    good = bytearray(encode_expert(Expert(info(), WEIGHTS, STATISTICS)))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    for damaged in (bytes(good), bytes(good[:cut])):
        with contextlib.suppress(IntegrityError):
            decode_expert(damaged)
