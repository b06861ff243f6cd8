"""What ONNX Runtime must be given on a CPU to compute what the file says. Owns the emulation of FP16 and BF16."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_EMULATED: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def model_for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself when it is float32 throughout, else one that computes on a CPU what a GPU would.

    Every FP16 or BF16 tensor becomes a float32 tensor that holds values of that type: each node that made
    one computes in float32 and is followed by a rounding to the type and back. That is what a tensor core
    does, which accumulates in float32 and rounds once. A value too large for the type becomes infinite,
    as on a GPU. Inputs and outputs keep their names and types.

    ONNX Runtime cannot be left to do this. Its CPU provider has no BF16 convolutions at all, and it wraps
    FP16 nodes in casts of its own and then drops every FP32 -> FP16 -> FP32 pair between them, whatever
    the optimisation level (ORT_DISABLE_ALL included): measured with 1.32, a graph of FP16 convolutions
    then differs from pure FP32 by 5e-9 where FP16 rounding would make it 1e-4. Casts that stand in the
    model between float32 nodes are kept at every level.
    """
    if not _uses_emulated_types(model):
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    rounded = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.elem_type in _EMULATED
    }
    weights = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        if tensor.data_type in _EMULATED
        else tensor
        for tensor in model.graph.initializer
    ]
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(weights)
    for node in model.graph.node:
        graph.node.extend(_float32_nodes(node, rounded))
    return result


def _uses_emulated_types(model: onnx.ModelProto) -> bool:
    casts = (
        attribute.i in _EMULATED
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    )
    return any(t.data_type in _EMULATED for t in model.graph.initializer) or any(casts)


def _float32_nodes(node: onnx.NodeProto, rounded: dict[str, int]) -> list[onnx.NodeProto]:
    """The node in float32, and the rounding of its FP16 or BF16 outputs."""
    computed = onnx.NodeProto()
    computed.CopyFrom(node)
    nodes = [computed]
    for index, name in enumerate(node.output):
        if name not in rounded:
            continue
        if node.op_type == "Cast":
            nodes[0] = helper.make_node("Identity", list(node.input), list(node.output), name=node.name)
        exact, low = f"{name}_exact", f"{name}_rounded"
        nodes[0].output[index] = exact
        nodes.append(helper.make_node("Cast", [exact], [low], name=f"{name}/Round", to=rounded[name]))
        nodes.append(helper.make_node("Cast", [low], [name], name=f"{name}/Widen", to=TensorProto.FLOAT))
    return nodes
