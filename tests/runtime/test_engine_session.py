"""An engine at work: profiles, memory, graphs and what is refused. With a driver too in `test_tensorrt_on_standin`."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from support import gpu_double
from support.gpu_double import GpuDouble

from trt_hspan.errors import HspanError
from trt_hspan.runtime.cuda_graph import CaptureError
from trt_hspan.runtime.engine_session import (
    GRAPH_CAPACITY,
    PIPELINE_SLOTS,
    EngineSession,
    SessionMemory,
    StageTimes,
)


def session(*profiles: tuple[tuple[int, ...], tuple[int, ...]]) -> EngineSession:
    engine = SimpleNamespace(profiles=tuple((low, low, high) for low, high in profiles), where="net.plan")
    return EngineSession(engine, SimpleNamespace())  # type: ignore[arg-type]


SMALL, LARGE = ((1, 3, 4, 4), (2, 3, 8, 8)), ((1, 3, 6, 6), (1, 3, 24, 16))


@pytest.mark.parametrize(
    ("shape", "profile"),
    [
        *[((1, 3, 4, 4), 1), ((2, 3, 8, 8), 1), ((1, 3, 8, 8), 1), ((1, 3, 9, 8), 0), ((1, 3, 24, 16), 0)],
        *[((1, 3, 25, 16), None), ((1, 3, 24, 17), None), ((1, 3, 3, 4), None), ((3, 3, 8, 8), None)],
        *[((1, 3, 4, 9), None), ((2, 3, 9, 8), None), ((1, 3, 8), None)],
    ],
)
def test_the_profile_with_the_smallest_maximum_takes_a_shape(
    shape: tuple[int, ...], profile: int | None
) -> None:
    assert session(LARGE, SMALL).profile_for(shape) == profile


def test_a_session_that_was_not_opened_runs_nothing_and_has_nothing_to_free() -> None:
    closed = session(SMALL)
    with pytest.raises(RuntimeError, match="the runner is not active"):
        closed.run(None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the runner is not active"):
        list(closed.run_many([None]))  # type: ignore[list-item]
    assert closed.memory == SessionMemory(activation_bytes=0, io_device_bytes=0, pinned_bytes=0)
    assert (closed.graph_count, closed.graph_launches, closed.last_times) == (0, 0, None)
    closed.close()


def test_three_batches_are_in_flight_and_four_shapes_have_graphs_in_each_of_four_slots() -> None:
    assert (PIPELINE_SLOTS, GRAPH_CAPACITY) == (3, 16)


# On a GPU in numpy
# ----------------------------------------------------------------------------------------------


WIDE = ((1, 3, 4, 4), (4, 3, 24, 24))


def batch(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def expect(source: np.ndarray, output: np.ndarray) -> None:
    np.testing.assert_array_equal(output, source.repeat(2, 2).repeat(2, 3))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuDouble]:
    made = GpuDouble(monkeypatch, WIDE)
    made.session.open()
    yield made
    made.session.close()
    assert (made.driver.memory, made.driver.pinned, made.current) == ({}, 0, 0)


def test_stages_have_streams_of_their_own_and_wait_for_each_other(gpu: GpuDouble) -> None:
    assert gpu.driver.log == ["wait for stream 1", "wait for stream 2", "wait for stream 3"]
    gpu.driver.log.clear()
    gpu.session.run(batch(0, 1, 3, 4, 4))
    steps = [step for step in gpu.driver.log if not step.startswith("wait for")]
    assert steps == [
        *["upload on 1", "record on 1", "stream 2 waits"],
        *["record on 2", "stream 3 waits", "download on 3", "record on 3"],
    ]
    assert gpu.engine.executions == [(0, 2)]
    assert gpu.session.last_times is None


def test_memory_grows_to_what_was_run_and_is_kept(gpu: GpuDouble) -> None:
    for shape, activations, inputs in (
        ((1, 3, 6, 6), 64 * 108, 4 * 108),
        ((1, 3, 4, 4), 64 * 108, 4 * 108),
        ((2, 3, 6, 7), 64 * 252, 4 * 252),
    ):
        expect(batch(0, *shape), gpu.session.run(batch(0, *shape)))
        assert gpu.session.memory == SessionMemory(
            activation_bytes=activations, io_device_bytes=5 * inputs, pinned_bytes=5 * inputs
        )


def test_a_shape_gets_a_graph_when_it_comes_again(gpu: GpuDouble) -> None:
    for seed in range(5):
        expect(batch(seed, 1, 3, 6, 6), gpu.session.run(batch(seed, 1, 3, 6, 6)))
    assert (gpu.session.graph_count, gpu.session.graph_launches) == (1, 3)
    assert len(gpu.engine.contexts) == 2  # the graph has its own
    # A larger shape moves the memory, with which the graph ends, after all that uses it.
    gpu.driver.log.clear()
    expect(batch(9, 1, 3, 9, 9), gpu.session.run(batch(9, 1, 3, 9, 9)))
    assert (gpu.session.graph_count, gpu.session.graph_launches) == (0, 3)
    assert gpu.driver.log.index("free graph") > gpu.driver.log.index("wait for stream 3")


def test_without_graphs_there_is_one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = GpuDouble(monkeypatch, WIDE, use_graphs=False)
    gpu.session.open()
    for seed in range(4):
        gpu.session.run(batch(seed, 1, 3, 6, 6))
    assert (gpu.graphs, len(gpu.engine.contexts)) == ([], 1)
    gpu.session.close()


def test_stages_are_timed_where_that_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = GpuDouble(monkeypatch, WIDE, timing=True)
    gpu.session.open()
    gpu.session.run(batch(0, 1, 3, 6, 6))
    assert gpu.session.last_times == StageTimes(upload_ms=1, compute_ms=1, download_ms=1)
    assert gpu.driver.log.count("record on 1") == gpu.driver.log.count("record on 2") == 2
    gpu.session.close()


def test_a_batch_is_executed_in_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = GpuDouble(monkeypatch, LARGE, SMALL)
    gpu.session.open()
    assert [context.profile for context in gpu.engine.contexts] == [0, 1]
    for side in (4, 16, 4, 16):
        expect(batch(side, 1, 3, side, side), gpu.session.run(batch(side, 1, 3, side, side)))
    assert [profile for profile, _ in gpu.engine.executions] == [1, 0, 1, 0]
    with pytest.raises(HspanError, match=r"^net\.plan: no profile of the engine takes 1x3x4x9"):
        gpu.session.run(batch(0, 1, 3, 4, 9))
    gpu.session.close()


def test_many_batches_are_three_in_flight_and_each_result_is_its_own(gpu: GpuDouble) -> None:
    taken: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for seed in range(8):
            taken.append(seed)
            yield batch(seed, 1, 3, 5, 4 + seed % 2)

    results, counts = [], []
    for result in gpu.session.run_many(source()):
        results.append(result)
        counts.append(len(taken))
    assert counts == [4, 5, 6, 7, 8, 8, 8, 8]
    for seed, result in enumerate(results):
        expect(batch(seed, 1, 3, 5, 4 + seed % 2), result)


def test_one_sequence_at_a_time_and_another_after_it_was_left(gpu: GpuDouble) -> None:
    first = gpu.session.run_many(batch(seed, 1, 3, 4, 4) for seed in range(5))
    next(first)
    with pytest.raises(RuntimeError, match="one run_many at a time"):
        next(gpu.session.run_many([batch(0, 1, 3, 4, 4)]))
    gpu.driver.log.clear()
    first.close()
    assert gpu.driver.log == ["wait for stream 1", "wait for stream 2", "wait for stream 3"]
    assert len(list(gpu.session.run_many([batch(0, 1, 3, 4, 4)] * 2))) == 2
    gpu.driver.log.clear()
    assert list(gpu.session.run_many([])) == []
    assert gpu.driver.log == []  # nothing was under way


def test_a_single_run_in_the_middle_of_a_sequence_disturbs_none(gpu: GpuDouble) -> None:
    results = gpu.session.run_many(batch(seed, 1, 3, 4, 4) for seed in range(5))
    expect(batch(0, 1, 3, 4, 4), next(results))
    expect(batch(9, 1, 3, 4, 4), gpu.session.run(batch(9, 1, 3, 4, 4)))
    for seed, result in enumerate(results, start=1):
        expect(batch(seed, 1, 3, 4, 4), result)


@pytest.mark.parametrize("cause", ["capture", "not capturable", "no context"])
def test_a_shape_whose_capture_fails_goes_on_without_a_graph(
    gpu: GpuDouble, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    if cause == "capture":
        gpu.captures = CaptureError("cuGraphInstantiateWithFlags: no room")
    elif cause == "not capturable":
        monkeypatch.setattr(
            gpu_double.ContextDouble, "is_stream_capturable", lambda self, stream: stream != 2, raising=False
        )
    for seed in range(4):
        if cause == "no context" and seed == 1:
            gpu.engine.refuses["context"] = True
        expect(batch(seed, 1, 3, 4, 4), gpu.session.run(batch(seed, 1, 3, 4, 4)))
    reason = {
        "capture": "cuGraphInstantiateWithFlags: no room",
        "not capturable": "TensorRT says that the context cannot be captured",
        "no context": "cannot create an execution context",
    }[cause]
    assert gpu.session.capture_failures == {(1, 3, 4, 4): reason}
    assert caplog.messages == [f"net.plan: no CUDA graph for 1x3x4x4, it runs without one: {reason}"]
    assert gpu.session.graph_count == 0


def test_a_context_that_can_be_captured_is(gpu: GpuDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu_double.ContextDouble, "is_stream_capturable", lambda self, stream: stream == 2, raising=False
    )
    for seed in range(2):
        gpu.session.run(batch(seed, 1, 3, 4, 4))
    assert gpu.session.graph_count == 1


@pytest.mark.parametrize(
    ("refused", "answer", "line"),
    [
        ("shape", True, "refuses the shape 1x3x4x5: TensorRT gives no reason"),
        (
            "infer",
            True,
            "cannot infer the output's shape for 1x3x4x5: infer_shapes error code: -1; build the",
        ),
        ("missing", True, "cannot infer the output's shape for 1x3x4x5: TensorRT gives no reason; build the"),
        ("output shape", (1, 3, 0, 9), "cannot infer the output's shape for 1x3x4x5"),
        ("output shape", (1, 3, -1, 9), "cannot infer the output's shape for 1x3x4x5"),
        ("output shape", (), "cannot infer the output's shape for 1x3x4x5"),
        ("input", True, "refuses memory for input"),
        ("execution", True, "cannot execute: TensorRT gives no reason"),
    ],
)
def test_what_tensorrt_refuses_is_one_line_and_the_next_run_goes_on(
    gpu: GpuDouble, refused: str, answer: object, line: str
) -> None:
    gpu.engine.refuses[refused] = answer
    with pytest.raises(HspanError) as caught:
        gpu.session.run(batch(0, 1, 3, 4, 5))
    assert str(caught.value).startswith(f"net.plan: {line}")
    gpu.engine.refuses.clear()
    expect(batch(1, 1, 3, 4, 5), gpu.session.run(batch(1, 1, 3, 4, 5)))


def test_an_output_of_one_pixel_is_one(gpu: GpuDouble) -> None:
    gpu.engine.refuses["output shape"] = (1, 1, 1, 1)
    assert gpu.session.run(batch(0, 1, 3, 4, 4)).shape == (1, 1, 1, 1)


def test_a_graph_that_cannot_be_launched_is_one_line(gpu: GpuDouble) -> None:
    for seed in range(2):
        gpu.session.run(batch(seed, 1, 3, 4, 4))
    gpu.graphs[0].refused = True
    with pytest.raises(
        HspanError, match=r"^net\.plan: cannot launch its CUDA graph: cuGraphLaunch: CUDA_ERROR"
    ):
        gpu.session.run(batch(2, 1, 3, 4, 4))
    assert gpu.session.graph_launches == 0


def test_a_session_that_was_left_or_whose_gpu_failed_frees_everything(
    gpu: GpuDouble, caplog: pytest.LogCaptureFixture
) -> None:
    left = gpu.session.run_many(batch(seed, 1, 3, 4, 4) for seed in range(5))
    next(left)
    gpu.driver.fails_to_wait = True
    with caplog.at_level("INFO"):
        gpu.session.close()
    assert (gpu.driver.memory, gpu.driver.pinned) == ({}, 0)
    assert any("while closing: " in message for message in caplog.messages)
    left.close()
    with pytest.raises(RuntimeError, match="the runner is not active"):
        gpu.session.run(batch(0, 1, 3, 4, 4))
