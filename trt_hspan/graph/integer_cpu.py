"""INT8 convolutions in ONNX Runtime's integer kernels (QLinearConv; VNNI where the CPU has it).

For speed on a CPU; what an engine computes is checked with `model_for_cpu`. ONNX Runtime fuses
Q/DQ to integer kernels only where a convolution's output is quantized too. TensorRT needs Q/DQ on inputs alone, so that
nothing is fused in its graphs (*measured* with 1.32: every convolution runs in float32). Here a convolution becomes a
QLinearConv when all that follows it, up to the next quantized convolution, is a ReLU or a pixel shuffle: the first one
of each residual block, and the upsampler's. Those whose result is added to something need float32 sums and keep them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_hspan.errors import HspanError
from trt_hspan.graph.cpu import model_for_cpu
from trt_hspan.graph.quantized import quantized_convolutions, quantized_type_from_model

# Activations as uint8 around 128: the kernels for unsigned times signed are the fast ones.
_ZERO: Final = 128
_CPUINFO: Final = Path("/proc/cpuinfo")
_VNNI_FLAGS: Final = {"avx512_vnni", "avx_vnni", "avx_vnni_int8"}
_ZERO_NAME: Final = "integer_zero"


@dataclass(frozen=True)
class _Chain:
    """A convolution and what follows it up to the quantization of the next one's input."""

    quantize_input: onnx.NodeProto
    convolution: onnx.NodeProto
    between: tuple[onnx.NodeProto, ...]
    quantize_output: onnx.NodeProto


def has_vnni() -> bool:
    """Whether this CPU multiplies unsigned by signed bytes without saturating in between."""
    try:
        flags = _CPUINFO.read_text().split()
    except OSError:
        return False
    return not _VNNI_FLAGS.isdisjoint(flags)


def require_integer_kernels(model: onnx.ModelProto, where: object) -> tuple[int, int]:
    """How many convolutions `model_with_integer_kernels` replaces, and how many are in INT8.

    Raises:
        HspanError: the model is not quantized to INT8, or none of its convolutions can be replaced.
    """
    kind = quantized_type_from_model(model)
    if kind != "int8":
        reason = "is not quantized" if kind is None else f"is quantized to {kind}"
        raise HspanError(
            where, f"{reason}, and integer kernels compute INT8", "see trt-hspan quantize --precision int8"
        )
    count = len(_chains(model))
    if count == 0:
        raise HspanError(
            where,
            "none of its INT8 convolutions fits an integer kernel: results that are not quantized, or zero points, "
            "scales and biases of another kind than trt-hspan quantize writes",
            "run it without --integer-kernels",
        )
    return count, len(quantized_convolutions(model))


def model_with_integer_kernels(
    model: onnx.ModelProto, *, vnni: bool | None = None
) -> tuple[onnx.ModelProto, int]:
    """A copy for ONNX Runtime's CPU provider, and how many convolutions became integer kernels.

    An integer kernel rounds its bias to a multiple of both scales, and rounds its result once where the graph rounds to
    its base type first: single values differ by one step of the next quantization.

    Args:
        model: quantized to INT8; any base type, which is emulated as by `model_for_cpu`.
        vnni: whether weights may be signed; None: where the CPU has VNNI. Without it, ONNX Runtime's kernels for
            unsigned times signed bytes add pairs of products in 16 bits with saturation (*measured*: results 19 steps
            off), so that weights are stored unsigned there, which is exact and slower.
    """
    signed = has_vnni() if vnni is None else vnni
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    chains = _chains(prepared)
    for chain in chains:
        _rewrite(prepared, chain, signed_weights=signed)
    _drop_dead_nodes(prepared)
    return model_for_cpu(prepared), len(chains)


def _chains(model: onnx.ModelProto) -> list[_Chain]:
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    quantized = {name for name, kind in quantized_convolutions(model).items() if kind == "int8"}
    outputs = {value.name for value in model.graph.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    chains = []
    for node in model.graph.node:
        if node.op_type != "Conv" or node.name not in quantized or len(node.input) < 3:
            continue
        source = makers.get(makers[node.input[0]].input[0])
        if source is None or not _is_symmetric(source, weights) or node.input[2] not in weights:
            continue
        stored = makers[node.input[1]]
        if stored.input[0] not in weights or not _is_symmetric(stored, weights, per_tensor=False):
            continue
        between: list[onnx.NodeProto] = []
        last = node
        while True:
            following = readers.get(last.output[0], [])
            if len(following) != 1 or last.output[0] in outputs:
                break
            last = following[0]
            if last.op_type == "QuantizeLinear":
                if _is_symmetric(last, weights):
                    chains.append(_Chain(source, node, tuple(between), last))
                break
            if last.op_type not in ("Relu", "DepthToSpace"):
                break
            between.append(last)
    return chains


def _is_symmetric(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], *, per_tensor: bool = True
) -> bool:
    """Whether a (De)QuantizeLinear is to INT8 with stored scales and zero points of 0, as this package writes it."""
    scale = weights.get(node.input[1])
    zero = weights.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero is None or zero.data_type != TensorProto.INT8:
        return False
    return not (per_tensor and scale.dims) and not numpy_helper.to_array(zero).any()


