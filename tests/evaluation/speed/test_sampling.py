"""The rule that ends a warm-up, and the percentiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from trt_hspan.evaluation.speed.sampling import WINDOW, sample_latency


class Clock:
    """A clock that only runs move, by the times that they are said to take."""

    def __init__(self, durations_ms: Iterable[float]) -> None:
        self.now, self.runs, self._durations = 0.0, 0, iter(durations_ms)
        self._last = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self) -> None:
        self._last = next(self._durations, self._last)
        self.now += self._last / 1e3
        self.runs += 1


def test_a_steady_run_is_stable_after_two_windows() -> None:
    clock = Clock([10.0])
    latency = sample_latency(clock.run, seconds=1.0, clock=clock)
    assert (latency.warmup_runs, latency.stable) == (10, True)
    assert latency.runs in (100, 101)  # the sum of a hundred times 0.01 s rounds to either side of 1 s
    assert latency.p50_ms == latency.p99_ms == pytest.approx(10)


def test_a_slow_start_is_left_out() -> None:
    clock = Clock([1000.0, 500.0, 250.0, 100.0, 50.0, *[20.0] * 3, 10.0])
    latency = sample_latency(clock.run, seconds=60.0, clock=clock)
    assert latency.stable
    assert latency.warmup_runs > 2 * WINDOW
    assert latency.p99_ms == pytest.approx(10)


@pytest.mark.parametrize(("step", "stable"), [(1.019, True), (1.021, False)])
def test_stable_means_two_percent(step: float, stable: bool) -> None:
    clock = Clock([10.0] * WINDOW + [10.0 * step] * WINDOW + [11.0 + step] * 100)
    latency = sample_latency(clock.run, seconds=100.0, clock=clock)
    assert (latency.warmup_runs == 2 * WINDOW) == stable


def test_what_never_settles_ends_by_time_and_says_so() -> None:
    clock = Clock(10.0 * 1.1**number for number in range(200))
    latency = sample_latency(clock.run, seconds=1.0, clock=clock)
    assert not latency.stable
    assert latency.runs >= 3


def test_a_very_slow_run_is_sampled_three_times_all_the_same() -> None:
    clock = Clock([5000.0])
    latency = sample_latency(clock.run, seconds=1.0, clock=clock)
    assert (latency.warmup_runs, latency.runs, latency.stable) == (WINDOW, 3, False)


def test_time_is_over_when_all_of_it_has_passed() -> None:
    """In times that binary numbers hold exactly."""
    clock = Clock([250.0, 500.0, 250.0, 500.0, 500.0, 250.0])
    latency = sample_latency(clock.run, seconds=2.0, clock=clock)
    assert (latency.warmup_runs, latency.stable, latency.runs) == (5, False, 8)


def test_percentiles_are_those_of_the_samples() -> None:
    runs: list[int] = []
    durations = [10.0] * (2 * WINDOW) + [float(number) for number in range(1, 101)]
    clock = Clock(durations)
    on_run: Callable[[], None] = lambda: runs.append(1)  # noqa: E731
    latency = sample_latency(clock.run, seconds=sum(range(1, 101)) / 1e3 - 1e-6, clock=clock, on_run=on_run)
    assert latency.runs == len(runs) == 100
    # Linear interpolation between order statistics: p50 of 1..100 is 50.5.
    assert latency.p50_ms == pytest.approx(50.5)
    assert latency.p90_ms == pytest.approx(90.1)
    assert latency.p95_ms == pytest.approx(95.05)
    assert latency.p99_ms == pytest.approx(99.01)
    assert latency.mean_ms == pytest.approx(50.5)
