"""Precision written into the graph (strongly typed): which node computes in which type, and the casts between."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import Final, Literal, get_args

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph.attention_function import opset_of
from trt_hspan.graph.contract import attention_nodes, tensor_types
from trt_hspan.graph.quantized import quantized_type_from_model

#: Floating-point types that a whole graph may compute in.
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
#: The precision of a network: a float type, or the type of its quantized convolutions.
NetworkPrecision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
NETWORK_PRECISIONS: Final[tuple[NetworkPrecision, ...]] = get_args(NetworkPrecision)

_ELEMENT_TYPE: Final[dict[Precision, int]] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
# Convolutions and PRelu take bfloat16 since this version of the ONNX operators.
BF16_OPSET: Final = 22


def checked_precision(text: str) -> Precision:
    """The float type of this name. Raises: UsageError when there is none."""
    for precision in PRECISIONS:
        if text == precision:
            return precision
    if text in NETWORK_PRECISIONS:
        raise UsageError(
            "--precision", f"{text} needs pictures to measure ranges on", "use trt-hspan quantize"
        )
    raise UsageError("--precision", f"{text!r} is unknown", f"choose {', '.join(PRECISIONS)}")


def precision_from_model(model: onnx.ModelProto) -> NetworkPrecision:
    """The precision of a network, read from the graph itself and not from its metadata.

    "int8" or "fp8" when at least one convolution's input is quantized to it, else as `base_precision_from_model`.

    Raises:
        HspanError: there is no attention node, or its type is unknown.
    """
    base = base_precision_from_model(model)
    return quantized_type_from_model(model) or base


def base_precision_from_model(model: onnx.ModelProto) -> Precision:
    """The float type of the network's arithmetic, whatever is quantized.

    It is the low type that any convolution or attention node computes in: nodes that were kept in float32 for their
    range do not make a network another one. Float32 when every one of them does.

    Raises:
        HspanError: there is no attention node, or they have no single type.
    """
    where = model.graph.name or "model"
    if not attention_nodes(model):
        raise HspanError(where, "contains no attention node, so its precision is unknown")
    types = tensor_types(model)
    nodes = [*attention_nodes(model), *(node for node in model.graph.node if node.op_type == "Conv")]
    computed = {types.get(node.output[0], TensorProto.UNDEFINED) for node in nodes}
    low = computed - {TensorProto.FLOAT}
    names = [name for name, element_type in _ELEMENT_TYPE.items() if (low or computed) == {element_type}]
    if not names:
        raise HspanError(where, "its convolutions and attention have no common float type", "export it again")
    return names[0]


def float32_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes of a typed network that compute in float32: what `model_in_precision` was told to keep."""
    types = tensor_types(model)
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type != "Cast" and types.get(node.output[0]) == TensorProto.FLOAT
    )


def model_in_precision(
    model: onnx.ModelProto, precision: Precision, *, keep_fp32: Sequence[str] = ()
) -> onnx.ModelProto:
    """A copy of a float32 model whose nodes compute in `precision`; inputs and outputs stay float32.

    Args:
        model: a float32 model, function body removed.
        precision: the type of the arithmetic.
        keep_fp32: names of nodes, or patterns as in `fnmatch`, that stay in float32.

    Raises:
        HspanError: a weight is too large for the type; none is ever turned into infinity.
        UsageError: the model's opset has no operators for the type.
    """
    result = copy.deepcopy(model)
    if precision == "fp32":
        return result
    opset = opset_of(model)
    if precision == "bf16" and opset < BF16_OPSET:
        raise UsageError("--opset", f"{opset} has no bfloat16 convolutions", f"use {BF16_OPSET} or later")
    _Rewriter(result.graph, tensor_types(model), precision, tuple(keep_fp32), opset).rewrite()
    return result


