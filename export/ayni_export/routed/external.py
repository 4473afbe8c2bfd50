"""Where a graph finds weights that lie outside of it: at their place in a safetensors file beside it.

So any program that runs ONNX can open the graph by its path; Ayni gives the tensors by name, from verified bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
import onnx


def located(graph: bytes, file: str, data: bytes) -> bytes:
    """The graph with its external initialisers at their place in the safetensors file `file`, which holds `data`."""
    proto: Any = onnx.ModelProto.FromString(graph)
    header_bytes = int.from_bytes(data[:8], "little")
    header = msgspec.json.decode(data[8 : 8 + header_bytes])
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            start, end = header[tensor.name]["data_offsets"]
            place = {"location": file, "offset": str(8 + header_bytes + start), "length": str(end - start)}
            del tensor.external_data[:]
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
    return bytes(proto.SerializeToString(deterministic=True))
