"""Run as a program of its own: builds TensorRT-RTX engines in which the plugin has one format or another.

Argument: the library. Prints one JSON object: for each case whether it was built, what TensorRT said, and how its
layers look. A process of its own, because a library once opened stays.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from trt_hspan.engine import rtx_wheel
from trt_hspan.names import DOMAIN, OP_TYPE

rtx_wheel.preload_with_unversioned_name()

import tensorrt_rtx as trt  # noqa: E402  (its libraries must be there first)

ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT says."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        self.lines += message.splitlines()
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


def attention(io_format: str | None, configuration: str | None = None) -> Any:
    given = {"io_format": io_format, "configuration": configuration}
    attributes = {name: text for name, text in given.items() if text is not None}
    return helper.make_node(OP_TYPE, ["q", "k", "v"], ["a"], domain=DOMAIN, name="attention", **attributes)


def one_node(precision: str, io_format: str | None, channels: int, configuration: str | None = None) -> Any:
    return model(
        precision,
        [attention(io_format, configuration)],
        {"q": channels, "k": channels, "v": 2 * channels},
        ("a", 2 * channels),
    )


def between_convolutions(precision: str, io_format: str | None, channels: int) -> Any:
    """As in the network: 1x1 convolutions make query, key and value; a 3x3 convolution takes the sum."""
    nodes = [
        helper.make_node("Conv", ["x", "w_head"], ["f"], pads=[1] * 4),
        helper.make_node("Conv", ["f", "w_query"], ["q"]),
        helper.make_node("Conv", ["f", "w_key"], ["k"]),
        helper.make_node("Conv", ["f", "w_value"], ["v"]),
        attention(io_format),
        helper.make_node("Add", ["a", "f"], ["sum"]),
        helper.make_node("Conv", ["sum", "w_tail"], ["y"], pads=[1] * 4),
    ]
    wide = 2 * channels
    shapes = {"w_head": (wide, 3, 3, 3), "w_query": (channels, wide, 1, 1), "w_key": (channels, wide, 1, 1)}
    shapes |= {"w_value": (wide, wide, 1, 1), "w_tail": (3, wide, 3, 3)}
    return model(precision, nodes, {"x": 3}, ("y", 3), shapes)


def model(
    precision: str, nodes: list[Any], inputs: dict[str, int], output: tuple[str, int], weights: Any = None
) -> bytes:
    def tensor(name: str, channels: int) -> Any:
        return helper.make_tensor_value_info(name, ELEMENT_TYPES[precision], ["n", channels, "h", "w"])

    random = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array((0.1 * random.standard_normal(shape)).astype(DTYPES[precision]), name)
        for name, shape in (weights or {}).items()
    ]
    graph = helper.make_graph(
        nodes, "g", [tensor(*each) for each in inputs.items()], [tensor(*output)], constants
    )
    opsets = [helper.make_opsetid("", 22 if precision == "bf16" else 18), helper.make_opsetid(DOMAIN, 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def build(log: Log, onnx: bytes, forced: Any = None) -> dict[str, Any]:
    """Parses and builds, with the format of all inputs and outputs forced or free; how the engine looks."""
    log.lines.clear()
    log.errors.clear()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        return {"parsed": False, "errors": log.errors[:]}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    for each in tensors:
        channels = each.shape[1]
        profile.set_shape(each.name, (1, channels, 8, 8), (1, channels, 32, 48), (1, channels, 64, 64))
    if forced is not None:
        for each in (*tensors, network.get_output(0)):
            each.allowed_formats = 1 << int(forced)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    layers = [line for line in log.lines if line.startswith("Name: ")]
    layer = next((line for line in layers if line.startswith("Name: attention")), "")
    inputs = layer.partition("Inputs: [")[2].partition("Constants:")[0]
    return {
        "parsed": True,
        "built": plan is not None,
        "errors": log.errors[:],
        "attention_formats": re.findall(r"Format: (.*?) }", inputs),
        "transpositions": sum("_Tran_" in line.split(",")[0] for line in layers),
        "io_formats": re.findall(
            r"Format: (.*?) }\]", "\n".join(line for line in log.lines if "IOMode" in line)
        ),
        "stores_tactic": plan is not None and b"tactic" in bytes(plan),
    }


def main() -> None:
    log = Log()
    trt.Builder(log)  # TensorRT's global logger is the first one it meets
    assert trt.get_plugin_registry().load_library(sys.argv[1]) is not None
    report: dict[str, Any] = {}
    for precision in ELEMENT_TYPES:
        report[f"linear {precision}"] = build(log, between_convolutions(precision, "linear", 16))
        report[f"hwc {precision}"] = build(log, between_convolutions(precision, "hwc", 16))
    for precision in ("fp16", "bf16"):
        report[f"hwc8 {precision}"] = build(log, between_convolutions(precision, "hwc8", 16))
        report[f"hwc8 forced {precision}"] = build(
            log, one_node(precision, "hwc8", 16), trt.TensorFormat.HWC8
        )
        report[f"padded {precision}"] = build(log, one_node(precision, "hwc8", 13), trt.TensorFormat.HWC8)
        report[f"any forced {precision}"] = build(log, one_node(precision, None, 16), trt.TensorFormat.HWC8)
    report["hwc forced fp32"] = build(log, one_node("fp32", "hwc", 13), trt.TensorFormat.HWC)
    for name in ("plain-32x128", "tiled-two-looks"):
        report[name] = build(log, one_node("fp16", None, 16, name))
    report["nonsense"] = build(log, one_node("fp16", "nhwc", 16))
    sys.stdout.write(json.dumps(report))


main()