def _rewrite(model: onnx.ModelProto, chain: _Chain, *, signed_weights: bool) -> None:
    """Puts the integer nodes where the convolution stood; the nodes that they replace lose their readers."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    node = chain.convolution
    dequantize = next(n for n in graph.node if n.output and n.output[0] == node.input[1])
    stored, weight_scale = (weights[name] for name in dequantize.input[:2])
    input_scale = _float32(weights[chain.quantize_input.input[1]])
    output_scale = _float32(weights[chain.quantize_output.input[1]])
    scales = _float32(weight_scale)
    bias = np.rint(
        _float32(weights[node.input[2]]).astype(np.float64) / (input_scale.astype(np.float64) * scales)
    )
    weight = numpy_helper.to_array(stored)
    if not signed_weights:
        weight = (weight.astype(np.int16) + _ZERO).astype(np.uint8)
    name = node.name
    constants: dict[str, npt.NDArray[Any]] = {
        f"{name}/input_scale": input_scale,
        f"{name}/weight_scale": scales,
        f"{name}/weight_zero": np.full(scales.shape, 0 if signed_weights else _ZERO, weight.dtype),
        f"{name}/output_scale": output_scale,
        f"{name}/bias": bias.astype(np.int32),
        f"{name}/weight": weight,
    }
    if _ZERO_NAME not in weights:
        constants[_ZERO_NAME] = np.array(_ZERO, np.uint8)
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    nodes = _unsigned_input(model, chain, f"{name}/input_scale")
    current = f"{name}/integer"
    nodes.append(
        helper.make_node(
            "QLinearConv",
            [
                nodes[-1].output[0],
                f"{name}/input_scale",
                _ZERO_NAME,
                f"{name}/weight",
                f"{name}/weight_scale",
                f"{name}/weight_zero",
                f"{name}/output_scale",
                _ZERO_NAME,
                f"{name}/bias",
            ],
            [current],
            name=current,
        )
    )
    nodes[-1].attribute.extend(node.attribute)
    for step in chain.between:
        following = f"{step.name}/integer"
        if step.op_type == "Relu":
            nodes.append(helper.make_node("Clip", [current, _ZERO_NAME], [following], name=following))
        else:
            nodes.append(helper.make_node("DepthToSpace", [current], [following], name=following))
            nodes[-1].attribute.extend(step.attribute)
        current = following
    # The next convolution reads the unsigned values through a DequantizeLinear of the same scale.
    reader = next(n for n in graph.node if chain.quantize_output.output[0] in n.input)
    reader.input[0] = current
    reader.input[1] = f"{name}/output_scale"
    if len(reader.input) > 2:
        reader.input[2] = _ZERO_NAME
    position = list(graph.node).index(node)
    for offset, new in enumerate(nodes):
        graph.node.insert(position + offset, new)


def _unsigned_input(model: onnx.ModelProto, chain: _Chain, scale: str) -> list[onnx.NodeProto]:
    """A QuantizeLinear to uint8 of what the convolution reads, in float32."""
    value = chain.quantize_input.input[0]
    wide, quantized = f"{chain.convolution.name}/input_fp32", f"{chain.convolution.name}/input_u8"
    return [
        helper.make_node("Cast", [value], [wide], name=wide, to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", [wide, scale, _ZERO_NAME], [quantized], name=quantized),
    ]


def _drop_dead_nodes(model: onnx.ModelProto) -> None:
    outputs = {value.name for value in model.graph.output}
    while True:
        read = {name for node in model.graph.node for name in node.input} | outputs
        kept = [node for node in model.graph.node if read.intersection(node.output)]
        if len(kept) == len(model.graph.node):
            break
        del model.graph.node[:]
        model.graph.node.extend(kept)
    read = {name for node in model.graph.node for name in node.input}
    remaining = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(remaining)
    computed = {name for node in model.graph.node for name in node.output}
    infos = [value for value in model.graph.value_info if value.name in computed]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)


def _float32(tensor: onnx.TensorProto) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = numpy_helper.to_array(tensor).astype(np.float32)
    return values
