"""The models that a CPU computes: as the file says, FP16, BF16 and Q/DQ emulated, or with the types it has itself."""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Types that a CPU emulates.
LOW_TYPES: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_QUANTIZED: Final = (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)


def model_for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself when it is float32 throughout, else one that computes on a CPU what a GPU would.

    Every FP16 or BF16 tensor becomes a float32 tensor with values of that type: each node that computed
    one computes in float32 and is followed by a rounding to the type and back. That is what a tensor core
    does, which accumulates in float32 and rounds once. A value too large for the type becomes infinite,
    as on a GPU. Inputs and outputs keep their names and types.

    ONNX Runtime cannot be left to do this. Its CPU provider has no BF16 convolutions at all, and it wraps
    FP16 nodes in casts of its own and then drops every FP32 -> FP16 -> FP32 pair between them, whatever
    the optimization level (ORT_DISABLE_ALL included): measured with 1.32, a graph of FP16 convolutions
    then differs from pure FP32 by 5e-9 where FP16 rounding would make it 1e-4. Casts that stand in the
    model between float32 nodes are kept at every level.

    A quantized convolution multiplies integers (or FP8 numbers), adds them up in a wide type and scales the sum once.
    In float32 that is the convolution of the dequantized input and weights, which are exact; so what a
    DequantizeLinear gives to convolutions alone is not rounded to FP16 or BF16. Products of two INT8 values and sums
    of up to 1,040 of them are exact in float32; longer sums differ by float32's rounding, 6e-8 of their size.
    """
    model = model_with_stored_weights(model)
    if not _uses_emulated_types(model):
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    result = copy.deepcopy(model)
    graph = result.graph
    rounded = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.elem_type in LOW_TYPES
    }
    for name in _inputs_of_quantized_convolutions(model):
        rounded.pop(name, None)
    weights = [in_float32(tensor) for tensor in model.graph.initializer]
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(weights)
    for node in model.graph.node:
        graph.node.extend(_float32_nodes(node, rounded))
    return result


def model_with_native_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which FP16 and BF16 are float32 and nothing is rounded to them; Q/DQ keep their integers.

    For a library that picks the types of its arithmetic itself. *Measured*: OpenVINO 2026.4 computes nonsense from a
    DequantizeLinear whose scale is BF16.
    """
    result = copy.deepcopy(model)
    for tensor in result.graph.initializer:
        if tensor.data_type in LOW_TYPES:
            tensor.CopyFrom(in_float32(tensor))
    for node in result.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in LOW_TYPES:
                attribute.i = TensorProto.FLOAT
    del result.graph.value_info[:]
    return result


def model_with_stored_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantized weights as the float32 values that they stand for; the model itself when there are none.

    It spares a CPU the dequantization in every run, and ONNX Runtime then packs the weights once.
    """
    quantized = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type in _QUANTIZED}
    nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in quantized]
    if not nodes:
        return model
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    result = copy.deepcopy(model)
    dequantized = {name for node in nodes for name in node.output}
    kept = [node for node in model.graph.node if not dequantized.intersection(node.output)]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    for node in nodes:
        values = numpy_helper.to_array(quantized[node.input[0]]).astype(np.float32)
        scales = numpy_helper.to_array(weights[node.input[1]]).astype(np.float32)
        if scales.ndim:
            scales = scales.reshape(-1, *[1] * (values.ndim - 1))
        result.graph.initializer.append(numpy_helper.from_array(values * scales, node.output[0]))
    used = {name for node in result.graph.node for name in node.input}
    remaining = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(remaining)
    return result


def _inputs_of_quantized_convolutions(model: onnx.ModelProto) -> set[str]:
    """Tensors that a DequantizeLinear computes for convolutions alone."""
    dequantizers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    dequantized = {name for node in dequantizers for name in node.output}
    elsewhere = {name for node in model.graph.node if node.op_type != "Conv" for name in node.input}
    return dequantized - elsewhere - {output.name for output in model.graph.output}


def in_float32(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A weight in FP16 or BF16 as float32; others as they are."""
    if tensor.data_type not in LOW_TYPES:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _cast_target(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "to"), 0)


def _uses_emulated_types(model: onnx.ModelProto) -> bool:
    casts = (_cast_target(node) in LOW_TYPES for node in model.graph.node if node.op_type == "Cast")
    return any(t.data_type in LOW_TYPES for t in model.graph.initializer) or any(casts)


def _float32_nodes(node: onnx.NodeProto, rounded: dict[str, int]) -> list[onnx.NodeProto]:
    """The node in float32, and the rounding of its FP16 or BF16 outputs."""
    computed = copy.deepcopy(node)
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
