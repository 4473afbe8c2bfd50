"""A teacher that was trained elsewhere: our own file, or plain safetensors with the names of the task's network."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch

from ayni.errors import IntegrityError, UserError
from ayni.learning.batches import Normaliser
from ayni.learning.networks import load_weights, seeded_network, shapes_of
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.teacher import PixelStd, Share, TeacherInfo, TeacherWeights, check_teaches, decode_teacher

_PER_CHANNEL = "a list with a number for each channel"


def read_teacher(path: Path, task: Task, normalise: Normaliser | None) -> TeacherWeights:
    """Checked: names, shapes, types, and that it answers with numbers. `normalise` is what a plain file does not say.

    Raises UserError if the file cannot be read, says too little or does not fit the task.
    """
    try:
        return _checked(path, path.read_bytes(), task, normalise)
    except OSError as error:
        raise UserError(f"the teacher cannot be read from {path}: {error.strerror}.") from None
    except IntegrityError as error:
        raise UserError(f"{path} cannot teach this task: {error}. Give a teacher that was made for it.") from None


def _checked(path: Path, data: bytes, task: Task, normalise: Normaliser | None) -> TeacherWeights:
    metadata = safe.read_metadata(data)
    teacher = decode_teacher(data) if "teacher" in metadata else _plain(path, data, metadata, task, normalise)
    check_teaches(teacher.info, task)
    network = seeded_network(task.teacher_network, task, 0)
    safe.check_like(teacher.weights, shapes_of(network))
    load_weights(network, teacher.weights)
    with torch.no_grad():
        if not network.eval()(torch.zeros(1, task.image.channels, *task.image.seen)).isfinite().all():
            raise IntegrityError("it answers an empty image with what is no number")
    return teacher


def _plain(
    path: Path, data: bytes, metadata: dict[str, str], task: Task, normalise: Normaliser | None
) -> TeacherWeights:
    tensors = safe.decode(data, largest=safe.LARGEST_WEIGHT)
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype.kind == "f"}
    if len(floats) < len(tensors):
        raise IntegrityError("it holds tensors that are no floating point numbers")
    info = TeacherInfo(
        task=task.name,
        kind=task.kind,
        network=task.teacher_network,
        classes=task.classes,
        image=task.image,
        pixel_mean=_of_channels(path, metadata, "pixel_mean", normalise.mean if normalise else None),
        pixel_std=_of_channels(path, metadata, "pixel_std", normalise.std if normalise else None),
        name=path.stem,
    )
    return TeacherWeights(info, {name: tensor.astype(np.float32) for name, tensor in floats.items()})


def _of_channels(
    path: Path, metadata: dict[str, str], name: str, otherwise: tuple[float, ...] | None
) -> tuple[float, ...]:
    if name in metadata:
        numbers = tuple[Share, ...] if name == "pixel_mean" else tuple[PixelStd, ...]
        try:
            told: tuple[float, ...] = msgspec.json.decode(metadata[name], type=numbers)
            return told
        except msgspec.MsgspecError as error:
            raise UserError(f"{path}: {name} in its metadata is not {_PER_CHANNEL}: {error}.") from None
    if otherwise is None:
        raise UserError(
            f"{path} does not say how its images were normalised. Give labelled images too (--data), or write "
            f"pixel_mean and pixel_std into its metadata, each {_PER_CHANNEL}, of pixels between 0 and 1."
        )
    return otherwise
