"""The benchmark of the overhead: every way gives the bare result, and the verdict is the one of its docstring."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.serve_process import ServeProcess
from support.served_pictures import pixels_of

from trt_hspan.runtime.runner import Runner

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "serving", raising=False)
    return importlib.import_module("serving")


def test_every_way_gives_what_the_bare_runner_gives(
    benchmark: ModuleType, server: ServeProcess, runner: Runner
) -> None:
    ready = server.ready
    servers = [benchmark.Server("trt-hspan", ready["http"], f"grpc://{ready['grpc']}", server.process.pid)]
    with contextlib.ExitStack() as stack:
        tensors = benchmark.ways_of_tensors(stack, servers, runner, 16)
        assert len(tensors) == 3
        for name, way in tensors.items():
            np.testing.assert_array_equal(way(), tensors["bare"](), name)
        pictures = benchmark.ways_of_pictures(stack, servers, runner, 16)
        assert set(pictures) == {*tensors, "trt-hspan, POST /upscale"}
        for name, way in pictures.items():
            np.testing.assert_array_equal(pixels_of(way()), pixels_of(pictures["bare"]()), name)


def test_limit_is_three_percent_and_two_milliseconds(benchmark: ModuleType) -> None:
    for there, within in ((104.9, True), (105.1, False), (90.0, True)):
        # One pair during which the machine did something else changes nothing.
        (row,) = benchmark.rows_from_pairs(
            "tensor", 64, {"trt-hspan, HTTP": [(100.0, there)] * 5 + [(100.0, 900.0)]}
        )
        assert (row["bare_ms"], row["allowed_ms"], row["within"]) == (100.0, 5.0, within)
        assert row["overhead_ms"] == pytest.approx(there - 100)


def test_runs_alternate(benchmark: ModuleType) -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in ("bare", "a", "b")}
    pairs = benchmark.measure(ways, 0.0)
    assert {name: len(taken) for name, taken in pairs.items()} == {"a": 8, "b": 8}
    assert order[6:] == ["bare", "a", "bare", "b"] * 8
