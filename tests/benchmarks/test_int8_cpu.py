"""The benchmark of INT8 on this CPU: what it compares computes the same, and each variant is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.export_cache import ExportCache

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "int8_cpu.py"


@pytest.mark.parametrize("vnni", [True, False])
def test_every_operator_computes_the_same_convolution(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from trt_hspan.graph import integer_cpu

    if vnni and not integer_cpu.has_vnni():
        pytest.skip("this processor has no VNNI: its kernels for signed weights saturate")
    monkeypatch.setattr(integer_cpu, "has_vnni", lambda: vnni)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from int8_cpu import operator_variants  # type: ignore[import-not-found]

    batch = np.random.default_rng(0).uniform(-1, 1, (1, 12, 16, 16)).astype(np.float32)
    outputs = {}
    for name, model in operator_variants(12, 16).items():
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (outputs[name],) = session.run(None, {"input": batch})
    exact = outputs["Q/DQ, Conv"]
    assert np.abs(exact).max() > 1
    # Integer sums are exact in float32 here; an input differs by half a step, 1/254, in 108 weights of at most 0.254.
    np.testing.assert_allclose(outputs["ConvInteger, scaled"], exact, atol=1e-4)
    np.testing.assert_allclose(outputs["Conv"], exact, atol=108 * 0.254 / 254)
    # One step of the result, 0.01, which ends at 1.27.
    inside = np.abs(exact) < 1.2
    np.testing.assert_allclose(outputs["QLinearConv"][inside], exact[inside], atol=0.0101)


def test_figures_of_a_network_and_of_operators(exported: ExportCache) -> None:
    def run(*options: object) -> dict[str, object]:
        words = [
            sys.executable,
            SCRIPT,
            exported("small_x2"),
            "--side",
            16,
            "--repeats",
            1,
            "--json",
            *options,
        ]
        result = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 0, result.stderr
        document: dict[str, object] = json.loads(result.stdout)
        return document

    variants = run()["variants"]
    assert isinstance(variants, dict)
    assert [name.split(",")[0] for name in variants] == ["FP32", "INT8", "INT8"]
    assert all(figures["convolutions_ms"] > 0 for figures in variants.values())
    times = run("--operators")
    assert times["features"] == 24
    assert isinstance(times["ms"], dict)
    assert len(times["ms"]) == 4
