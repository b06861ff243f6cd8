"""Shared by the benchmarks: options, a process for each measurement, peak memory, time."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trt_hspan.machine.facts import PeakMemory
from trt_hspan.machine.install_advice import install_command
from trt_hspan.machine.memory import available_memory_bytes

if TYPE_CHECKING:
    from trt_hspan.precision.quantize.pipeline import QuantizationRequest


def options_or_measurement(
    description: str, script: str, sizes: tuple[str, list[int]], measure: Callable[..., dict[str, Any]]
) -> argparse.Namespace:
    """The options of a benchmark against entmax. In a child of `in_child`: measures, prints, and exits.

    Args:
        description: of the benchmark.
        script: its path in the checkout, for errors.
        sizes: name and default of the option that takes sizes.
        measure: called in a child with the arguments given to `in_child`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(sizes[0], type=int, nargs="+", default=sizes[1])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        sys.exit()
    if importlib.util.find_spec("entmax") is None:
        sys.exit(f"{script}: entmax is not installed; {install_command('benchmark')}")
    return options


def quick_int8_request(*, tiles: int, side: int) -> QuantizationRequest:
    """INT8 by the quickest calibration; `tiles` crops of `side` pixels of the built-in pictures."""
    from trt_hspan.precision.crops import TilePlan
    from trt_hspan.precision.quantize.pipeline import QuantizationRequest

    return QuantizationRequest(
        precision="int8",
        calibration="builtin",
        method="minmax",
        rounding="nearest",
        tiles=TilePlan(count=tiles, side=side),
    )


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


def fits_in_memory(needed_bytes: float) -> bool:
    """Whether that much memory is available without swapping; yes where Linux does not say."""
    available = available_memory_bytes()
    return available is None or needed_bytes <= available


def peak_memory_bytes(call: Callable[[], Any]) -> tuple[Any, int]:
    """The call's result, and how far resident memory rose during the call above what it was before."""
    with PeakMemory() as peak:
        result = call()
    if peak.bytes is None:
        raise RuntimeError("Linux does not report this process's peak memory")
    return result, peak.bytes


def best_seconds(call: Callable[[], Any], *, runs: int = 5, budget_s: float = 6.0) -> tuple[float, float]:
    """The shortest of up to `runs` times, on the wall and of the processor; one after the first starts only while the
    budget lasts."""
    times: list[float] = []
    cpu_times: list[float] = []
    while not times or (len(times) < runs and sum(times) < budget_s):
        start, cpu_start = time.perf_counter(), time.process_time()
        call()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    return min(times), min(cpu_times)
