"""Run as a program of its own: brings the plugin library into TensorRT-RTX one way and builds engines with it.

Arguments: the library, and the way in. Prints one JSON object. A process for each way, because a library once opened
stays, and because a crash must not take the tests along.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

from onnx import TensorProto, helper

from trt_hspan.engine import rtx_wheel
from trt_hspan.names import DOMAIN, OP_TYPE

rtx_wheel.preload_with_unversioned_name()

import tensorrt_rtx as trt  # noqa: E402  (its libraries must be there first)

ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT says."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


def creators() -> list[list[str]]:
    """Name, version and namespace of the registered creators of our plugin."""
    creators = [each for each in trt.get_plugin_registry().all_creators if each.name == OP_TYPE]
    return [[each.name, each.plugin_version, each.plugin_namespace] for each in creators]


def model(element_type: int, *, key_channels: int = 8, key_type: int | None = None) -> bytes:
    """An ONNX model of one node of the operator, without function body, N, H and W dynamic."""
    shapes = {"query": 8, "key": key_channels, "value": 12, "output": 12}
    tensors = {
        name: helper.make_tensor_value_info(
            name, key_type if name == "key" and key_type else element_type, ["n", channels, "h", "w"]
        )
        for name, channels in shapes.items()
    }
    node = helper.make_node(OP_TYPE, ["query", "key", "value"], ["output"], domain=DOMAIN, name="attention")
    graph = helper.make_graph(
        [node], "one_node", [tensors[n] for n in ("query", "key", "value")], [tensors["output"]]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def build(log: Log, onnx: bytes) -> dict[str, Any]:
    """Parses and builds; what became of it."""
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    log.errors.clear()
    if not parser.parse(onnx):
        return {"parsed": False, "errors": log.errors[:]}
    layers = [str(network.get_layer(i).type).rsplit(".", 1)[-1] for i in range(network.num_layers)]
    output = network.get_output(0)
    result: dict[str, Any] = {"parsed": True, "layers": layers}
    result |= {"output_shape": list(output.shape), "output_type": output.dtype.name}
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        channels = tensor.shape[1]
        profile.set_shape(tensor.name, (1, channels, 1, 1), (1, channels, 32, 48), (3, channels, 64, 64))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    result |= {"built": plan is not None, "errors": log.errors[:]}
    result["abi_field_in_plan"] = plan is not None and b"abi_version" in bytes(plan)
    return result


def enter(library: str, way: str) -> None:
    registry = trt.get_plugin_registry()
    for step in way.split("+"):
        if step == "load":
            assert registry.load_library(library) is not None, "load_library failed"
        elif step == "open":
            ctypes.CDLL(library)
        elif step == "load_again":
            assert registry.load_library(library) is None, "a second load succeeded"
        elif step == "reload":
            registry.deregister_library(registry.load_library(library))
            assert creators() == [], "still registered"
            assert registry.load_library(library) is not None, "the second load failed"


def main() -> None:
    library, way = sys.argv[1:]
    log = Log()
    trt.Builder(log)  # TensorRT's global logger is the first one it meets
    enter(library, way)
    report: dict[str, Any] = {"creators": creators(), "builds": {}}
    for name, element_type in ELEMENT_TYPES.items():
        report["builds"][name] = build(log, model(element_type))
    report["other_channels"] = build(log, model(TensorProto.FLOAT, key_channels=9))
    report["other_type"] = build(log, model(TensorProto.FLOAT, key_type=TensorProto.FLOAT16))
    sys.stdout.write(json.dumps(report))


main()
