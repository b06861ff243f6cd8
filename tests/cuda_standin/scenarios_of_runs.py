"""The GPU runner on real PyCUDA over the stand-in driver: order of calls, lifetimes, shapes, synchronization.

Not collected by name: `tests/runtime/test_tensorrt_on_standin.py` runs it in processes of its own, once with work done
at once and once with work done only when something waits for it.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cuda_standin import engine_double
from cuda_standin.conftest import HANDLES, RTX, Driver, Release
from cuda_standin.expectations import MakeEngine, batch, expect
from tools.gpu_report.engines import Checks, check_runs
from trt_hspan.errors import HspanError
from trt_hspan.runtime import engine_session
from trt_hspan.runtime.cuda_device import CudaDevice
from trt_hspan.runtime.engine_loading import LoadedEngine
from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.tensorrt_runner import TensorRtRunner


def test_a_run_gives_the_picture_that_onnx_runtime_gives(make_engine: MakeEngine, release: Release) -> None:
    plan = make_engine(release)
    batches = [batch(0, 1, 3, 8, 6), batch(1, 2, 3, 5, 7), batch(2, 1, 3, 24, 24)]
    with TensorRtRunner(plan) as runner:
        expect(plan, batches, [runner.run(one) for one in batches])


def test_open_runner_takes_the_gpu_and_says_so(make_engine: MakeEngine, release: Release) -> None:
    runner = open_runner(make_engine(release))
    assert isinstance(runner, TensorRtRunner)
    assert runner.picked == f"{runner.name} on the GPU"


def test_from_the_third_run_of_a_shape_on_a_graph_is_replayed(
    make_engine: MakeEngine, release: Release
) -> None:
    plan = make_engine(release)
    batches = [batch(seed, 1, 3, 8, 8) for seed in range(6)]
    with TensorRtRunner(plan) as runner:
        expect(plan, batches, [runner.run(one) for one in batches])
        assert runner.session.graph_count == 1
        assert runner.session.graph_launches == 4
        assert runner.session.capture_failures == {}


def test_graphs_of_two_shapes_live_side_by_side(make_engine: MakeEngine, release: Release) -> None:
    plan = make_engine(release)
    shapes = [(1, 3, 12, 12), (2, 3, 8, 4)] * 5
    batches = [batch(seed, *shape) for seed, shape in enumerate(shapes)]
    with TensorRtRunner(plan) as runner:
        expect(plan, batches, [runner.run(one) for one in batches])
        assert runner.session.graph_count == 2
        assert runner.session.graph_launches == 6


def test_without_graphs_none_is_made(make_engine: MakeEngine, driver: Driver) -> None:
    plan = make_engine(RTX)
    graphs = driver.count("made graph")
    with TensorRtRunner(plan, use_graphs=False) as runner:
        batches = [batch(seed, 1, 3, 8, 8) for seed in range(4)]
        expect(plan, batches, [runner.run(one) for one in batches])
    assert driver.count("made graph") == graphs


def test_many_batches_come_in_order_and_are_the_callers_to_keep(
    make_engine: MakeEngine, release: Release
) -> None:
    plan = make_engine(release)
    shapes = [(1, 3, 8, 8), (1, 3, 8, 5), (2, 3, 4, 4), (1, 3, 24, 20)]
    batches = [batch(seed, *shapes[seed * seed % 4]) for seed in range(14)]
    with TensorRtRunner(plan) as runner:
        expect(plan, batches, list(runner.run_many(iter(batches))))
        expect(plan, batches, list(runner.run_many(batches)))  # now from graphs
        assert runner.session.graph_launches > 0
        assert list(runner.run_many([])) == []


def test_three_batches_are_in_flight(make_engine: MakeEngine) -> None:
    plan, taken = make_engine(RTX), 0

    def source() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal taken
        for seed in range(6):
            taken += 1
            yield batch(seed, 1, 3, 8, 8)

    with TensorRtRunner(plan) as runner:
        results = runner.run_many(source())
        next(results)
        assert taken == engine_session.PIPELINE_SLOTS + 1
        results.close()


def test_stages_run_on_streams_of_their_own(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, set[int]] = {"upload": set(), "compute": set(), "download": set()}

    def noted(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            used[stage].add(int(getattr(arguments[-1], "handle", arguments[-1])))
            return call(*arguments)

        return wrapper

    for owner, name, stage in (
        (CudaDevice, "upload", "upload"),
        (CudaDevice, "download", "download"),
        (engine_double.IExecutionContext, "execute_async_v3", "compute"),
    ):
        monkeypatch.setattr(owner, name, noted(stage, getattr(owner, name)))
    with TensorRtRunner(make_engine(RTX)) as runner:
        list(runner.run_many([batch(seed, 1, 3, 8, 8) for seed in range(4)]))
    assert [len(streams) for streams in used.values()] == [1, 1, 1]
    assert len(set.union(*used.values())) == 3
    assert 0 not in set.union(*used.values())


def test_nothing_is_allocated_once_shapes_repeat(
    make_engine: MakeEngine, driver: Driver, release: Release
) -> None:
    plan = make_engine(release)
    batches = [batch(seed, 1, 3, *((8, 8) if seed % 2 else (12, 5))) for seed in range(12)]
    counters = ("blocks made", *(f"made {name}" for name in ("stream", "event", "graph", "graph exec")))
    with TensorRtRunner(plan) as runner:
        for _ in range(3):
            list(runner.run_many(batches))
            [runner.run(one) for one in batches]
        before = [driver.count(name) for name in counters]
        for _ in range(5):
            list(runner.run_many(batches))
            [runner.run(one) for one in batches]
        assert [driver.count(name) for name in counters] == before


def test_activation_memory_is_for_the_shapes_in_use_not_for_the_maximum(make_engine: MakeEngine) -> None:
    with TensorRtRunner(make_engine(RTX)) as runner:
        runner.run(batch(0, 1, 3, 4, 4))
        small = runner.session.memory
        assert small.activation_bytes == 64 * 4 * 4
        assert small.io_device_bytes == 4 * 3 * (16 + 64)
        runner.run(batch(0, 1, 3, 24, 24))
        assert runner.session.memory.activation_bytes == 64 * 24 * 24


def test_memory_that_grows_ends_graphs_with_the_old_address(
    make_engine: MakeEngine, release: Release
) -> None:
    plan = make_engine(release)
    shapes = [(1, 3, 6, 6)] * 4 + [(1, 3, 20, 20)] * 4 + [(1, 3, 6, 6)] * 4
    batches = [batch(seed, *shape) for seed, shape in enumerate(shapes)]
    with TensorRtRunner(plan) as runner:
        expect(plan, batches, [runner.run(one) for one in batches])
        assert runner.session.graph_count == 2


def test_the_graph_cache_is_bounded(
    make_engine: MakeEngine, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_session, "GRAPH_CAPACITY", 3)
    plan = make_engine(RTX)
    batches = [batch(size, 1, 3, size, size) for size in range(12, 4, -1) for _ in range(3)]
    with TensorRtRunner(plan) as runner:
        for one in batches:
            runner.run(one)
            assert driver.count("graph exec") <= 3
        expect(plan, batches, [runner.run(one) for one in batches])
        assert runner.session.graph_count == 3
    assert driver.count("graph") == 0


def test_more_shapes_than_graphs_are_not_captured_over_and_over(
    make_engine: MakeEngine, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_session, "GRAPH_CAPACITY", 3)
    plan, captures = make_engine(RTX), driver.count("made graph exec")
    batches = [batch(size, 1, 3, size, size) for size in range(12, 4, -1) for _ in range(2)]
    with TensorRtRunner(plan) as runner:
        for _ in range(6):
            expect(plan, batches, [runner.run(one) for one in batches])
        assert driver.count("made graph exec") - captures == 3
        assert runner.session.graph_launches == 3 * (2 * 6 - 2)
        assert engine_double.CALLS.count("create_execution_context") == 1 + 3
        # Once the graphs have been idle for long, other shapes get theirs: the one used last goes last.
        runner.run(batch(0, 1, 3, 12, 12))
        for _ in range(3 * 8 + 2):
            runner.run(batch(0, 1, 3, 6, 6))
        assert driver.count("made graph exec") - captures == 4
        launches = runner.session.graph_launches
        for size, launched in ((12, 1), (11, 0), (6, 1)):
            runner.run(batch(0, 1, 3, size, size))
            assert runner.session.graph_launches == launches + launched
            launches += launched
        assert runner.session.graph_count == 3


def test_a_graph_whose_context_runs_another_shape_is_noticed(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keeps the checks above honest: with one context for all shapes the double objects."""
    create, contexts = LoadedEngine.create_context, {}

    def shared(engine: LoadedEngine, profile: int, stream: int) -> Any:
        if profile not in contexts:
            contexts[profile] = create(engine, profile, stream)
        return contexts[profile]

    monkeypatch.setattr(LoadedEngine, "create_context", shared)
    with TensorRtRunner(make_engine(RTX)) as runner:
        for seed in range(6):
            runner.run(batch(seed, 1, 3, 8, 8 - seed % 2))
        contexts.clear()
    assert any("replayed after its context had changed" in misuse for misuse in engine_double.MISUSES)
    engine_double.MISUSES.clear()


