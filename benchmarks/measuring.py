"""What the benchmarks share: a process for each measurement, peak memory, time. Knows not what is measured."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_child(script: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs `script --child JSON` and returns the JSON object on the last line of what it prints.

    Raises:
        RuntimeError: the child failed; its message is on stderr.
    """
    command = [sys.executable, script, "--child", json.dumps(arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{script} {arguments} ended with {result.returncode}")
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


def available_memory_bytes() -> int:
    """Main memory that can be had without swapping, by the kernel's estimate."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024


def peak_memory_bytes(call: Callable[[], Any]) -> tuple[Any, int]:
    """The call's result, and how far resident memory rose during the call above what it was before."""
    status = Path("/proc/self/status")
    ctypes.CDLL(None).malloc_trim(
        0
    )  # what earlier calls left in the allocator must not hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident now
    before = _kilobytes(status, "VmRSS")
    result = call()
    return result, (_kilobytes(status, "VmHWM") - before) * 1024


def best_seconds(call: Callable[[], Any], *, runs: int = 5, budget_s: float = 6.0) -> float:
    """The shortest of up to `runs` times; a run after the first starts only while the budget lasts."""
    times: list[float] = []
    while not times or (len(times) < runs and sum(times) < budget_s):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _kilobytes(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
