"""Writes Q/DQ pairs into a graph, for given layers and scales.

What TensorRT calls explicit quantization: an activation passes a QuantizeLinear and a DequantizeLinear with one scale,
a weight is stored in the quantized type and passes a DequantizeLinear with one scale per output channel. Biases keep
their float type. One pair serves every layer that reads the same tensor; whatever else reads it (a residual sum) gets
the tensor itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from trt_hspan.errors import HspanError
from trt_hspan.graph import QuantizedType, tensor_types
from trt_hspan.graph.quantized import ELEMENT_TYPE
from trt_hspan.precision.quantize.scales import quantized_weights


@dataclass(frozen=True, kw_only=True)
class LayerScales:
    """How one layer is quantized.

    Attributes:
        activations: tensor name -> scale, for each activation that the layer reads.
        weight: one scale per output channel; None for a layer without weights, such as a sum.
        flips: which weights are not rounded to nearest, as `quantized_weights` takes it; None: none.
    """

    activations: Mapping[str, float]
    weight: tuple[float, ...] | None
    flips: npt.NDArray[np.bool_] | None = None


def model_with_qdq(
    model: onnx.ModelProto, layers: Mapping[str, LayerScales], kind: QuantizedType
) -> onnx.ModelProto:
    """A copy in which these layers compute in `kind`.

    Args:
        model: nodes in topological order, opset 19 or later, every weight an initializer.
        layers: node name -> scales; each scale is representable in the type of the tensor that it scales.
        kind: of all of them.

    Raises:
        HspanError: a node is not there, or reads other tensors than its scales are for.
    """
    result = copy.deepcopy(model)
    nodes = list(result.graph.node)
    unknown = sorted(set(layers) - {node.name for node in nodes})
    if unknown:
        raise HspanError(unknown[0], "the model has no layer of this name", "quantize this model anew")
    writer = _Writer(result.graph, tensor_types(model), kind)
    del result.graph.node[:]
    for node in nodes:
        if node.name in layers:
            writer.quantize(node, layers[node.name])
        result.graph.node.append(node)
    writer.drop_unused_weights()
    return result


class _Writer:
    def __init__(self, graph: onnx.GraphProto, types: Mapping[str, int], kind: QuantizedType) -> None:
        self._graph = graph
        self._types = types
        self._kind = kind
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._pairs: dict[str, tuple[str, float]] = {}  # tensor -> its dequantized form, and the scale
        self._zero_points: set[str] = set()

    def quantize(self, node: onnx.NodeProto, scales: LayerScales) -> None:
        """Rewires `node` to quantized inputs; what makes them is appended to the graph before it."""
        activations = [name for name in node.input if name and name not in self._weights]
        if set(activations) != set(scales.activations):
            raise HspanError(
                node.name,
                f"reads {', '.join(activations)}, but its scales are for {', '.join(scales.activations)}",
                "quantize this model anew",
            )
        for index, name in enumerate(node.input):
            if name in scales.activations:
                node.input[index] = self._activation(name, scales.activations[name])
        if scales.weight is not None:
            node.input[1] = self._weight(node.name, node.input[1], np.array(scales.weight), scales.flips)

    def drop_unused_weights(self) -> None:
        used = {name for node in self._graph.node for name in node.input}
        used |= {output.name for output in self._graph.output}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _activation(self, name: str, scale: float) -> str:
        if name not in self._pairs:
            scale_name = self._constant(f"{name}_scale", np.array(scale), self._types[name])
            zero = self._zero_point(())
            quantized, dequantized = f"{name}_quantized", f"{name}_dequantized"
            self._node("QuantizeLinear", name, [name, scale_name, zero], quantized)
            self._node("DequantizeLinear", name, [quantized, scale_name, zero], dequantized)
            self._pairs[name] = (dequantized, scale)
        dequantized, first_scale = self._pairs[name]
        if first_scale != scale:
            raise HspanError(
                name, f"has two scales, {first_scale!r} and {scale!r}", "give one scale to a tensor"
            )
        return dequantized

    def _weight(
        self, layer: str, name: str, scales: npt.NDArray[np.float64], flips: npt.NDArray[np.bool_] | None
    ) -> str:
        base = self._weights[name]
        values = numpy_helper.to_array(base)
        if scales.shape != values.shape[:1]:
            raise HspanError(
                layer, f"has {values.shape[0]} output channels, but {scales.size} scales", "quantize it anew"
            )
        integers = quantized_weights(values, scales, self._kind, flips)
        stored = self._constant(f"{name}_quantized", integers, ELEMENT_TYPE[self._kind])
        scale_name = self._constant(f"{name}_scale", scales, base.data_type)
        inputs = [stored, scale_name, self._zero_point(scales.shape)]
        self._node("DequantizeLinear", name, inputs, f"{name}_dequantized", axis=0)
        return f"{name}_dequantized"

    def _node(self, kind: str, tensor: str, inputs: list[str], output: str, **attributes: Any) -> None:
        node = helper.make_node(kind, inputs, [output], name=f"{tensor}/{kind}", **attributes)
        self._graph.node.append(node)

    def _constant(self, name: str, values: npt.NDArray[Any], element_type: int) -> str:
        dtype = helper.tensor_dtype_to_np_dtype(element_type)
        self._graph.initializer.append(numpy_helper.from_array(values.astype(dtype), name))
        return name

    def _zero_point(self, shape: tuple[int, ...]) -> str:
        """One tensor of zeros for each number of channels: TensorRT and ONNX read the type off it."""
        name = "_".join(["zero_point", *map(str, shape)])
        if name not in self._zero_points:
            self._zero_points.add(self._constant(name, np.zeros(shape), ELEMENT_TYPE[self._kind]))
        return name
