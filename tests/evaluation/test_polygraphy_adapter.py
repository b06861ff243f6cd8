"""Polygraphy's comparison of networks: what it says, and what is said where it is not installed."""

from __future__ import annotations

import contextlib
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.evaluation import polygraphy_adapter
from trt_hspan.evaluation.polygraphy_adapter import run_and_compare


@pytest.mark.parametrize("debugging", [False, True])
def test_polygraphy_is_heard_where_debug_messages_are_on(
    caplog: pytest.LogCaptureFixture, debugging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[float, float]] = []

    def matches(expected: np.ndarray, output: np.ndarray) -> bool:
        compared.append((float(expected.max()), float(output.max())))
        return True

    times = iter([1.0, 1.5, 10.0, 12.0, 20.0, 20.25])
    monkeypatch.setattr(polygraphy_adapter, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    runners = [NearestRunner(offset=offset) for offset in (0.0, 1.0, 2.0)]
    with (
        contextlib.ExitStack() as stack,
        caplog.at_level(logging.DEBUG if debugging else logging.WARNING, logger="Polygraphy"),
    ):
        for runner in runners:
            stack.enter_context(runner)
        batch = np.zeros((2, 3, 4, 5), np.float32)
        runs = run_and_compare(runners, batch, matches, infer=lambda runner, batch: runner.run(batch))
    assert compared == [(0.0, 1.0), (0.0, 2.0)]
    assert [run.output.shape for run in runs] == [(2, 3, 16, 20)] * 3
    assert [run.seconds for run in runs] == [0.5, 2.0, 0.25]
    assert bool(caplog.records) == debugging


def test_without_polygraphy_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(HspanError, match=r"polygraphy: is not installed; pip install .*\[export\]"):
        run_and_compare([], np.zeros((1, 3, 4, 4), np.float32), lambda a, b: True, infer=lambda r, b: b)