class _Rewriter:
    """One pass over a topologically sorted graph. Floats are either float32 or the low type, never a third."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        types: dict[str, int],
        precision: Precision,
        keep_fp32: tuple[str, ...],
        opset: int,
    ) -> None:
        self._graph = graph
        self._opset = opset
        self._precision = precision
        self._low_type = _ELEMENT_TYPE[precision]
        self._keep_fp32 = keep_fp32
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._is_low: dict[str, bool] = {}  # of every float tensor so far, weights excluded
        self._converted: dict[str, str] = {}  # its name in the other type
        self._nodes: list[onnx.NodeProto] = []
        self._new_weights: dict[str, onnx.TensorProto] = {}
        self._value_types = types

    def rewrite(self) -> None:
        for value in self._graph.input:
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                self._is_low[value.name] = False
        for node in self._graph.node:
            self._rewrite_node(node)
        for output in self._graph.output:
            self._restore_output(output.name)
        for value in self._graph.value_info:
            if self._is_low.get(value.name, False):
                value.type.tensor_type.elem_type = self._low_type
        integers = [tensor for tensor in self._graph.initializer if tensor.data_type != TensorProto.FLOAT]
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.initializer[:]
        self._graph.initializer.extend([*integers, *self._new_weights.values()])

    def _rewrite_node(self, node: onnx.NodeProto) -> None:
        low = not self._is_kept(node)
        if node.op_type == "Constant" or any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
            raise HspanError(node.name, f"{node.op_type} nodes must be folded before precision is chosen")
        kept = copy.deepcopy(node)
        inputs, outputs = self._takes_low(node)
        for attribute in kept.attribute:  # a type that an attribute names is not seen in the schema
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT and low:
                attribute.i = self._low_type
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                outputs = [False] * len(node.output)
        for index, name in enumerate(node.input):
            kept.input[index] = self._in_type(name, low and inputs[index])
        for index, name in enumerate(node.output):
            if self._value_types.get(name, TensorProto.FLOAT) == TensorProto.FLOAT:
                self._is_low[name] = low and outputs[index]
        self._nodes.append(kept)

    def _is_kept(self, node: onnx.NodeProto) -> bool:
        return any(fnmatch.fnmatchcase(node.name, pattern) for pattern in self._keep_fp32)

    def _takes_low(self, node: onnx.NodeProto) -> tuple[list[bool], list[bool]]:
        """Which inputs and outputs of an operator may be of the low type: the scales of a Resize may not, say."""
        if not onnx.defs.has(node.op_type, node.domain):  # the attention: its three inputs and its output
            return [True] * len(node.input), [True] * len(node.output)
        schema = onnx.defs.get_schema(node.op_type, self._opset, node.domain)
        low = f"tensor({'float16' if self._precision == 'fp16' else 'bfloat16'})"
        types = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}

        def allowed(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[bool]:
            kinds = (parameters[min(index, len(parameters) - 1)].type_str for index in range(count))
            return [low in types.get(kind, [kind]) for kind in kinds]

        return allowed(schema.inputs, len(node.input)), allowed(schema.outputs, len(node.output))

    def _in_type(self, name: str, low: bool) -> str:
        """The name of this tensor in the type that a node reads; adds a cast or a converted weight for it."""
        if name in self._weights:
            return self._weight_in_type(name, low)
        if name not in self._is_low or self._is_low[name] == low:
            return name
        if name not in self._converted:
            self._converted[name] = other = f"{name}_{self._precision if low else 'fp32'}"
            element_type = self._low_type if low else TensorProto.FLOAT
            self._nodes.append(
                helper.make_node("Cast", [name], [other], name=f"{other}/Cast", to=element_type)
            )
        return self._converted[name]

    def _weight_in_type(self, name: str, low: bool) -> str:
        weight = self._weights[name]
        if weight.data_type != TensorProto.FLOAT:
            return name
        # A weight that is read in both types keeps its own name in float32.
        new_name = f"{name}_{self._precision}" if low and self._is_read_in_both(name) else name
        if new_name not in self._new_weights:
            self._new_weights[new_name] = self._low_weight(weight, new_name) if low else weight
        return new_name

    def _is_read_in_both(self, name: str) -> bool:
        users = [node for node in self._graph.node if name in node.input]
        kept = [
            self._is_kept(node) or not self._takes_low(node)[0][list(node.input).index(name)]
            for node in users
        ]
        return any(kept) and not all(kept)

    def _low_weight(self, weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
        values = numpy_helper.to_array(weight)
        low_type = helper.tensor_dtype_to_np_dtype(self._low_type)
        with np.errstate(over="ignore"):
            low = values.astype(low_type)
        # The largest number there is stays that: attention that is masked adds its negative to scores.
        extreme = np.abs(values) == np.finfo(np.float32).max
        largest_low = float(ml_dtypes.finfo(low_type).max)  # type: ignore[no-untyped-call]
        low[extreme] = np.copysign(largest_low, values[extreme])
        lost = np.isinf(low.astype(np.float32)) & np.isfinite(values)
        if lost.any():
            largest = float(np.abs(values[lost]).max())
            raise HspanError(
                weight.name,
                f"its value {largest:g} does not fit {self._precision}",
                "use bf16 or fp32 instead, or keep its node in float32 with --keep-fp32",
            )
        return numpy_helper.from_array(low, name)

    def _restore_output(self, name: str) -> None:
        if not self._is_low.get(name, False):
            return
        low_name = f"{name}_{self._precision}"
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, entry in enumerate(names):
                    if entry == name:
                        names[index] = low_name
        self._nodes.append(
            helper.make_node("Cast", [low_name], [name], name=f"{name}/Cast", to=TensorProto.FLOAT)
        )
        self._is_low[name] = False
