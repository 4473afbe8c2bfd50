"""Shapes and numbers that a graph would work out anew at every start, worked out once.

The exporter writes each shape of a traced gradient as several nodes: two of three nodes are such. Its own optimiser
takes minutes over them, and ONNX Runtime a tenth of a second at each start.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

Array = np.ndarray[Any, np.dtype[Any]]
MOST_ELEMENTS = 1 << 12  # larger ones (zeros of an image's size) stay nodes: they would be bytes in the file
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")


def fold_constants(proto: Any) -> None:
    """In place: nodes that depend on no input and no outside weight become initialisers, equal ones one of them."""
    known: dict[str, Array] = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    kept = []
    for node in proto.graph.node:
        values = _values(node, known, proto)
        if values is None:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
        else:
            known.update(zip(node.output, values, strict=True))
    names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    used: dict[str, Array] = {}
    for node in kept:
        for i, name in enumerate(node.input):
            if name in known:
                value = known[name]
                node.input[i] = names.setdefault((value.dtype.str, value.shape, value.tobytes()), name)
                used[node.input[i]] = value
    outputs = {value.name for value in proto.graph.output}
    used |= {name: value for name, value in known.items() if name in outputs}
    outside = [tensor for tensor in proto.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    inside = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in used.items()]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*outside, *inside])
    del proto.graph.value_info[:]  # the runtime infers them again


def _values(node: Any, known: dict[str, Array], proto: Any) -> list[Array] | None:
    """What the node always gives; None if that depends on an input, or is large."""
    if node.op_type in RANDOM or any(name and name not in known for name in node.input):
        return None
    if any(attribute.HasField("g") for attribute in node.attribute):
        return None
    alone = onnx.helper.make_graph(
        [node],
        "alone",
        [
            onnx.helper.make_tensor_value_info(name, _kind(known[name]), known[name].shape)
            for name in node.input
            if name
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = onnx.helper.make_model(alone, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    inputs = {name: known[name] for name in node.input if name}
    values = [np.asarray(value) for value in ReferenceEvaluator(model).run(None, inputs)]
    return values if sum(value.size for value in values) <= MOST_ELEMENTS else None


def _kind(value: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
