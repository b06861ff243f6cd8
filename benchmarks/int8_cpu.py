#!/usr/bin/env python3
"""How fast INT8 is on this CPU under ONNX Runtime: FP32, the emulated INT8 graph, and integer kernels where they fit.

Prints one table, or with --json the same figures. Attention costs the square of the pixels and is the same in each
row, so the convolutions are timed by themselves too: attention replaced by its value input.

With --operators, instead: one 3x3 convolution of the body by each operator that ONNX has for it. QLinearConv gives
INT8; ConvInteger gives the sums, as a convolution whose result is added to something would need them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx
from measuring import quick_int8_request
from onnx import TensorProto, helper, numpy_helper


def milliseconds(models: dict[str, onnx.ModelProto], batch: np.ndarray, repeats: int) -> dict[str, float]:
    """The fastest of several runs of each on one thread, in turns: what else runs on the machine slows all alike."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    sessions = {
        name: onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for name, model in models.items()
    }
    best = dict.fromkeys(models, float("inf"))
    for turn in range(repeats + 1):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"input": batch})
            if turn > 0:  # the first is to warm up
                best[name] = min(best[name], 1e3 * (time.perf_counter() - started))
    return best


def without_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every attention node passes its value on."""
    from trt_hspan.graph import attention_nodes

    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in attention_nodes(result):
        value = node.input[2]
        node.op_type, node.domain = "Identity", ""
        del node.input[:], node.attribute[:]
        node.input.append(value)
    del result.functions[:]
    return result


def operator_variants(features: int, side: int) -> dict[str, onnx.ModelProto]:
    """One 3x3 convolution, float32 to float32, as Conv, as Q/DQ and Conv, by ConvInteger, and by QLinearConv.

    Weights are unsigned without VNNI, as in `graph.integer_cpu`.
    """
    from trt_hspan.graph.integer_cpu import has_vnni

    random = np.random.default_rng(0)
    shape = (features, features, 3, 3)
    weight = random.integers(-127, 128, shape).astype(np.int8)
    weight_scale = random.uniform(1e-3, 2e-3, features).astype(np.float32)
    bias = random.normal(size=features).astype(np.float32)
    scale = np.float32(1 / 127)
    stored = weight if has_vnni() else (weight.astype(np.int16) + 128).astype(np.uint8)
    zero = 0 if has_vnni() else 128
    constants = {
        "float_weight": weight * weight_scale[:, None, None, None],
        "float_bias": bias,
        "weight": stored,
        "weight_scale": weight_scale,
        "weight_zeros": np.full(features, zero, stored.dtype),
        "weight_zero": np.array(zero, stored.dtype),
        "scale": scale,
        "zero": np.uint8(128),
        "output_scale": np.float32(0.01),
        "integer_bias": np.rint(bias / (scale * weight_scale)).astype(np.int32),
        "sum_scale": (scale * weight_scale).reshape(1, -1, 1, 1),
        "sum_bias": bias.reshape(1, -1, 1, 1),
    }
    pads = [1, 1, 1, 1]
    quantize = helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["integers"])
    linear = ["integers", "scale", "zero", "weight", "weight_scale", "weight_zeros", "output_scale", "zero"]
    nodes = {
        "Conv": [helper.make_node("Conv", ["input", "float_weight", "float_bias"], ["output"], pads=pads)],
        "Q/DQ, Conv": [
            quantize,
            helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["back"]),
            helper.make_node("Conv", ["back", "float_weight", "float_bias"], ["output"], pads=pads),
        ],
        "ConvInteger, scaled": [
            quantize,
            helper.make_node(
                "ConvInteger", ["integers", "weight", "zero", "weight_zero"], ["sums"], pads=pads
            ),
            helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "sum_scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "sum_bias"], ["output"]),
        ],
        "QLinearConv": [
            quantize,
            helper.make_node("QLinearConv", [*linear, "integer_bias"], ["result"], pads=pads),
            helper.make_node("DequantizeLinear", ["result", "output_scale", "zero"], ["output"]),
        ],
    }
    size = [1, features, side, side]
    return {
        name: helper.make_model(
            helper.make_graph(
                steps,
                "convolution",
                [helper.make_tensor_value_info("input", TensorProto.FLOAT, size)],
                [helper.make_tensor_value_info("output", TensorProto.FLOAT, size)],
                [
                    numpy_helper.from_array(np.asarray(values), key)
                    for key, values in constants.items()
                    if any(key in step.input for step in steps)
                ],
            ),
            opset_imports=[helper.make_opsetid("", 19)],
            ir_version=9,
        )
        for name, steps in nodes.items()
    }


def print_operators(features: int, side: int, repeats: int, *, as_json: bool) -> None:
    """Times each way to compute one convolution."""
    from trt_hspan.cli.output import print_rows

    batch = np.random.default_rng(1).uniform(-1, 1, (1, features, side, side)).astype(np.float32)
    times = milliseconds(operator_variants(features, side), batch, repeats)
    if as_json:
        print(json.dumps({"features": features, "side": side, "ms": times}, indent=2))
        return
    first = times["Conv"]
    rows = [[name, f"{ms:.2f}", f"{first / ms:.2f}"] for name, ms in times.items()]
    title = f"One 3x3 convolution, {features} to {features} channels, {side}x{side}"
    print_rows(title, ["ONNX Runtime, one thread", "ms", "speed-up"], rows)


def main() -> None:
    from trt_hspan.cli.output import print_rows
    from trt_hspan.graph import model_for_cpu, model_with_attention_function, quantization_from_model
    from trt_hspan.graph.integer_cpu import model_with_integer_kernels
    from trt_hspan.precision.quantize.pipeline import quantize
    from trt_hspan.precision.quantize.source import source_from_path

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="hspan-tiny-x4")
    parser.add_argument("--side", type=int, default=64, help="of the square input, in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention", action="store_true", help="time the whole network too")
    parser.add_argument("--operators", action="store_true", help="time one convolution by each operator")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    source = source_from_path(arguments.model, base="fp32")
    if arguments.operators:
        head = next(node for node in source.base.graph.node if node.name == "head.0/Conv")
        weight = next(tensor for tensor in source.base.graph.initializer if tensor.name == head.input[1])
        print_operators(weight.dims[0], arguments.side, arguments.repeats, as_json=arguments.json)
        return
    int8 = quantize(source, quick_int8_request(tiles=1, side=16)).model
    facts = quantization_from_model(int8)
    assert facts is not None
    batch = np.random.default_rng(0).random((1, 3, arguments.side, arguments.side), dtype=np.float32)
    integer, count = model_with_integer_kernels(int8)
    variants = {
        "FP32": model_with_attention_function(source.reference),
        "INT8, emulated in float32": model_for_cpu(int8),
        f"INT8, integer kernels in {count} of {facts.quantized_convolutions}": integer,
    }
    bare = {name: without_attention(model) for name, model in variants.items()}
    convolutions = milliseconds(bare, batch, arguments.repeats)
    figures = {name: {"convolutions_ms": ms} for name, ms in convolutions.items()}
    if arguments.attention:
        for name, ms in milliseconds(variants, batch, arguments.repeats).items():
            figures[name]["network_ms"] = ms
    if arguments.json:
        print(json.dumps({"model": arguments.model, "side": arguments.side, "variants": figures}, indent=2))
        return
    first = next(iter(figures.values()))
    columns = ["ONNX Runtime, one thread", *(f"{key[:-3].replace('_', ' ')} ms" for key in first), "speed-up"]
    rows = [
        [
            name,
            *(f"{v:.1f}" for v in row.values()),
            f"{first['convolutions_ms'] / row['convolutions_ms']:.2f}",
        ]
        for name, row in figures.items()
    ]
    title = (
        f"{Path(arguments.model).name}, {arguments.side}x{arguments.side} input; speed-up of the convolutions"
    )
    print_rows(title, columns, rows[:-1], rows[-1])


if __name__ == "__main__":
    main()
