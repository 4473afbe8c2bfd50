"""A foundation model in an ONNX file, run here through ONNX Runtime: classes of an image, or outlines in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ayni.artefacts.files import sha256_file
from ayni.errors import MissingExtraError, UserError
from ayni.task import GuidanceSettings, Kind
from ayni_coordinator.guidance.outlines import RULES_VERSION, clipped, kept_size, scaled
from ayni_coordinator.guidance.source import DOES, Logits, Pixels, named_classes

KINDS: tuple[Kind, ...] = ("classification", "segmentation")
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
BATCH_SIZE = 16
LEAST_PROBABILITY = np.float32(1e-6)  # of a class; its logarithm is -13.8
Values = npt.NDArray[np.float32]
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_AXES: dict[Kind, tuple[str, ...]] = {
    "classification": ("images", "classes"),
    "segmentation": ("images", "structures", "height", "width"),
}


def open_model(settings: GuidanceSettings, kind: Kind, home: Path) -> OnnxModel:
    """The file `settings.model`. Its name and version come from the settings, or from the file's name and hash."""
    path = Path(settings.model)
    try:
        digest = _digest(path)[:16]
    except OSError as error:
        raise UserError(
            f"guidance.model {error.filename} cannot be read ({error.strerror}). Give the path of an ONNX file; "
            "weights that were exported to a file beside it stay there."
        ) from None
    version = f"{settings.version}+{digest}" if settings.version else digest
    prefix = "class" if kind == "classification" else "structure"
    return OnnxModel(
        path, settings, kind, name=settings.name or path.stem, version=version, licence=settings.licence, prefix=prefix
    )


