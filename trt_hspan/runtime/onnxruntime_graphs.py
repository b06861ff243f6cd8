"""Graphs made for measuring, under ONNX Runtime on a CPU. Owns the session's options; failures are told in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import onnx

from trt_hspan.errors import HspanError
from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME, model_for_cpu, model_with_attention_function
from trt_hspan.native.cpu_attention import native_library
from trt_hspan.runtime.onnxruntime_runner import (
    error_from_onnxruntime,
    imported_onnxruntime,
    onnxruntime_failures,
)
from trt_hspan.runtime.onnxruntime_session import SplitSession, parts_from_model
from trt_hspan.runtime.runner import Float32Array


def open_session(model: onnx.ModelProto, where: str, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` for inputs of any size.

    Args:
        model: float32, or made by `graph.model_for_cpu`.
        where: what errors name.
        threads: CPU threads; None takes those that the process may use.

    Raises:
        HspanError: ONNX Runtime is not installed, or cannot load the model.
    """
    ort = imported_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised as well
    options.enable_mem_pattern = False
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except onnxruntime_failures() as error:
        raise error_from_onnxruntime(where, "ONNX Runtime cannot load it", error) from error


def run_session(session: Any, names: Sequence[str], batch: Float32Array, where: str) -> list[Any]:
    """The outputs of these names for one input. Raises: HspanError when ONNX Runtime fails."""
    try:
        values: list[Any] = session.run(list(names), {INPUT_NAME: batch})
    except onnxruntime_failures() as error:
        raise error_from_onnxruntime(where, "ONNX Runtime failed", error) from error
    return values


class Network:
    """A graph that is ready to run on this CPU; the attention in the native library where there is one.

    Args:
        model: with or without a function body, of any precision; what runs is `graph.model_for_cpu` of it.
        where: what errors name.

    Raises:
        HspanError: ONNX Runtime is not installed or cannot load the graph.
    """

    def __init__(self, model: onnx.ModelProto, *, where: str) -> None:
        self._where = where
        prepared, library = model_for_cpu(model_with_attention_function(model)), native_library()
        self._run: Callable[[Float32Array], Float32Array]
        if library is None:
            whole = session_from_bytes(prepared.SerializeToString(), where=where)
            self._run = lambda batch: whole.run([OUTPUT_NAME], {INPUT_NAME: batch})[0]
        else:
            split = SplitSession(
                parts_from_model(prepared, where),
                lambda part: session_from_bytes(part.SerializeToString(), where=where),
                library,
                threads=_threads(),
            )
            self._run = lambda batch: split.run(OUTPUT_NAME, INPUT_NAME, batch, None)

    def run(self, batch: Float32Array) -> Float32Array:
        """(N, 3, H, W) float32 to the network's output. Raises: HspanError when ONNX Runtime fails."""
        try:
            return self._run(batch)
        except Exception as error:  # its classes have no common base
            raise HspanError(self._where, f"ONNX Runtime failed: {error}", "use smaller tiles") from error


def onnxruntime() -> Any:
    """The module. Raises: HspanError when it is not installed."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise HspanError("ONNX Runtime", "is not installed", "pip install 'trt-hspan[cpu]'") from error
    return ort


def session_from_bytes(model: bytes | str, *, where: str, optimize: bool = True) -> Any:
    """A session on this CPU for a model, or for the file of that name. Raises: HspanError when it cannot be loaded."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised as well
    options.enable_mem_pattern = False  # tiles differ in size
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common base
        text = " ".join(str(error).split())[:300]
        raise HspanError(where, f"ONNX Runtime cannot load it: {text}", "export it again") from error


def _threads() -> int:
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0))
    return min(int(limit), available) if limit.isdigit() and int(limit) > 0 else available
