"""The GPU runner with real PyCUDA on a stand-in driver: the scenarios of `tests/cuda_standin`, in both its modes.

They mirror `trt_hspan.runtime.tensorrt_runner`, `trt_hspan.runtime.engine_loading`, `trt_hspan.runtime.engine_session`,
`trt_hspan.runtime.cuda_device` and `trt_hspan.runtime.cuda_graph`, which need a driver.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cuda_standin.build import standin_environment

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "tests" / "cuda_standin").glob("scenarios_of_*.py"))


@pytest.mark.parametrize("deferred", ["0", "1"], ids=["at once", "only when waited for"])
def test_scenarios_pass_and_leave_nothing_behind(deferred: str) -> None:
    assert len(SCENARIOS) == 3
    environment = standin_environment(CUSTANDIN_DEFER=deferred, CUSTANDIN_LEAKS="1")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *map(str, SCENARIOS),
    ]
    completed = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert completed.returncode == 0, completed.stdout[-6000:] + completed.stderr[-2000:]
    assert " skipped" not in completed.stdout
    assert "asynchronous failure" not in completed.stderr
    assert "0 blocks left" in completed.stderr, completed.stderr[-2000:]
    assert "left:" not in completed.stderr, completed.stderr[-2000:]
