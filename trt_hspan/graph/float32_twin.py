"""A network's graph in float32 throughout, whatever types it computes in, for measuring what those types cost."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from trt_hspan.graph.attention_function import model_with_plugin_nodes
from trt_hspan.graph.contract import tensor_types
from trt_hspan.graph.cpu import LOW_TYPES, in_float32


@dataclass(frozen=True, kw_only=True)
class Float32Twin:
    """The same network, computed in float32.

    Attributes:
        model: without function body, casts and activation quantizers; weights keep the values they had.
        low_nodes: names of the nodes that compute in FP16 or BF16 in the original.
    """

    model: onnx.ModelProto
    low_nodes: frozenset[str]


def float32_twin(model: onnx.ModelProto) -> Float32Twin:
    """Rewrites casts between float types, and quantizers of activations, into names for their inputs.

    Quantized weights stay: their dequantizer then makes float32 of them.

    Args:
        model: any ONNX file of this project.
    """
    types = _float_types(model)
    result = model_with_plugin_nodes(model)
    graph = result.graph
    weights = {tensor.name for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        source = renamed.get(node.input[0], node.input[0]) if node.input else ""
        is_activation = bool(source) and source not in weights
        if is_activation and (
            node.op_type in ("QuantizeLinear", "DequantizeLinear")
            or (node.op_type == "Cast" and node.output[0] in types and node.input[0] in types)
        ):
            renamed |= dict.fromkeys(node.output, source)
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, name in enumerate(copy.input):
            copy.input[index] = renamed.get(name, name)
        if copy.op_type == "Cast" and copy.output[0] in types:
            copy.attribute[0].i = TensorProto.FLOAT
        kept.append(copy)
    floats = [in_float32(tensor) for tensor in graph.initializer]
    for value in graph.output:
        if value.name in renamed:
            kept.append(helper.make_node("Identity", [renamed[value.name]], [value.name], name=value.name))
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(floats)
    low = {node.name for node in kept if any(types.get(name) in LOW_TYPES for name in node.output)}
    return Float32Twin(model=result, low_nodes=frozenset(low))


def float_outputs(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, str]]:
    """Each node of a float32 twin with the float tensor that it computes, in the graph's order."""
    types = _float_types(model)
    return [
        (node, node.output[0])
        for node in model.graph.node
        if node.output and node.output[0] in types and node.op_type != "DequantizeLinear"
    ]


def _float_types(model: onnx.ModelProto) -> dict[str, int]:
    """Name -> element type of every float tensor of the graph; float32 where it cannot be inferred."""
    types = tensor_types(model)
    names = {name for node in model.graph.node for name in node.output} | {v.name for v in model.graph.input}
    types = {name: types.get(name, TensorProto.FLOAT) for name in names}
    floats = (TensorProto.FLOAT, *LOW_TYPES)
    return {name: kind for name, kind in types.items() if kind in floats}
