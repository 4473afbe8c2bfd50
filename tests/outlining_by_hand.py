"""A bundle with a hand-made network: bright and dark, with probabilities that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import functools

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ayni.task import ImageSettings
from ayni_export.bundle import Bundle, read_bundle
from trained_unet import outlining_bundle

SIDE = 32  # the model's image is 32 x 32
STRUCTURES = ("bright", "dark/er")


@functools.cache
def model() -> bytes:
    """The logit of "bright" is (pixel - 128) / 16, and that of "dark/er" its negative."""
    constants = {"middle": np.float32(128), "slopes": np.array([1 / 16, -1 / 16], np.float32).reshape(1, 2, 1, 1)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "middle"], ["centred"]),
        helper.make_node("Mul", ["centred", "slopes"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["images", 1, SIDE, SIDE])
    answers = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["images", 2, SIDE, SIDE])
        for name in ("logits", "probabilities")
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "bright_and_dark", [pixels], answers, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def bright_and_dark() -> Bundle:
    bundle = read_bundle(outlining_bundle())
    image = ImageSettings(height=SIDE, width=SIDE, resize=True)
    info = msgspec.structs.replace(bundle.info, classes=STRUCTURES, image=image)
    return dataclasses.replace(bundle, info=info, files={info.models[0].path: model()})
