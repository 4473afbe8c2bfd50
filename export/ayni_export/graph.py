"""The network as an ONNX graph: pixels in; logits and probabilities out.

B = images, C = classes or features, G = groups of them, R = rows in a group, K = channels, H x W = pixels. Logits and
probabilities are [B, C] of classes, or [B, S, H, W] of S structures in a segmentation. Of volumes H x W is D x H x W,
the part of a volume that the network sees at once.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from ayni.errors import IntegrityError
from ayni.learning.networks import Network
from ayni.trained_model import TrainedModel
from ayni_export.bundle import Parity

OUTPUTS = ("logits", "probabilities")
TOLERANCE = 1e-4  # of logits up to 10, and of probabilities
ROUNDING = 1e-5  # of larger logits, as a share of the largest: 32 bits round in proportion
NUM_PARITY_IMAGES, NUM_PARITY_VOLUMES = 16, 5
MAX_PARITY_PIXELS = 1 << 18  # in one batch: the features of 16 large images would fill a small machine's memory
Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class DiagnosisGraph(nn.Module):
    """The network with the preprocessing that training used, and calibrated probabilities after it."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: Network, model: TrainedModel) -> None:
        super().__init__()
        self.network = network
        self.temperature, self.dense = model.temperature, model.task.kind == "segmentation"
        per_channel = (1, -1, *(1 for _ in model.task.image.size))
        self.register_buffer("pixel_mean", torch.tensor(model.pixel_mean).reshape(per_channel))
        self.register_buffer("pixel_std", torch.tensor(model.pixel_std).reshape(per_channel))

    def forward(self, pixels_BKHW: Tensor) -> tuple[Tensor, Tensor]:
        """`pixels_BKHW`: uint8. Returns logits and probabilities: of each class, or of each structure by itself."""
        images_BKHW = (pixels_BKHW.float() / 255 - self.pixel_mean) / self.pixel_std
        logits: Tensor = self.network(images_BKHW)
        scaled = logits / self.temperature
        return logits, torch.sigmoid(scaled) if self.dense else torch.softmax(scaled, dim=1)


class WrittenOutGroupNorm(nn.GroupNorm):
    """Group normalisation in plain arithmetic, with means of rows and then of these means; of images or volumes.

    ONNX Runtime adds a whole group up one by one, and loses digits: on a flat image of 512 x 512 pixels its logits
    were off by 0.0009. The names in the state are those of `nn.GroupNorm`, and the tensors are shared with it.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x_BCHW: Tensor) -> Tensor:
        per_channel = (-1, *(1,) * (x_BCHW.ndim - 2))
        groups_BGRW = x_BCHW.reshape(x_BCHW.shape[0], self.num_groups, -1, x_BCHW.shape[-1])
        centred_BGRW = groups_BGRW - _mean_of_rows(groups_BGRW)
        variance_BG11 = _mean_of_rows(centred_BGRW * centred_BGRW)
        normal_BCHW = (centred_BGRW / torch.sqrt(variance_BG11 + self.eps)).reshape(x_BCHW.shape)
        return normal_BCHW * self.weight.reshape(per_channel) + self.bias.reshape(per_channel)


def _mean_of_rows(groups_BGRW: Tensor) -> Tensor:
    return groups_BGRW.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def write_out_norms(module: nn.Module) -> nn.Module:
    """Replace every group normalisation in the module, in place."""
    for name, child in module.named_children():
        setattr(module, name, WrittenOutGroupNorm(child) if isinstance(child, nn.GroupNorm) else write_out_norms(child))
    return module


def to_onnx(graph: DiagnosisGraph, model: TrainedModel, *, opset: int) -> bytes:
    """One self-contained ONNX file; the number of images is free. It holds no path of this machine."""
    image = model.task.image
    example = torch.zeros(2, image.channels, *image.seen, dtype=torch.uint8)
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            write_out_norms(copy.deepcopy(graph)).eval(),
            (example,),
            dynamo=True,
            input_names=["pixels"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"pixels_BKHW": {0: torch.export.Dim("images", min=1, max=4096)}},
            opset_version=opset,
            verbose=False,
        )
    if program is None:
        raise IntegrityError("torch made no ONNX graph of this network. Report it with the task file.")
    proto = program.model_proto
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """torch warns of its own internals, and that torchvision is missing, which nothing here needs."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)


