"""The ablation of INT8: its rows on a small network, and that equalization changes no result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from support.export_cache import ExportCache
from support.synthetic_pictures import picture

from trt_hspan.media.writing import write_picture

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablation.py"


def test_rounding_pays_more_than_anything_else_and_each_row_is_measured(
    exported: ExportCache, tmp_path: Path
) -> None:
    for index in range(2):
        write_picture(tmp_path / f"{index}.png", picture(40, 40, seed=index))
    words = [sys.executable, SCRIPT, "--checkpoint", exported("small_x2"), "--images", tmp_path]
    options = ["--calibration", tmp_path, "--tiles", 2, "--side", 20, "--json"]
    result = subprocess.run(
        [str(word) for word in (*words, *options)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    psnr = {
        (r["weights"], r["bias_correction"], r["activations"], r["equalized"]): r["psnr_db"] for r in rows
    }
    assert len(psnr) == 13
    assert psnr["adaptive", False, None, 0] > psnr["nearest", False, None, 0] + 3
    # Activations alone cost less than with weights; no row is another's.
    assert psnr[None, False, "mse", 0] > psnr["nearest", False, "mse", 0]
    assert len(set(psnr.values())) == len(psnr)


def test_equalization_leaves_the_function_as_it_is(exported: ExportCache) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from ablation import _pairs, equalized  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(SCRIPT.parent))
    from onnx import numpy_helper

    from trt_hspan.precision.quantize.source import source_from_path
    from trt_hspan.runtime.onnxruntime_session import cpu_network

    source = source_from_path(exported("small_x4"), base="fp32")
    other = equalized(source.base, 1.0)
    batch = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
    expected, actual = (cpu_network(model, "net").run(batch) for model in (source.base, other))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in other.graph.initializer}
    pairs = list(_pairs(other))
    assert {second.name for _, second in pairs} >= {"body.0.body.0.body.2/Conv", "tail.0.2/Conv"}
    for first, second in pairs:
        if first.name.startswith("body."):  # in the tail the second of one pair is the first of the next
            before, after = (np.abs(tensors[node.input[1]]) for node in (first, second))
            np.testing.assert_allclose(before.max(axis=(1, 2, 3)), after.max(axis=(0, 2, 3)), rtol=1e-4)
