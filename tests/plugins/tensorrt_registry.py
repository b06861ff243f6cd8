"""Run as a program of its own: the plugin library in a real TensorRT's registry, opened and loaded.

Arguments: the folder of TensorRT's lean runtime and its Python bindings, and the plugin library. Prints JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

folder, plugin = sys.argv[1:]
sys.path.insert(0, folder)
(library,) = Path(folder, "tensorrt_lean_libs").glob("libnvinfer_lean.so.*")
ctypes.CDLL(str(library))

import tensorrt_lean_bindings as trt  # noqa: E402  (its library must be there first)

from trt_hspan.names import OP_TYPE  # noqa: E402


def creators() -> list[list[str]]:
    """Name, version and namespace of the registered creators of our plugin."""
    every = [each for each in trt.get_plugin_registry().all_creators if each.name == OP_TYPE]
    return [[each.name, each.plugin_version, each.plugin_namespace] for each in every]


def main() -> None:
    registry = trt.get_plugin_registry()
    report: dict[str, object] = {"version": trt.__version__, "before": creators()}
    ctypes.CDLL(plugin)  # registers itself
    report["opened"] = creators()
    handle = registry.load_library(plugin)  # takes that back first
    report["loaded"] = creators()
    registry.deregister_library(handle)
    report["unloaded"] = creators()
    sys.stdout.write(json.dumps(report))


main()