@pytest.mark.parametrize("cause", ["allocates", "TensorRT says no", "no room", "no context"])
def test_a_capture_that_fails_is_told_once_and_the_shape_goes_on(
    make_engine: MakeEngine, driver: Driver, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    plan = make_engine(RTX)
    batches = [batch(seed, 1, 3, 8, 8) for seed in range(5)]
    if cause == "allocates":
        engine_double.UNCAPTURABLE.add((1, 3, 8, 8))
    elif cause == "TensorRT says no":
        engine_double.ANSWERS["capturable"] = False
    elif cause == "no room":
        driver.fail("cuGraphInstantiateWithFlags", 1, always=True)
    with TensorRtRunner(plan) as runner:
        engine_double.ANSWERS["no context"] = cause == "no context"
        expect(plan, batches, [runner.run(one) for one in batches])
        assert list(runner.session.capture_failures) == [(1, 3, 8, 8)]
        assert runner.session.graph_count == 0
        warnings = [text for text in caplog.messages if "no CUDA graph for 1x3x8x8" in text]
        assert len(warnings) == 1
        expected = {
            "allocates": "operation not permitted",
            "TensorRT says no": "TensorRT says that the context cannot be captured",
            "no room": "CUDA_ERROR_OUT_OF_MEMORY",
            "no context": "cannot create an execution context: Error Code 2: OutOfMemory",
        }
        assert expected[cause] in warnings[0]
        engine_double.ANSWERS.clear()
        driver.fail("", 0)
        others = [batch(seed, 1, 3, 8, 4) for seed in range(3)]
        expect(plan, others, [runner.run(one) for one in others])
        assert runner.session.graph_count == 1


def test_closing_frees_context_engine_and_runtime_in_this_order(
    make_engine: MakeEngine, release: Release
) -> None:
    with TensorRtRunner(make_engine(release)) as runner:
        runner.run(batch(0, 1, 3, 8, 8))
        del runner
    gc.collect()
    ends = [call for call in engine_double.CALLS if call.startswith("~")]
    assert ends == ["~Context", "~Engine", "~Runtime"]


def test_a_runner_opens_again(make_engine: MakeEngine, driver: Driver) -> None:
    plan = make_engine(RTX)
    runner, before = TensorRtRunner(plan), driver.alive()
    for seed in range(3):
        with runner:
            expect(plan, [batch(seed, 1, 3, 8, 8)], [runner.run(batch(seed, 1, 3, 8, 8))])
        assert driver.alive() == before
    with pytest.raises(RuntimeError, match="not active"):
        runner.run(batch(0, 1, 3, 8, 8))


def test_each_profile_has_its_context_and_the_tighter_one_is_taken(make_engine: MakeEngine) -> None:
    small = ((1, 3, 4, 4), (1, 3, 6, 6), (1, 3, 8, 8))
    large = ((1, 3, 6, 6), (1, 3, 16, 16), (1, 3, 24, 24))
    plan = make_engine(RTX, profiles=(large, small))
    with TensorRtRunner(plan) as runner:
        assert engine_double.CALLS.count("create_execution_context") == 2
        chosen = [runner.session.profile_for((1, 3, size, size)) for size in (4, 8, 9, 24)]
        assert chosen == [1, 1, 0, 0]
        assert runner.session.profile_for((1, 3, 4, 24)) is None
        batches = [batch(size, 1, 3, size, size) for size in (4, 24, 8, 4, 4, 24, 24)]
        expect(plan, batches, [runner.run(one) for one in batches])
        limits = "1x3x6x6 to 1x3x24x24 or 1x3x4x4 to 1x3x8x8"
        with pytest.raises(HspanError, match=rf"input: is 1x3x4x24, but .*net\.plan takes {limits}"):
            runner.run(batch(0, 1, 3, 4, 24))
        assert runner.shape_ranges == tuple((low, high) for low, _, high in (large, small))


def test_a_shape_outside_the_profile_is_refused_before_the_gpu_sees_it(make_engine: MakeEngine) -> None:
    with TensorRtRunner(make_engine(RTX)) as runner:
        for shape in ((1, 3, 3, 8), (1, 3, 8, 25), (5, 3, 8, 8), (1, 1, 8, 8)):
            with pytest.raises(HspanError, match=r"input: is .* takes 1x3x4x4 to 4x3x24x24"):
                runner.run(batch(0, *shape))
            with pytest.raises(HspanError, match=r"input: is "):
                list(runner.run_many([batch(0, *shape)]))


def test_any_thread_may_run_it(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    batches = [batch(seed, 1, 3, 8, 4 + seed % 3) for seed in range(12)]
    outputs: dict[int, Any] = {}
    with TensorRtRunner(plan) as runner:

        def work(first: int) -> None:
            for seed in range(first, 12, 3):
                outputs[seed] = runner.run(batches[seed])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expect(plan, batches, [outputs[seed] for seed in range(12)])


def test_another_thread_may_close_it(make_engine: MakeEngine) -> None:
    runner = TensorRtRunner(make_engine(RTX))
    runner.activate()
    runner.run(batch(0, 1, 3, 8, 8))
    thread = threading.Thread(target=runner.deactivate)
    thread.start()
    thread.join()


def test_batches_that_end_early_or_fail_leave_the_runner_usable(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    batches = [batch(seed, 1, 3, 8, 8) for seed in range(6)]

    def failing() -> Iterator[np.ndarray[Any, Any]]:
        yield from batches[:2]
        raise KeyboardInterrupt

    with TensorRtRunner(plan) as runner:
        results = runner.run_many(batches)
        next(results)
        with pytest.raises(RuntimeError, match="one run_many at a time"):
            next(runner.run_many(batches))
        results.close()
        with pytest.raises(KeyboardInterrupt):
            list(runner.run_many(failing()))
        expect(plan, batches, list(runner.run_many(batches)))


def test_batches_left_half_way_are_refused_after_closing(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    batches = [batch(seed, 1, 3, 8, 8) for seed in range(6)]
    with TensorRtRunner(plan) as runner:
        session, results = runner.session, runner.run_many(batches)
        next(results)
    with pytest.raises(RuntimeError, match="the runner is not active"):
        next(results)
    with pytest.raises(RuntimeError, match="the runner is not active"):
        session.run(batches[0])
    with runner:
        expect(plan, batches, list(runner.run_many(batches)))


def test_a_single_run_fits_between_those_of_many(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    batches = [batch(seed, 1, 3, 8, 8) for seed in range(6)]
    with TensorRtRunner(plan) as runner:
        single, many = [], []
        for output in runner.run_many(batches):
            many.append(output)
            single.append(runner.run(batch(99, 1, 3, 10, 10)))
    expect(plan, batches, many)
    expect(plan, [batch(99, 1, 3, 10, 10)] * 6, single)


def test_times_of_the_stages_are_measured_on_request(make_engine: MakeEngine) -> None:
    with TensorRtRunner(make_engine(RTX), timing=True) as runner:
        runner.run(batch(0, 1, 3, 24, 24))
        times = runner.session.last_times
        assert times is not None
        assert times.compute_ms > 0
        assert min(times.upload_ms, times.download_ms) >= 0
    with TensorRtRunner(make_engine(RTX)) as runner:
        runner.run(batch(0, 1, 3, 8, 8))
        assert runner.session.last_times is None


def test_the_counters_see_what_a_runner_holds(make_engine: MakeEngine, driver: Driver) -> None:
    """Keeps the checks above honest: a runner that is open does show in the counters."""
    before = driver.alive()
    with TensorRtRunner(make_engine(RTX)) as runner:
        for _ in range(2):
            runner.run(batch(0, 1, 3, 8, 8))
        held = driver.alive()
    assert all(held[name] > before[name] for name in HANDLES if name != "graph")


def test_the_checks_of_make_gpu_pass_on_interleaved_shapes(
    make_engine: MakeEngine, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = (
        ((1, 3, 8, 8), (1, 3, 16, 16), (2, 3, 24, 24)),
        ((1, 3, 4, 4), (1, 3, 8, 8), (1, 3, 12, 12)),
    )
    plan = make_engine(release, profiles=(large, small))
    monkeypatch.setattr(TensorRtRunner, "layer_information", lambda _: '{"Layers": []}')
    checks = Checks()
    check_runs(checks, plan, shapes=((1, 4, 5), (2, 24, 24), (1, 8, 8), (1, 12, 12)), runs=20)
    assert checks.failures == []
    assert checks.results["20 runs without growth of memory"] == "0 bytes more are in use"
    assert (
        "graph launches"
        in checks.results["interleaved shapes with CUDA graphs, bit for bit against runs without"]
    )


def test_the_checks_of_make_gpu_notice_other_bits(
    make_engine: MakeEngine, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_engine(release)
    monkeypatch.setattr(TensorRtRunner, "layer_information", lambda _: '{"Layers": []}')
    run, calls = TensorRtRunner.run, []

    def spoiled(self: TensorRtRunner, batch: Any) -> Any:
        calls.append(1)
        return run(self, batch) + np.float32(len(calls) == 5)

    monkeypatch.setattr(TensorRtRunner, "run", spoiled)
    checks = Checks()
    check_runs(checks, plan, shapes=((1, 4, 4), (1, 8, 8)), runs=1)
    assert [line.split(": ")[1][:21] for line in checks.failures] == ["1 of 12 runs differ; "]