def strip(proto: Any) -> None:
    """Remove what the exporter notes about where the graph came from: it holds local paths and source lines."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    for graph in (proto.graph, *proto.functions):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in graph.node:
            part.doc_string = ""
            del part.metadata_props[:]
        for part in graph.value_info:
            part.doc_string = ""
            del part.metadata_props[:]
    for part in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def check_parity(graph: DiagnosisGraph, onnx_model: bytes, model: TrainedModel) -> Parity:
    """Run torch and ONNX Runtime on the same images, one by one and together. Raises IntegrityError if they differ.

    The logits in torch come from the network as it was trained, with the preprocessing done in numpy.
    """
    pixels_BKHW = parity_images(model.task.image.channels, *model.task.image.seen)
    parts = _batches(pixels_BKHW)
    expected = _joined([_torch_outputs(graph, part_BKHW, model) for part_BKHW in parts])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as in diagnosis
    session = onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])
    together = _joined([session.run(list(OUTPUTS), {"pixels": part_BKHW}) for part_BKHW in parts])
    alone = _joined(
        [session.run(list(OUTPUTS), {"pixels": image_BKHW}) for image_BKHW in np.split(pixels_BKHW, len(pixels_BKHW))]
    )
    worst = {
        name: max(float(np.abs(answer[i] - expected[i]).max()) for answer in (together, alone))
        for i, name in enumerate(OUTPUTS)
    }
    allowed = max(TOLERANCE, float(f"{ROUNDING * np.abs(expected[0]).max():.2g}"))
    if not (worst["logits"] <= allowed and worst["probabilities"] <= TOLERANCE):  # also if it is not a number
        raise IntegrityError(
            f"ONNX Runtime's logits differ from torch's by {worst['logits']:.2g} (at most {allowed:g} is allowed) and "
            f"its probabilities by {worst['probabilities']:.2g} (at most {TOLERANCE:g}): no bundle was written. Train "
            "again, or update torch and onnxruntime."
        )
    return Parity(
        num_images=len(pixels_BKHW),
        **worst,
        tolerance=allowed,
        pytorch_version=str(torch.__version__),
        onnxruntime_version=onnxruntime.__version__,
    )


def _batches(pixels_BKHW: Pixels) -> list[Pixels]:
    """All images at once, or as many as are not too large, and at least two."""
    num_images = max(2, MAX_PARITY_PIXELS // math.prod(pixels_BKHW.shape[2:]))
    return [pixels_BKHW[first : first + num_images] for first in range(0, len(pixels_BKHW), num_images)]


def _joined(answers: Sequence[Sequence[Floats]]) -> list[Floats]:
    """For each output, that of all images."""
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def _torch_outputs(graph: DiagnosisGraph, pixels_BKHW: Pixels, model: TrainedModel) -> tuple[Floats, Floats]:
    per_channel = (1, -1, *(1 for _ in pixels_BKHW.shape[2:]))
    mean = np.array(model.pixel_mean, np.float32).reshape(per_channel)
    std = np.array(model.pixel_std, np.float32).reshape(per_channel)
    images_BKHW = torch.from_numpy((pixels_BKHW.astype(np.float32) / np.float32(255) - mean) / std)
    with torch.no_grad():
        logits = graph.network.eval()(images_BKHW)
        _, probabilities = graph.eval()(torch.from_numpy(pixels_BKHW))
    return logits.numpy(), probabilities.numpy()


def parity_images(channels: int, *size: int) -> Pixels:
    """Black, white, noise, and smooth blobs on a gradient as in an X-ray; the same in every run.

    `size`: (height, width), or (depth, height, width) of volumes. Returns [B, K, H, W] or [B, K, D, H, W].
    """
    random = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(0, 1, side) for side in size), indexing="ij", sparse=True)
    num_images = NUM_PARITY_IMAGES if len(size) == 2 else NUM_PARITY_VOLUMES
    images = [np.zeros(size), np.ones(size), random.random(size)]
    while len(images) < num_images:
        image = 0.2 + 0.3 * axes[-2] + 0.05 * random.standard_normal(size)
        for *centre, spread in random.random((4, len(size) + 1)):
            squares = sum((axis - middle) ** 2 for axis, middle in zip(axes[::-1], centre, strict=True))
            image = image + 0.5 * np.exp(-squares / (0.02 + 0.1 * spread))
        images.append(image)
    stack_BHW = np.clip(np.stack(images) * 255, 0, 255).astype(np.uint8)
    return np.repeat(stack_BHW[:, np.newaxis], channels, axis=1)
