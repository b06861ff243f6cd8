"""The benchmark of engines: an engine on a GPU, in numpy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.evaluation.speed import bench as module
from trt_hspan.evaluation.speed import plot
from trt_hspan.evaluation.speed.bench import (
    BenchReport,
    BenchSpec,
    GraphChoice,
    Measurement,
    run_bench,
)
from trt_hspan.evaluation.speed.sampling import Latency
from trt_hspan.runtime import tensorrt_runner
from trt_hspan.sizes import ImageSize

SMALL = ImageSize(height=8, width=6)
LATENCY = Latency(
    p50_ms=20.0, p90_ms=30.0, p95_ms=35.0, p99_ms=39.0, mean_ms=25.0, runs=40, warmup_runs=10, stable=True
)


@dataclasses.dataclass(frozen=True)
class GpuMemory:
    activations: int


class Engine(NearestRunner):
    """Stands in for `TensorRtRunner`: notes how it is opened and how many batches overlap."""

    def __init__(
        self, source: str, *, plugin: Path | None, index: int, use_graphs: bool, timing: bool
    ) -> None:
        super().__init__(precision="fp16")
        self.name, self.where, self.how = "TensorRT", source, (plugin, index, use_graphs, timing)
        self.streamed: list[int] = []
        self.compute_ms = itertools.cycle([7.0, 5.0, 6.0])
        self.times = SimpleNamespace(upload_ms=1.0, compute_ms=0.0, download_ms=2.0)
        self.session = SimpleNamespace(
            last_times=self.times,
            memory=GpuMemory(activations=512),
            profile_for=lambda shape: shape[0],
            capture_failures={(2, 3, 8, 6): "too large"},
        )

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self.times.compute_ms = next(self.compute_ms)
        return super().infer(batch)

    def run_many(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        count = 0
        for count, batch in enumerate(batches, 1):  # noqa: B007  # counted
            yield batch
        self.streamed.append(count)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Every engine that was opened to be measured, three runs each."""
    opened: list[Engine] = []

    class Opened(Engine):
        def __init__(self, source: str, **how: Any) -> None:
            super().__init__(source, **how)
            opened.append(self)

    def sample(run: Callable[[], object], *, seconds: float, on_run: Callable[[], None]) -> Latency:
        for _ in range(3):
            run()
            on_run()
        return LATENCY

    first = Opened("net.plan", plugin=None, index=0, use_graphs=True, timing=False)
    first.picked = "there is a GPU"
    opened.clear()
    monkeypatch.setattr(module, "open_runner", lambda source, **_: first)
    monkeypatch.setattr(module, "sample_latency", sample)
    monkeypatch.setattr(module, "_end_to_end", lambda runner, batch: {})
    ticks = itertools.count(10.0, 2.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))

    monkeypatch.setattr(tensorrt_runner, "TensorRtRunner", Opened)
    return opened


@pytest.mark.parametrize(
    ("graphs", "variants"), [(None, [True, False]), ("both", [True, False]), ("on", [True]), ("off", [False])]
)
def test_an_engine_is_measured_with_cuda_graphs_and_without(
    engines: list[Engine], graphs: GraphChoice | None, variants: list[bool]
) -> None:
    steps: list[str] = []
    spec = BenchSpec(
        sources=("net.plan",), sizes=(SMALL,), graphs=graphs, device="gpu:1", plugin=Path("p.so")
    )
    report = run_bench(spec, on_step=steps.append)
    assert [engine.how for engine in engines] == [(Path("p.so"), 1, choice, True) for choice in variants]
    assert [one.cuda_graph for one in report.measurements] == variants
    words = {True: "TensorRT, FP16, CUDA graph on, 1x8x6", False: "TensorRT, FP16, CUDA graph off, 1x8x6"}
    assert steps == [words[choice] for choice in variants]
    assert report.picked == {"net.plan": "there is a GPU"}


def test_an_engines_rate_overlaps_its_runs_and_its_stages_are_medians(engines: list[Engine]) -> None:
    spec = BenchSpec(sources=("net.plan",), sizes=(SMALL,), batches=(1, 2), graphs="on")
    first, second = run_bench(spec).measurements
    # Eight batches fill all buffers; then forty, as many as were sampled, in two seconds.
    assert engines[0].streamed == [8, 40, 8, 40]
    assert (first.images_per_second, second.images_per_second) == (40 * 1 / 2, 40 * 2 / 2)
    assert first.gpu_stages_ms == {"upload": 1.0, "compute": 6.0, "download": 2.0}
    assert (first.gpu_bytes, first.profile, first.note) == ({"activations": 512}, None, None)
    assert second.note == "too large"
    assert (first.end_to_end_ms, second.end_to_end_ms) == ({}, None)


def test_of_several_profiles_the_one_that_was_taken_is_reported(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "profiles", (((1, 3, 1, 1), (9, 3, 64, 64)), ((1, 3, 1, 1), (9, 3, 96, 96))))
    (measured,) = run_bench(BenchSpec(sources=("net.plan",), sizes=(SMALL,), graphs="off")).measurements
    assert measured.profile == 1


@pytest.mark.parametrize(
    ("graph", "batch", "label"),
    [
        (None, 1, "net"),
        (True, 1, "net, CUDA graph"),
        (False, 1, "net, no CUDA graph"),
        (None, 2, "net, batch 2"),
    ],
)
def test_a_line_of_the_plot_is_named(graph: bool | None, batch: int, label: str) -> None:
    measured = Measurement(
        network="net",
        source="a.onnx",
        precision="fp32",
        emulated=False,
        height=8,
        width=6,
        batch=batch,
        cuda_graph=graph,
        latency=LATENCY,
        images_per_second=1.0,
    )
    assert plot._label(BenchReport(measurements=(measured,), machine={}), measured) == label
