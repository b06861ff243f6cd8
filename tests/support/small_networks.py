"""ONNX networks small enough to build in a second, built without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_hspan.graph import (
    OnnxMetadata,
    Precision,
    model_in_precision,
    model_with_attention_function,
    save_onnx,
    with_metadata,
)
from trt_hspan.names import DOMAIN, OP_TYPE, OP_VERSION

Dimension = int | str


def attention_network(
    *,
    precision: Precision = "fp32",
    shape: tuple[Dimension, Dimension, Dimension, Dimension] = ("N", 3, "H", "W"),
    features: int = 8,
    blocks: int = 1,
    opset: Literal[18, 22] = 22,
) -> onnx.ModelProto:
    """conv, then `blocks` times attention and conv, then a conv to the input's channels; scale 1."""
    random = np.random.default_rng(0)
    nodes, weights = [], []
    channels = int(shape[1])

    def convolution(source: str, into: int, out_of: int) -> str:
        name = f"conv{len(weights)}"
        values = random.normal(scale=0.1, size=(into, out_of, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"{name}.weight"))
        nodes.append(
            helper.make_node("Conv", [source, weights[-1].name], [name], name=name, pads=[1, 1, 1, 1])
        )
        return name

    last = convolution("input", features, channels)
    for block in range(blocks):
        attended = f"attention{block}"
        nodes.append(helper.make_node(OP_TYPE, [last] * 3, [attended], name=attended, domain=DOMAIN))
        last = convolution(attended, features, features)
    convolution(last, channels, features)
    nodes[-1].output[0] = "output"
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        weights,
        value_info=[
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, (shape[0], features, *shape[2:]))
            for node in nodes[:-1]
        ],
    )
    versions = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, OP_VERSION)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    typed = model_with_attention_function(model_in_precision(model, precision))
    return with_metadata(typed, OnnxMetadata(scale=1, precision=precision, source_sha256="c" * 64))


def write_attention_network(
    path: Path,
    *,
    precision: Precision = "fp32",
    shape: tuple[Dimension, Dimension, Dimension, Dimension] = ("N", 3, "H", "W"),
    blocks: int = 1,
) -> Path:
    save_onnx(attention_network(precision=precision, shape=shape, blocks=blocks), path)
    return path
