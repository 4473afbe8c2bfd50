"""A teacher: one network that the centre trained on labelled images and sends to each site once, with what it is.

Its weights and their words in one safetensors file. It is no part of any average and never travels up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from ayni.errors import IntegrityError
from ayni.task import Architecture, ImageSettings, Kind, Name, Task
from ayni.tensors import safe
from ayni.tensors.safe import Array, Floats

Form = Literal["fp32", "fp16"]
Num = Annotated[int, Meta(ge=0, lt=2**31)]
Share = Annotated[float, Meta(ge=0, le=1)]
PixelStd = Annotated[float, Meta(gt=0, le=1)]
Words = Annotated[str, Meta(max_length=1000)]

_WEIGHTS = "weights."


class TeacherInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it is, and what it has learnt from.

    `pixel_mean` and `pixel_std` normalise an image's channels; all sites of its federation do it so. `num_images` were
    trained on, and `figure` is the `figure_name` (Dice, AUC) on `num_held_out` others; none if no image was held out.
    """

    task: Name
    kind: Kind
    network: Architecture
    classes: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]
    image: ImageSettings
    pixel_mean: Annotated[tuple[Share, ...], Meta(min_length=1, max_length=16)]
    pixel_std: Annotated[tuple[PixelStd, ...], Meta(min_length=1, max_length=16)]
    name: Words
    version: Words = "1"
    licence: Words = ""
    trained_on: Words = ""
    num_images: Num = 0
    num_held_out: Num = 0
    figure_name: Annotated[str, Meta(max_length=32)] = ""
    figure: Share | None = None


@dataclass(frozen=True, slots=True)
class TeacherWeights:
    """`weights` by the names of the network's state."""

    info: TeacherInfo
    weights: dict[str, Floats]


def encode_teacher(teacher: TeacherWeights, form: Form = "fp16") -> bytes:
    """A safetensors file, in half precision half as long. Raises IntegrityError for what cannot be a teacher."""
    kind = np.float16 if form == "fp16" else np.float32
    with np.errstate(over="ignore"):  # refused by _checked
        tensors: dict[str, Array] = {_WEIGHTS + name: tensor.astype(kind) for name, tensor in teacher.weights.items()}
    _checked(teacher.info, tensors)
    return safe.encode(tensors, {"teacher": msgspec.json.encode(teacher.info).decode(), "form": form})


def decode_teacher(data: safe.Bytes) -> TeacherWeights:
    """Weights as 32-bit floats, copies. Raises IntegrityError, and nothing else, whatever the bytes.

    That the weights fit the network is for the caller to check (`safe.check_like`), who has torch.
    """
    tensors = safe.decode(data)
    try:
        info = msgspec.json.decode(safe.read_metadata(data)["teacher"], type=TeacherInfo)
    except (KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise IntegrityError(f"this is no teacher: {error}") from None
    return _checked(info, tensors)


def check_teaches(info: TeacherInfo, task: Task) -> None:
    """Whether a teacher is one for this task; raises IntegrityError."""
    wanted = {
        "network": task.teacher_network,
        "kind": task.kind,
        "classes": task.classes,
        "channels": task.image.channels,
        "volumes": bool(task.image.depth),
        "spacing_mm": task.image.spacing_mm,
    }
    found = {
        "network": info.network,
        "kind": info.kind,
        "classes": info.classes,
        "channels": info.image.channels,
        "volumes": bool(info.image.depth),
        "spacing_mm": info.image.spacing_mm,
    }
    for name, value in wanted.items():
        if found[name] != value:
            raise IntegrityError(f"the teacher {info.name!r} has {name} {found[name]!r}; this task has {value!r}")
    if len(info.pixel_mean) != task.image.channels:
        raise IntegrityError(f"the teacher {info.name!r} normalises {len(info.pixel_mean)} channels")


def _checked(info: TeacherInfo, tensors: dict[str, Array]) -> TeacherWeights:
    weights: dict[str, Floats] = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(_WEIGHTS)
        if name == full_name or not name or tensor.dtype.kind != "f" or tensor.dtype.itemsize > 4:
            raise IntegrityError(f"a teacher with an unexpected tensor {full_name!r} of type {tensor.dtype}")
        safe.check_floats(name, tensor, largest=safe.LARGEST_WEIGHT)
        weights[name] = tensor.astype(np.float32)
    if not weights:
        raise IntegrityError("a teacher without weights")
    if len(info.pixel_mean) != len(info.pixel_std):
        raise IntegrityError("a teacher whose normalisation has unequal numbers of means and deviations")
    return TeacherWeights(info, weights)
