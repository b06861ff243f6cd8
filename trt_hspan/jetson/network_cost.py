"""What a network costs in memory and arithmetic, read from its ONNX graph.

Everything but the attention is in proportion to the pixels of the input; the attention's scores are in proportion to
their square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize

if TYPE_CHECKING:
    import onnx


GRAPH_SOURCE: Final = "largest sum of live tensors of the graph, pointwise layers merged"
# Layers that a builder merges into the one before or after: their results are never in memory beside their inputs.
_MERGED: Final = frozenset({"Relu", "PRelu", "Cast", "Identity", "Mul", "QuantizeLinear", "DequantizeLinear"})
# By scale: bytes of the weights in fp32, fp16 and bf16; activation elements and multiply-accumulates of a pixel.
_WEIGHTS: Final = {
    2: {"fp32": 129154792, "fp16": 64588200, "bf16": 64588196},
    3: {"fp32": 135794152, "fp16": 67907880, "bf16": 67907876},
    4: {"fp32": 134466280, "fp16": 67243944, "bf16": 67243940},
}
_ELEMENTS: Final = {2: 1536, 3: 3456, 4: 6144}
_MACS: Final = {2: 32281965, 3: 33966810, 4: 37652697}


@dataclass(frozen=True, kw_only=True)
class AttentionSizes:
    """One attention block: channels of query and key, and of value and output."""

    score_channels: int
    value_channels: int


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """Costs of one network.

    Attributes:
        element_bytes: of an activation.
        weights_bytes: of all weights, in the types of the file.
        activation_bytes_per_pixel: of an input pixel: the largest sum of the tensors that are alive at one time.
        macs_per_pixel: multiply-accumulates of all convolutions for one input pixel.
        attention: one entry per block.
        source: where `activation_bytes_per_pixel` comes from.
        fixed_size: of the only input that the network takes; None when it takes any.
    """

    scale: int
    precision: str
    element_bytes: int
    weights_bytes: int
    activation_bytes_per_pixel: float
    macs_per_pixel: float
    attention: tuple[AttentionSizes, ...]
    source: str
    fixed_size: ImageSize | None = None


def network_cost(model: onnx.ModelProto, *, where: object = "model") -> NetworkCost:
    """Reads the costs from a graph that this project wrote."""
    from onnx import numpy_helper

    from trt_hspan.graph import attention_nodes, image_input, metadata_from_model, precision_from_model
    from trt_hspan.graph.quantized import convolution_macs, shapes_on_a_small_input

    scale = metadata_from_model(model).scale
    if scale is None or scale < 1:
        raise HspanError(where, "does not say its scale", "export it with trt-hspan export")
    shapes = shapes_on_a_small_input(model)
    picture = image_input(model, where)
    _, _, height, width = picture.shape
    counted = shapes[picture.name]
    pixels = counted[0] * counted[2] * counted[3]
    precision = precision_from_model(model)
    element_bytes = 4 if precision == "fp32" else 2
    return NetworkCost(
        scale=scale,
        precision=precision,
        element_bytes=element_bytes,
        weights_bytes=sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer),
        activation_bytes_per_pixel=_peak_elements(model, shapes) * element_bytes / pixels,
        macs_per_pixel=sum(convolution_macs(model).values()) / pixels,
        attention=tuple(
            AttentionSizes(score_channels=shapes[node.input[0]][1], value_channels=shapes[node.input[2]][1])
            for node in attention_nodes(model)
        ),
        source=GRAPH_SOURCE,
        fixed_size=ImageSize(height, width) if height and width else None,
    )


def published_cost(scale: int, precision: str) -> NetworkCost:
    """The published network of a scale, as `network_cost` counts it in what `trt-hspan export` writes."""
    if scale not in _WEIGHTS:
        raise UsageError("--scale", f"got {scale}, expected 2, 3 or 4")
    if precision not in _WEIGHTS[scale]:
        raise UsageError("--precision", f"got {precision!r}, expected one of {', '.join(_WEIGHTS[scale])}")
    element_bytes = 4 if precision == "fp32" else 2
    return NetworkCost(
        scale=scale,
        precision=precision,
        element_bytes=element_bytes,
        weights_bytes=_WEIGHTS[scale][precision],
        activation_bytes_per_pixel=float(_ELEMENTS[scale] * element_bytes),
        macs_per_pixel=float(_MACS[scale]),
        attention=(AttentionSizes(score_channels=96, value_channels=192),) * 10,
        source=GRAPH_SOURCE,
    )


def _peak_elements(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """The largest number of elements alive while the nodes run in the file's order.

    A tensor lives from the node that makes it to the last one that reads it. A pointwise node takes over the
    memory of its input when nothing else reads that.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    last_use: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            last_use[name] = index
    for tensor in model.graph.output:
        last_use[tensor.name] = len(model.graph.node)
    alive: dict[str, int] = {
        tensor.name: math.prod(shapes[tensor.name]) for tensor in model.graph.input if tensor.name in shapes
    }
    peak = sum(alive.values())
    for index, node in enumerate(model.graph.node):
        inputs = [name for name in node.input if name in alive and name not in weights]
        dying = [name for name in inputs if last_use.get(name, index) <= index]
        if node.op_type in _MERGED:
            for name in dying[:1]:
                del alive[name]
        for name in node.output:
            if name in shapes and name in last_use:
                alive[name] = math.prod(shapes[name])
        peak = max(peak, sum(alive.values()))
        for name in dying:
            alive.pop(name, None)
    return peak
