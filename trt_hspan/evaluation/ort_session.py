"""Graphs made for measuring, under ONNX Runtime on a CPU. Owns the session's options; failures are told in one line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import onnx

from trt_hspan.graph import INPUT_NAME
from trt_hspan.runtime.onnxruntime_runner import (
    error_from_onnxruntime,
    imported_onnxruntime,
    onnxruntime_failures,
)
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
