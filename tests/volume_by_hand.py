"""A bundle with a hand-made network for volumes: bright and dark, with answers that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import functools

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ayni.task import ImageSettings
from ayni_export.bundle import Bundle, read_bundle
from trained_volume import volume_bundle

SEEN = (4, 6, 8)
IMAGE = ImageSettings(depth=8, height=12, width=8, patch=SEEN)  # voxels as they are
STRUCTURES = ("bright", "dark/er")


@functools.cache
def model() -> bytes:
    """The logit of "bright" is (voxel - 128) / 16, and that of "dark/er" is (100 - voxel) / 16."""
    slopes, starts = np.array([1, -1], np.float32) / 16, np.array([-128, 100], np.float32) / 16
    constants = {"slopes": slopes.reshape(1, 2, 1, 1, 1), "starts": starts.reshape(1, 2, 1, 1, 1)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "slopes"], ["sloped"]),
        helper.make_node("Add", ["sloped", "starts"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["volumes", 1, *SEEN])
    answers = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["volumes", 2, *SEEN])
        for name in ("logits", "probabilities")
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "bright_and_dark", [pixels], answers, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def bright_and_dark(temperature: float = 1.0) -> Bundle:
    bundle = read_bundle(volume_bundle())
    info = msgspec.structs.replace(bundle.info, classes=STRUCTURES, image=IMAGE, temperature=temperature)
    return dataclasses.replace(bundle, info=info, files={info.models[0].path: model()})
