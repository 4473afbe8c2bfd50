"""A foundation model in an ONNX file, run here through ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ayni.errors import MissingExtraError, UserError
from ayni.task import GuidanceSettings
from ayni_coordinator.guidance.source import Logits, Pixels

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
BATCH_SIZE = 16
Values = npt.NDArray[np.float32]
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def open_onnx(settings: GuidanceSettings) -> OnnxModel:
    """The file `settings.model`. Its name and version come from the settings, or from the file's name and hash."""
    path = Path(settings.model)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"guidance.model {path} cannot be read ({error.strerror}). Give the path of an ONNX file."
        ) from None
    digest = hashlib.sha256(content).hexdigest()[:16]
    version = f"{settings.version}+{digest}" if settings.version else digest
    return OnnxModel(
        path, settings, name=settings.name or path.stem, version=version, licence=settings.licence, class_prefix="class"
    )


class OnnxModel:
    """A Source. The model takes one tensor [B, C, H, W] or [B, H, W, C] of 1 or 3 channels and gives logits [B, K].

    Images are scaled to the model's own height and width (bilinear, Pillow), or to the settings' where the model
    leaves them open; grey is repeated if it wants 3 channels; then `settings.pixel_scale`: "imagenet" (0..1, minus
    the mean of ImageNet, over its deviation), "0..1", "-1..1" or "0..255" (always so if it takes uint8).
    """

    def __init__(
        self, path: Path, settings: GuidanceSettings, *, name: str, version: str, licence: str, class_prefix: str
    ) -> None:
        """Raises UserError, with the model's inputs and outputs, if it does not fit."""
        self._session = _open_session(path)
        (image, *more), outputs = self._session.get_inputs(), self._session.get_outputs()
        self._signature = f"{path.name} has inputs {_describe([image, *more])} and outputs {_describe(outputs)}"
        shape, rank_2 = image.shape, [output for output in outputs if len(output.shape or []) == 2]
        if more or len(shape) != 4 or image.type not in _NUMPY_TYPES or not rank_2:
            raise self._misfit()
        self._channels_last = shape[1] not in (1, 3) and shape[3] in (1, 3)
        _, channels, height, width = [shape[axis] for axis in ((0, 3, 1, 2) if self._channels_last else (0, 1, 2, 3))]
        self._channels = channels if isinstance(channels, int) else 3
        if self._channels not in (1, 3):
            raise self._misfit()
        self._height = height if isinstance(height, int) else settings.height
        self._width = width if isinstance(width, int) else settings.width
        self._fixed_batch = shape[0] if isinstance(shape[0], int) else None
        self._input, self._type = image.name, _NUMPY_TYPES[image.type]
        self._scale = "0..255" if self._type is np.uint8 else settings.pixel_scale
        self._output = next((output.name for output in rank_2 if output.name == "logits"), rank_2[0].name)
        self.batch_size = self._fixed_batch or BATCH_SIZE
        self.name, self.licence = name, licence or "unknown"
        self.version = f"{version}.{self._height}x{self._width}.{self._scale}"
        probe_BC = self._probe()
        self.classes = tuple(f"{class_prefix}-{number:04d}" for number in range(probe_BC.shape[1]))

    def answer(self, pixels_BHWC: Pixels) -> Logits:
        """logits_BC, float32."""
        step, parts = self._fixed_batch or len(pixels_BHWC), []
        images = np.stack([self._prepare(pixels_HWC) for pixels_HWC in pixels_BHWC])
        for start in range(0, len(images), step):
            part = images[start : start + step]
            padded = np.concatenate(
                [part, np.repeat(part[-1:], step - len(part), axis=0)]
            )  # for a model of fixed batch
            parts.append(self._session.run([self._output], {self._input: padded})[0][: len(part)])
        logits_BC = np.concatenate(parts).astype(np.float32)
        if not np.isfinite(logits_BC).all():
            raise UserError(f"{self.name} answered with values that are not finite. Check guidance.pixel_scale.")
        return logits_BC

    def _prepare(self, pixels_HWC: Pixels) -> np.ndarray[Any, np.dtype[Any]]:
        """One image as the model wants it, [C, H, W] or [H, W, C]."""
        channels = pixels_HWC.shape[2]
        picture = Image.fromarray(pixels_HWC[:, :, 0] if channels == 1 else pixels_HWC)
        picture = picture.convert("L" if self._channels == 1 else "RGB")
        scaled = np.asarray(picture.resize((self._width, self._height), Image.Resampling.BILINEAR))
        raw = scaled.reshape(self._height, self._width, self._channels).astype(np.float32)
        values = _scaled(raw, self._scale)
        return (values if self._channels_last else values.transpose(2, 0, 1)).astype(self._type)

    def _probe(self) -> Logits:
        """A black and a white image, before anything counts: does it run, and are its answers logits?"""
        pixels = np.zeros((2, self._height, self._width, self._channels), np.uint8)
        pixels[1] = 255
        try:
            logits_BC = self.answer(pixels)
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's own exceptions share no public root
            raise UserError(f"{self._signature}; it failed on a plain image: {str(error)[:200]}") from None
        if logits_BC.ndim != 2 or len(logits_BC) != 2 or logits_BC.shape[1] < 2:
            raise self._misfit()
        if (logits_BC >= 0).all() and np.abs(logits_BC.sum(axis=1) - 1).max() < 1e-3:
            raise UserError(f"{self._signature}; it gives probabilities. Export it without its last softmax.")
        return logits_BC

    def _misfit(self) -> UserError:
        return UserError(
            f"{self._signature}. Guidance wants one image input of 4 axes (float32, float16 or uint8; 1 or 3 channels) "
            "and an output of logits [images, classes], at least 2 classes."
        )


def _scaled(raw_HWC: Values, scale: str) -> Values:
    """0..255 as the model's training saw it; a grey model of ImageNet gets the means over the three colours."""
    if scale == "0..255":
        return raw_HWC
    unit_HWC = raw_HWC / np.float32(255)
    if scale == "0..1":
        return unit_HWC
    if scale == "-1..1":
        return unit_HWC * np.float32(2) - np.float32(1)
    if raw_HWC.shape[2] == 1:
        return (unit_HWC - np.float32(IMAGENET_MEAN.mean())) / np.float32(IMAGENET_STD.mean())
    return (unit_HWC - IMAGENET_MEAN) / IMAGENET_STD


def _open_session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("Guidance by an ONNX model", "deploy") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(4, os.cpu_count() or 1)
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no public root
        raise UserError(f"{path} is no model that ONNX Runtime can open: {str(error)[:200]}") from None


def _describe(tensors: list[Any]) -> str:
    return ", ".join(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in tensors)
