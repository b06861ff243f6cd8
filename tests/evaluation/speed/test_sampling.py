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
    found = sample_latency(clock.run, seconds=1.0, clock=clock)
    assert (found.warmup_runs, found.stable) == (2 * WINDOW, True)
    assert found.runs in (100, 101)  # the sum of a hundred times 0.01 s rounds to either side of 1 s
    assert found.p50_ms == found.p99_ms == pytest.approx(10)


def test_a_slow_start_is_left_out() -> None:
    clock = Clock([1000.0, 500.0, 250.0, 100.0, 50.0, *[20.0] * 3, 10.0])
    found = sample_latency(clock.run, seconds=60.0, clock=clock)
    assert found.stable
    assert found.warmup_runs > 2 * WINDOW
    assert found.p99_ms == pytest.approx(10)


@pytest.mark.parametrize(("step", "stable"), [(1.019, True), (1.021, False)])
def test_stable_means_two_percent(step: float, stable: bool) -> None:
    clock = Clock([10.0] * WINDOW + [10.0 * step] * WINDOW + [11.0 + step] * 100)
    found = sample_latency(clock.run, seconds=100.0, clock=clock)
    assert (found.warmup_runs == 2 * WINDOW) == stable


def test_what_never_settles_ends_by_time_and_says_so() -> None:
    clock = Clock(10.0 * 1.1**number for number in range(200))
    found = sample_latency(clock.run, seconds=1.0, clock=clock)
    assert not found.stable
    assert found.runs >= 3


def test_a_very_slow_run_is_sampled_three_times_all_the_same() -> None:
    clock = Clock([5000.0])
    found = sample_latency(clock.run, seconds=1.0, clock=clock)
    assert (found.warmup_runs, found.runs, found.stable) == (WINDOW, 3, False)


def test_percentiles_are_those_of_the_samples() -> None:
    told: list[int] = []
    durations = [10.0] * (2 * WINDOW) + [float(number) for number in range(1, 101)]
    clock = Clock(durations)
    on_run: Callable[[], None] = lambda: told.append(1)  # noqa: E731
    found = sample_latency(clock.run, seconds=sum(range(1, 101)) / 1e3 - 1e-6, clock=clock, on_run=on_run)
    assert found.runs == len(told) == 100
    # Linear interpolation between order statistics: p50 of 1..100 is 50.5.
    assert found.p50_ms == pytest.approx(50.5)
    assert found.p90_ms == pytest.approx(90.1)
    assert found.p95_ms == pytest.approx(95.05)
    assert found.p99_ms == pytest.approx(99.01)
    assert found.mean_ms == pytest.approx(50.5)
