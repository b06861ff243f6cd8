"""Running something until its time is stable, then sampling it.

The rule: the warm-up is over when the medians of two windows of five runs each, one after the other, differ by at most
2 %. A warm-up that takes too long ends too, and the result says that it was not stable.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

WINDOW: Final = 5
STABLE_WITHIN: Final = 0.02
PERCENTILES: Final = (50, 90, 95, 99)
_FEWEST_RUNS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall times of single runs, in milliseconds.

    Attributes:
        runs: how many were sampled; percentiles between samples are interpolated.
        warmup_runs: how many came before.
        stable: the warm-up ended by the rule and not by its time limit.
    """

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    runs: int
    warmup_runs: int
    stable: bool


def sample_latency(
    run: Callable[[], object],
    *,
    seconds: float,
    on_run: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Warms up, then times runs for about `seconds`, three runs at least.

    Args:
        run: does what is timed; returns when its result is complete.
        seconds: for the samples, and again at most for the warm-up, which takes `WINDOW` runs at least.
        on_run: called after each sampled run.
        clock: returns seconds.
    """
    warmup, stable = _warm_up(run, seconds, clock)
    times: list[float] = []
    begun = clock()
    while len(times) < _FEWEST_RUNS or clock() - begun < seconds:
        started = clock()
        run()
        times.append(clock() - started)
        on_run()
    p50, p90, p95, p99 = (float(value) * 1e3 for value in np.percentile(times, PERCENTILES))
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=statistics.fmean(times) * 1e3,
        runs=len(times),
        warmup_runs=warmup,
        stable=stable,
    )


def _warm_up(run: Callable[[], object], seconds: float, clock: Callable[[], float]) -> tuple[int, bool]:
    """Returns how many runs it took, and whether the rule ended it."""
    times: list[float] = []
    begun = clock()
    while True:
        started = clock()
        run()
        times.append(clock() - started)
        if len(times) >= 2 * WINDOW:
            before = statistics.median(times[-2 * WINDOW : -WINDOW])
            if abs(statistics.median(times[-WINDOW:]) - before) <= STABLE_WITHIN * before:
                return len(times), True
        if len(times) >= WINDOW and clock() - begun >= seconds:
            return len(times), False
