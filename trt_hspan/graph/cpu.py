"""What ONNX Runtime can execute on a CPU. Owns the emulation of bfloat16 graphs; other graphs pass unchanged."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model_for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or, where ONNX Runtime's CPU kernels lack its type, one that computes the same.

    ONNX Runtime has no bfloat16 convolutions on a CPU. In the emulation every bfloat16 tensor is a float32
    tensor holding bfloat16 values: each node that made bfloat16 computes in float32 and is followed by a
    rounding to bfloat16 and back. That is what a tensor core does, which accumulates in float32 and rounds
    once. Inputs and outputs keep their names and types.
    """
    if not _uses_bfloat16(model):
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    rounded = {
        value.name
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }
    weights = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        if tensor.data_type == TensorProto.BFLOAT16
        else tensor
        for tensor in model.graph.initializer
    ]
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(weights)
    for node in model.graph.node:
        graph.node.extend(_float32_nodes(node, rounded))
    return result


def _uses_bfloat16(model: onnx.ModelProto) -> bool:
    casts = (
        attribute.i == TensorProto.BFLOAT16
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    )
    return any(t.data_type == TensorProto.BFLOAT16 for t in model.graph.initializer) or any(casts)


def _float32_nodes(node: onnx.NodeProto, rounded: set[str]) -> list[onnx.NodeProto]:
    """The node in float32, and the rounding of its bfloat16 outputs."""
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
        nodes.append(helper.make_node("Cast", [exact], [low], name=f"{name}/Round", to=TensorProto.BFLOAT16))
        nodes.append(helper.make_node("Cast", [low], [name], name=f"{name}/Widen", to=TensorProto.FLOAT))
    return nodes
