"""What is quantized in a graph, read from its Q/DQ nodes. `precision.quantize` writes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_hspan.errors import HspanError
from trt_hspan.graph.contract import metadata_from_model

QuantizedType = Literal["int8", "fp8"]

#: FP8 is E4M3 with one NaN and no infinities, as TensorRT and ONNX call it: largest finite value 448.
ELEMENT_TYPE: Final[dict[QuantizedType, int]] = {
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
# Multiply-accumulates are counted on an input of this side, or the next that is taken; shares do not depend on it.
_COUNTED_SIDE: Final = 16
# Elements of a tensor that may be a size.
_MOST_SIZES: Final = 64


@dataclass(frozen=True, kw_only=True)
class QuantizationFacts:
    """What a graph's Q/DQ nodes amount to.

    Attributes:
        type: of the quantized convolutions.
        convolutions: all of the graph, mean shifts included.
        quantized_convolutions: those whose input and weights both come out of a DequantizeLinear.
        mac_share: their share of all convolutions' multiply-accumulates, 0..1.
    """

    type: QuantizedType
    convolutions: int
    quantized_convolutions: int
    mac_share: float


def quantized_convolutions(model: onnx.ModelProto) -> dict[str, QuantizedType]:
    """Node name -> type, of the convolutions whose input and weights are both quantized, to the same type."""
    types = _dequantized_tensors(model)
    return {
        node.name: types[node.input[0]]
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.input[0] in types
        and types.get(node.input[1]) == types[node.input[0]]
    }


def quantized_type_from_model(model: onnx.ModelProto) -> QuantizedType | None:
    """The type of the quantized convolutions, or None. Raises: HspanError when they are of two types."""
    types = set(quantized_convolutions(model).values())
    if len(types) > 1:
        raise HspanError(model.graph.name or "model", "mixes int8 and fp8 convolutions", "quantize it again")
    return types.pop() if types else None


def quantization_from_model(model: onnx.ModelProto) -> QuantizationFacts | None:
    """What is quantized in a model; None when no convolution is.

    Raises:
        HspanError: as `quantized_type_from_model`, or the sizes of its tensors are unknown.
    """
    kind = quantized_type_from_model(model)
    if kind is None:
        return None
    quantized = quantized_convolutions(model)
    macs = convolution_macs(model)
    return QuantizationFacts(
        type=kind,
        convolutions=len(macs),
        quantized_convolutions=len(quantized),
        mac_share=sum(macs[name] for name in quantized) / sum(macs.values()),
    )


def convolution_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Node name -> multiply-accumulates of each convolution, on an input of 16x16 pixels (or of the fixed size).

    Raises:
        HspanError: the shape of a convolution's output cannot be inferred.
    """
    shapes = shapes_on_a_small_input(model)
    weights = _weight_shapes(model)
    macs = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        output, weight = shapes.get(node.output[0]), weights.get(node.input[1])
        if output is None or weight is None:
            raise HspanError(node.name, "the sizes of this convolution are unknown", "export it again")
        macs[node.name] = int(np.prod(output, dtype=np.int64) * np.prod(weight[1:], dtype=np.int64))
    return macs


def _dequantized_tensors(model: onnx.ModelProto) -> dict[str, QuantizedType]:
    """Outputs of DequantizeLinear whose source, a QuantizeLinear or a stored tensor, is INT8 or FP8."""
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero_point = node.input[2] if len(node.input) > 2 else ""
            declared = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
            kind = declared or stored.get(zero_point, TensorProto.UINT8)
            stored |= dict.fromkeys(node.output, kind)
    names = {element_type: name for name, element_type in ELEMENT_TYPE.items()}
    return {
        name: names[stored[node.input[0]]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and stored.get(node.input[0]) in names
        for name in node.output
    }


def _weight_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in shapes:
            shapes |= dict.fromkeys(node.output, shapes[node.input[0]])
    return shapes


def shapes_on_a_small_input(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors; the attention gives what its value has, so its body need not be looked into."""
    small = copy.deepcopy(model)
    del small.functions[:], small.graph.value_info[:]
    for node in small.graph.node:
        if node.domain not in ("", "ai.onnx"):
            value = node.input[2] if len(node.input) > 2 else node.input[0]
            del node.input[:], node.attribute[:]
            node.input.append(value)
            node.op_type, node.domain = "Identity", ""
    metadata = metadata_from_model(model)
    step = metadata.size_multiple or 1
    side = -(-max(_COUNTED_SIDE, metadata.min_size or 1) // step) * step
    for tensor in small.graph.input:
        dims = tensor.type.tensor_type.shape.dim
        for index, dim in enumerate(dims):
            if not dim.dim_value:
                dim.dim_value = 1 if index == 0 else side
    for tensor in small.graph.output:
        tensor.type.tensor_type.ClearField("shape")
    while True:
        shapes = _inferred_shapes(small)
        if not _fold_sizes(small, shapes):
            return shapes


def _fold_sizes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Computes sizes that nodes compute from shapes, which shape inference does not; whether there were any."""
    known: dict[str, Any] = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if np.prod(tensor.dims) <= _MOST_SIZES
    }
    kept = []
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "Shape" and names[0] in shapes:
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            sides = np.array(shapes[names[0]], np.int64)[ends.get("start", 0) : ends.get("end")]
            known |= dict.fromkeys(node.output, sides)
        elif names and len(node.output) == 1 and all(name in known for name in names):
            feeds = {name: known[name] for name in names}
            (known[node.output[0]],) = list(ReferenceEvaluator(node).run(None, feeds))
        else:
            kept.append(node)
            continue
        tensor = numpy_helper.from_array(np.asarray(known[node.output[0]]), node.output[0])
        model.graph.initializer.append(tensor)
    folded = len(kept) < len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return folded


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
        if all(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        and value.type.tensor_type.HasField("shape")
    }
