"""A teacher as bytes: what goes in comes out, and whatever else comes is refused with one error."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from ayni.errors import IntegrityError
from ayni.task import DualKdSettings, ImageSettings, NetworkSettings, Task, TrainingSettings, UNetSettings
from ayni.tensors import safe
from ayni.tensors.teacher import TeacherInfo, TeacherWeights, check_teaches, decode_teacher, encode_teacher

UNET = UNetSettings(channels=(4, 8), features=4)
IMAGE = ImageSettings(depth=8, height=8, width=8, spacing_mm=(2.0, 1.0, 1.0))
WEIGHTS = {
    "head.bias": np.array([0.5, -0.1], np.float32),
    "head.weight": np.array([[1.0, 2.0], [3.0, 0.1]], np.float32),
}
TASK = Task(
    name="hippocampus",
    title="Hippocampus",
    kind="segmentation",
    classes=("anterior", "posterior"),
    image=IMAGE,
    training=TrainingSettings(rounds=1),
    networks=NetworkSettings(small=UNET, large=UNET),
    dual_kd=DualKdSettings(),
)


def info(**changes: Any) -> TeacherInfo:
    settings: dict[str, Any] = {
        "task": "hippocampus", "kind": "segmentation", "network": UNET, "classes": ("anterior", "posterior"),
        "image": IMAGE, "pixel_mean": (0.25,), "pixel_std": (0.5,), "name": "national", "licence": "CC-BY-4.0",
        "trained_on": "40 volumes", "num_images": 32, "num_held_out": 8, "figure_name": "Dice", "figure": 0.75,
    }  # fmt: skip
    return TeacherInfo(**{**settings, **changes})


def test_in_32_bits_everything_comes_back() -> None:
    data = encode_teacher(TeacherWeights(info(), WEIGHTS), "fp32")
    back = decode_teacher(data)
    assert back.info == info()
    assert {name: tensor.tolist() for name, tensor in back.weights.items()} == {
        name: tensor.tolist() for name, tensor in WEIGHTS.items()
    }
    assert encode_teacher(back, "fp32") == data


def test_in_16_bits_it_is_half_as_long_and_rounded() -> None:
    large = {"w": np.full((100, 100), 0.1, np.float32)}
    half, full = (encode_teacher(TeacherWeights(info(), large), form) for form in ("fp16", "fp32"))
    assert len(full) - len(half) == 2 * 10_000
    assert float(decode_teacher(half).weights["w"][0, 0]) == 0.0999755859375  # the half-precision number next to 0.1


def test_the_library_reads_the_same() -> None:
    tensors = safetensors.numpy.load(encode_teacher(TeacherWeights(info(), WEIGHTS), "fp32"))
    assert tensors["weights.head.weight"].tolist() == WEIGHTS["head.weight"].tolist()
    assert sorted(tensors) == ["weights.head.bias", "weights.head.weight"]


@pytest.mark.parametrize(
    ("weights", "changes"),
    [
        ({}, {}),
        ({"w": np.array([np.nan], np.float32)}, {}),
        ({"w": np.array([1e7], np.float32)}, {}),
        (WEIGHTS, {"pixel_std": (0.2, 0.2)}),
    ],
)
def test_what_cannot_be_a_teacher_is_neither_written_nor_read(weights: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        encode_teacher(TeacherWeights(info(**changes), weights))
    tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
    with pytest.raises(IntegrityError):
        decode_teacher(safe.encode(tensors, {"teacher": msgspec.json.encode(info(**changes)).decode()}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "x"),
        ("hippocampus", "../hippocampus"),
        ('"figure":0.75', '"figure":7.5'),
        ('"num_images":32', '"num_images":-1'),
        ('"num_images"', '"more":1,"num_images"'),
        ('"unet"', '"vnet"'),
        ("0.25", "1e999"),
    ],
)
def test_who_says_nonsense_about_a_teacher_is_refused(old: str, new: str) -> None:
    text = msgspec.json.encode(info()).decode()
    assert old in text
    with pytest.raises(IntegrityError):
        decode_teacher(safe.encode({"weights.w": np.ones(1, np.float32)}, {"teacher": text.replace(old, new, 1)}))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        decode_teacher(data)


def test_a_teacher_for_this_task_is_taken_whatever_its_patch() -> None:
    check_teaches(info(image=msgspec.structs.replace(IMAGE, patch=(4, 8, 8))), TASK)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": UNetSettings(channels=(4, 16), features=4)}, "network"),
        ({"classes": ("posterior", "anterior")}, "classes"),
        ({"kind": "classification"}, "kind"),
        ({"image": ImageSettings(height=8, width=8)}, "volumes"),
        ({"image": msgspec.structs.replace(IMAGE, spacing_mm=None)}, "spacing_mm"),
        ({"pixel_mean": (0.1, 0.2, 0.3), "pixel_std": (0.1, 0.2, 0.3)}, "channels"),
    ],
)
def test_a_teacher_of_another_task_is_refused_with_what_differs(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(IntegrityError, match=told):
        check_teaches(info(**changes), TASK)
