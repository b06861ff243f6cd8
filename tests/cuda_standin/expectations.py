"""What the scenarios share: input batches, and the outputs to expect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner

MakeEngine = Callable[..., Path]
Pictures = Callable[[Path, list[np.ndarray[Any, Any]]], list[np.ndarray[Any, Any]]]
# Two sessions of ONNX Runtime over one FP32 file differ by the order of sums at most: 100 roundings of values below 2.
TOLERANCE = 100 * 2 * 2.0**-24


def batch(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def expect(plan: Path, batches: list[np.ndarray[Any, Any]], outputs: list[np.ndarray[Any, Any]]) -> None:
    assert len(batches) == len(outputs)
    with OnnxRuntimeRunner(plan.with_suffix(".onnx"), threads=1) as reference:
        for source, output in zip(batches, outputs, strict=True):
            np.testing.assert_allclose(output, reference.run(source), rtol=0, atol=TOLERANCE)
