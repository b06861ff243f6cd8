#!/usr/bin/env python3
"""How fast INT8 is on this CPU under ONNX Runtime: FP32, the emulated INT8 graph, and integer kernels where they fit.

Prints one table, or with --json the same figures. Attention costs the square of the pixels and is the same in each
row, so the convolutions are timed by themselves too: attention replaced by its value input.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx


def seconds(model: onnx.ModelProto, batch: np.ndarray, repeats: int) -> float:
    """The fastest of several runs on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(None, {"input": batch})
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(None, {"input": batch})
        times.append(time.perf_counter() - started)
    return min(times)


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


def main() -> None:
    from trt_hspan.cli.output import print_rows
    from trt_hspan.graph import model_for_cpu, model_with_attention_function, quantization_from_model
    from trt_hspan.graph.integer_cpu import model_with_integer_kernels
    from trt_hspan.quantization.pipeline import QuantizationRequest, quantize
    from trt_hspan.quantization.source import source_from_path
    from trt_hspan.quantization.tiles import TilePlan

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="hspan-tiny-x4")
    parser.add_argument("--side", type=int, default=64, help="of the square input, in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention", action="store_true", help="time the whole network too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    source = source_from_path(arguments.model, base="fp32")
    request = QuantizationRequest(
        precision="int8",
        calibration="builtin",
        method="minmax",
        rounding="nearest",
        tiles=TilePlan(count=1, side=16),
    )
    int8 = quantize(source, request).model
    facts = quantization_from_model(int8)
    assert facts is not None
    batch = np.random.default_rng(0).random((1, 3, arguments.side, arguments.side), dtype=np.float32)
    integer, count = model_with_integer_kernels(int8)
    variants = {
        "FP32": model_with_attention_function(source.reference),
        "INT8, emulated in float32": model_for_cpu(int8),
        f"INT8, integer kernels in {count} of {facts.quantized_convolutions}": integer,
    }
    figures = {}
    for name, model in variants.items():
        figures[name] = {"convolutions_ms": 1e3 * seconds(without_attention(model), batch, arguments.repeats)}
        if arguments.attention:
            figures[name]["network_ms"] = 1e3 * seconds(model, batch, arguments.repeats)
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