class OnnxModel:
    """A Source. The model takes one tensor [B, C, H, W] or [B, H, W, C] of 1 or 3 channels.

    It gives [B, K] for a classification and [B, S, h, w] for a segmentation, of what `settings.output` says: logits or
    probabilities. Images are scaled to the model's own height and width (bilinear, Pillow), or to the settings' where
    the model leaves them open; grey is repeated if it wants 3 channels; then `settings.pixel_scale`: "imagenet" (0..1,
    minus the mean of ImageNet, over its deviation), "0..1", "-1..1" or "0..255" (always so if it takes uint8).
    """

    def __init__(
        self, path: Path, settings: GuidanceSettings, kind: Kind, *, name: str, version: str, licence: str, prefix: str
    ) -> None:
        """Classes that the settings do not name are called by `prefix` and number.

        Raises UserError, with the model's inputs and outputs, if it does not fit.
        """
        self._session = _open_session(path)
        (image, *more), outputs = self._session.get_inputs(), self._session.get_outputs()
        self._signature = f"{path.name} has inputs {_describe([image, *more])} and outputs {_describe(outputs)}"
        self._kind, self._gives, shape = kind, settings.output, image.shape
        if more or len(shape) != 4 or image.type not in _NUMPY_TYPES:
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
        self._output = self._output_of(outputs)
        self.batch_size = self._fixed_batch or BATCH_SIZE
        self.name, self.licence = name, licence or "unknown"
        self.version = f"{version}.{self._height}x{self._width}.{self._scale}{_rules(kind, settings)}"
        number = self._probe()
        self.classes = named_classes(settings, tuple(f"{prefix}-{one:04d}" for one in range(number)), path.name)

    def answer(self, pixels_BHWC: Pixels) -> Logits:
        """logits_BC; or outlines, logits [B, S, h, w] between -8 and 8 of the size that is kept. float32."""
        height, width = kept_size(*pixels_BHWC.shape[1:3])
        parts = []
        for values in self._run(pixels_BHWC):
            if values.shape[1] != len(self.classes):
                raise UserError(
                    f"{self.name} answered {values.shape[1]} logits where it has {len(self.classes)} names."
                )
            if self._kind == "segmentation":
                parts.append(scaled(clipped(values, self._gives), height, width))
            else:
                parts.append(np.log(np.maximum(values, LEAST_PROBABILITY)) if self._gives != "logits" else values)
        return np.concatenate(parts)

    def _run(self, pixels_BHWC: Pixels) -> list[Values]:
        """What the model itself says, in as many batches as it needs: finite, and of the shape of its kind."""
        step, parts = self._fixed_batch or len(pixels_BHWC), []
        for start in range(0, len(pixels_BHWC), step):
            part = np.stack([self._prepare(pixels_HWC) for pixels_HWC in pixels_BHWC[start : start + step]])
            padded = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])  # for a fixed batch
            values = np.asarray(self._session.run([self._output], {self._input: padded})[0][: len(part)], np.float32)
            if values.ndim != len(_AXES[self._kind]) or len(values) != len(part) or not values.size:
                raise self._misfit()
            if not np.isfinite(values).all():
                raise UserError(f"{self.name} answered with values that are not finite. Check guidance.pixel_scale.")
            if self._gives == "probabilities" and not _are_probabilities(values):
                raise UserError(
                    f"{self._signature}; what it gives are no probabilities ({values.min():.3g} to "
                    f'{values.max():.3g}). Set guidance.output to "logits", or export it with its last activation.'
                )
            parts.append(values)
        return parts

    def _prepare(self, pixels_HWC: Pixels) -> np.ndarray[Any, np.dtype[Any]]:
        """One image as the model wants it, [C, H, W] or [H, W, C]."""
        channels = pixels_HWC.shape[2]
        picture = Image.fromarray(pixels_HWC[:, :, 0] if channels == 1 else pixels_HWC)
        picture = picture.convert("L" if self._channels == 1 else "RGB")
        resized = np.asarray(picture.resize((self._width, self._height), Image.Resampling.BILINEAR))
        raw = resized.reshape(self._height, self._width, self._channels).astype(np.float32)
        values = _scaled_values(raw, self._scale)
        return (values if self._channels_last else values.transpose(2, 0, 1)).astype(self._type)

    def _probe(self) -> int:
        """How many classes it has. A black, a white and a noisy image, before anything counts: does it run, and does it
        give what the settings say?"""
        pixels = np.zeros((3, self._height, self._width, self._channels), np.uint8)
        pixels[1] = 255
        pixels[2] = np.random.default_rng(0).integers(0, 256, pixels.shape[1:])
        try:
            values = np.concatenate(self._run(pixels))
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's own exceptions share no public root
            raise UserError(f"{self._signature}; it failed on a plain image: {str(error)[:200]}") from None
        if values.shape[1] < (2 if self._kind == "classification" else 1):
            raise self._misfit()
        if self._gives == "logits" and _are_probabilities(values):
            raise UserError(
                f"{self._signature}; it gives probabilities. Export it without its last softmax or sigmoid, or set "
                'guidance.output to "probabilities".'
            )
        return int(values.shape[1])

    def _output_of(self, outputs: list[Any]) -> str:
        """The output with as many axes as such answers have: that named "logits", or the first."""
        names = {kind: [o.name for o in outputs if len(o.shape or []) == len(axes)] for kind, axes in _AXES.items()}
        if fitting := names[self._kind]:
            return "logits" if "logits" in fitting else str(fitting[0])
        for other in (kind for kind, found in names.items() if found):
            raise UserError(f"{self._signature}. It {DOES[other]}; the task is a {self._kind}: {self._wanted()}.")
        raise self._misfit()

    def _wanted(self) -> str:
        least = "" if self._kind == "segmentation" else ", at least 2 classes"
        return f"it wants an output [{', '.join(_AXES[self._kind])}]{least}"

    def _misfit(self) -> UserError:
        return UserError(
            f"{self._signature}. Guidance wants one image input of 4 axes (float32, float16 or uint8; 1 or 3 "
            f"channels), and for a {self._kind} {self._wanted()}."
        )


def _digest(path: Path) -> str:
    """SHA-256 of the file, and of those in which it keeps its weights, as torch writes them (`model.onnx.data`)."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    content = path.read_bytes()
    state = hashlib.sha256(content)
    try:
        graph = onnx.load_model_from_string(content).graph
    except DecodeError:
        return state.hexdigest()  # whoever opens it will say that it is no model
    beside = {one.value for tensor in _tensors(graph) for one in tensor.external_data if one.key == "location"}
    for name in sorted(beside):
        state.update(sha256_file(path.parent / name).encode())
    return state.hexdigest()


def _tensors(graph: Any) -> Iterator[Any]:
    """All that a graph, and the graphs of its branches and loops, know by heart."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _rules(kind: Kind, settings: GuidanceSettings) -> str:
    """What else decides an answer, as a part of the version."""
    if kind == "segmentation":
        return f".{settings.output}.outlines-{RULES_VERSION}"
    return "" if settings.output == "logits" else f".{settings.output}"


def _are_probabilities(values: Values) -> bool:
    """Of classes they sum to 1; of structures each is one by itself."""
    if values.ndim == 2:
        return bool((values >= 0).all() and np.abs(values.sum(axis=1) - 1).max() < 1e-2)
    return bool(values.min() >= -1e-3 and values.max() <= 1 + 1e-3)


def _scaled_values(raw_HWC: Values, scale: str) -> Values:
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
