"""The public set and the targets on it: lossless pixels, answers in 8 bits, no bomb goes off."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.image_set import ImageSet, ImageSetInfo, decode_image_set, encode_image_set
from ayni.tensors.targets import Targets, TargetsInfo, decode_targets, encode_targets

sides = st.integers(1, 6)
pixels = st.tuples(sides, sides, sides, st.sampled_from([1, 3])).flatmap(lambda shape: arrays.arrays(np.uint8, shape))


def image_set(pixels_NHWC: npt.NDArray[np.uint8]) -> ImageSet:
    shape: tuple[int, int, int, int] = pixels_NHWC.shape
    return ImageSet(ImageSetInfo(name="public", licence="CC BY 4.0", shape=shape), pixels_NHWC)


@given(pixels)
def test_pixels_come_out_as_they_went_in(pixels_NHWC: npt.NDArray[np.uint8]) -> None:
    decoded = decode_image_set(encode_image_set(image_set(pixels_NHWC)))
    assert np.array_equal(decoded.pixels_NHWC, pixels_NHWC)
    assert decoded.info == image_set(pixels_NHWC).info


def test_the_same_images_give_the_same_bytes() -> None:
    pixels_NHWC = np.arange(2 * 5 * 4, dtype=np.uint8).reshape(2, 5, 4, 1)
    assert encode_image_set(image_set(pixels_NHWC)) == encode_image_set(image_set(pixels_NHWC.copy()))


def bytes_of(shape: tuple[int, ...], rows: bytes) -> bytes:
    info = b'{"name":"p","licence":"","shape":%s}' % msgspec.json.encode(shape)
    return safe.encode({"rows": np.frombuffer(rows, np.uint8)}, {"images": info.decode()})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes_of((1, 2, 2, 1), zlib.compress(bytes(80_000_000))), "promised length"),  # 80 MB in 78 kB
        (bytes_of((1, 2, 2, 1), zlib.compress(bytes(3))), "promised length"),
        (bytes_of((1, 2, 2, 1), b"no deflate"), "damaged"),
        (bytes_of((2**20, 2**20, 2**20, 3), zlib.compress(b"")), "at most"),
        (bytes_of((2**62, 4, 1, 1), zlib.compress(b"")), "at most"),
        (bytes_of((0, 2, 2, 1), zlib.compress(b"")), "shape"),
        (bytes_of((-1, -1, 2, 2), zlib.compress(bytes(4))), "shape"),
        (bytes_of((2, 2), zlib.compress(bytes(4))), "no image set"),
        (safe.encode({"rows": np.zeros(1, np.uint8)}), "no image set"),
    ],
    ids=range(9),
)
def test_a_hostile_image_set_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        decode_image_set(data)


def info(bits: int, *classes: str) -> TargetsInfo:
    return TargetsInfo(
        source="foundation", image_set="0" * 64, model_name="m", model_version="1", licence="MIT",
        classes=classes, bits=bits,  # type: ignore[arg-type]
    )  # fmt: skip


def test_eight_bits_are_255_steps_between_each_images_own_extremes() -> None:
    logits_NC = np.array([[0, 255, 100.4], [-1, 1, 0.2]], np.float32)  # steps of 1 and of 2/255
    targets = decode_targets(encode_targets(Targets(info(8, "a", "b", "c"), logits_NC)))
    assert targets.logits_NC[0].tolist() == [0, 255, 100]
    assert targets.logits_NC[1] == pytest.approx([-1, 1, 0.2], abs=1e-6)  # 0.2 is step 153
    assert targets.info.classes == ("a", "b", "c")


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(-50, 50, width=32)), st.sampled_from([8, 16]))
def test_the_error_of_quantising_is_at_most_half_a_step(logits_NC: npt.NDArray[np.float32], bits: int) -> None:
    seen = decode_targets(encode_targets(Targets(info(bits, *"abcd"), logits_NC))).logits_NC
    step_N1 = (logits_NC.max(axis=1, keepdims=True) - logits_NC.min(axis=1, keepdims=True)) / 255
    allowed = step_N1 * 0.51 + 1e-4 if bits == 8 else np.abs(logits_NC) * 2**-11 + 1e-4
    assert (np.abs(seen - logits_NC) <= allowed).all()


def test_an_image_whose_answers_are_all_equal_keeps_them() -> None:
    logits_NC = np.full((2, 3), 7.25, np.float32)
    assert decode_targets(encode_targets(Targets(info(8, *"abc"), logits_NC))).logits_NC.tolist() == logits_NC.tolist()


def test_targets_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(IntegrityError):
        encode_targets(Targets(info(8, "a", "b"), np.zeros((2, 3), np.float32)))
    with pytest.raises(IntegrityError):
        encode_targets(Targets(info(8, "a"), np.full((2, 1), np.nan, np.float32)))
    good: dict[str, npt.NDArray[Any]] = {
        "codes": np.zeros((2, 2), np.uint8),
        "low": np.zeros((2, 1), np.float32),
        "step": np.ones((2, 1), np.float32),
    }
    metadata = {"targets": msgspec.json.encode(info(8, "a", "b")).decode()}
    decode_targets(safe.encode(good, metadata))
    changes: list[dict[str, npt.NDArray[Any]]] = [
        {"codes": np.zeros((2, 3), np.uint8)},
        {"codes": np.zeros((2, 2), np.float32)},
        {"low": np.zeros((1, 1), np.float32)},
        {"step": np.full((2, 1), 3e38, np.float32), "codes": np.full((2, 2), 255, np.uint8)},
        {"more": np.zeros(1, np.uint8)},
    ]
    for change in changes:
        with pytest.raises(IntegrityError):
            decode_targets(safe.encode({**good, **change}, metadata))
