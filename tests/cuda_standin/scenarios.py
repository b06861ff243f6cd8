"""The GPU runner on real PyCUDA over the stand-in driver: order of calls, lifetimes, shapes, synchronisation.

Not collected by name: `tests/runtime/test_tensorrt_on_standin.py` runs this file in processes of their own, once with
work done at once and once with work done only when something waits for it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda_standin import engine_double
from cuda_standin.conftest import CLASSIC, HANDLES, RTX, Driver, Release
from trt_hspan.benchmarking.bench import BenchSpec, run_bench
from trt_hspan.cli import main
from trt_hspan.edge.reference import ReferencePicture, StoredReference, write_reference
from trt_hspan.engine.plugin_library import default_plugin_path, plugin_info_from_library
from trt_hspan.engine.spec import ImageSize
from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.files import sha256_from_file
from trt_hspan.runtime import engine_session
from trt_hspan.runtime.cuda_device import CudaDevice
from trt_hspan.runtime.images import size_from_image_file, tensor_from_image, write_image
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.tensorrt_runner import TensorRtRunner

MakeEngine = Callable[..., Path]
Pictures = Callable[[Path, list[np.ndarray[Any, Any]]], list[np.ndarray[Any, Any]]]
# Two sessions of ONNX Runtime over one FP32 file differ by the order of sums at most: 100 roundings of values below 2.
TOLERANCE = 100 * 2 * 2.0**-24


def batch(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def expect(plan: Path, batches: list[np.ndarray[Any, Any]], outputs: list[np.ndarray[Any, Any]]) -> None:
    assert len(batches) == len(outputs)
    with OnnxRuntimeRunner(plan.with_suffix(".onnx"), threads=1) as reference:
        for source, output in zip(batches, outputs, strict=True):
            np.testing.assert_allclose(output, reference.run(source), rtol=0, atol=TOLERANCE)


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
    made = driver.count("made graph")
    with TensorRtRunner(plan, use_graphs=False) as runner:
        batches = [batch(seed, 1, 3, 8, 8) for seed in range(4)]
        expect(plan, batches, [runner.run(one) for one in batches])
    assert driver.count("made graph") == made


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


@pytest.mark.parametrize("cause", ["allocates", "TensorRT says no", "no room"])
def test_a_capture_that_fails_is_told_once_and_the_shape_goes_on(
    make_engine: MakeEngine, driver: Driver, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    plan = make_engine(RTX)
    batches = [batch(seed, 1, 3, 8, 8) for seed in range(5)]
    if cause == "allocates":
        engine_double.UNCAPTURABLE.add((1, 3, 8, 8))
    elif cause == "TensorRT says no":
        engine_double.ANSWERS["capturable"] = False
    else:
        driver.fail("cuGraphInstantiateWithFlags", 1, always=True)
    with TensorRtRunner(plan) as runner:
        expect(plan, batches, [runner.run(one) for one in batches])
        assert list(runner.session.capture_failures) == [(1, 3, 8, 8)]
        assert runner.session.graph_count == 0
        told = [text for text in caplog.messages if "no CUDA graph for 1x3x8x8" in text]
        assert len(told) == 1
        expected = {"allocates": "operation not permitted", "no room": "CUDA_ERROR_OUT_OF_MEMORY"}
        assert expected.get(cause, "TensorRT says that the context cannot be captured") in told[0]
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
        assert runner.min_shape == (1, 3, 4, 4)
        assert runner.max_shape == (1, 3, 24, 24)


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


FUNCTIONS = ("cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate", "cuGraphInstantiateWithFlags")
FUNCTIONS += ("cuMemcpyHtoDAsync", "cuLaunchHostFunc", "cuStreamBeginCapture")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_after_a_failed_call_everything_is_freed_and_the_next_try_works(
    make_engine: MakeEngine, driver: Driver, function: str
) -> None:
    plan, before = make_engine(CLASSIC), driver.alive()
    batches = [batch(0, 1, 3, 6, 6)] * 3 + [batch(1, 1, 3, 9, 9)] * 2
    failures = 0
    for call in range(1, 40):
        driver.fail(function, call, always=function == "cuMemAlloc")  # PyCUDA tries that one twice
        ended_well = False
        with contextlib.suppress(HspanError), TensorRtRunner(plan) as runner:
            outputs = [runner.run(one) for one in batches] + list(runner.run_many(batches))
            expect(plan, batches * 2, outputs)
            ended_well = not runner.session.capture_failures
        assert driver.alive() == before
        if ended_well:
            break
        failures += 1
    assert failures > 0
    assert ended_well, "the failure never ceased to matter"


@pytest.mark.parametrize("function", ["cuMemAlloc", "cuMemHostAlloc"])
def test_out_of_memory_says_so_and_a_smaller_shape_goes_on(
    make_engine: MakeEngine, driver: Driver, function: str
) -> None:
    plan = make_engine(RTX)
    small = [batch(seed, 1, 3, 6, 6) for seed in range(4)]
    with TensorRtRunner(plan) as runner:
        expect(plan, small, [runner.run(one) for one in small])
        driver.fail(function, 1, always=True)
        with pytest.raises(OutOfMemoryError, match=r"net\.plan: .*out of GPU or pinned memory; use smaller"):
            runner.run(batch(0, 1, 3, 24, 24))
        driver.fail("", 0)
        expect(plan, small, [runner.run(one) for one in small])
        expect(plan, small, list(runner.run_many(small)))


def test_tensorrt_out_of_memory_says_so(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    engine_double.ANSWERS["no context"] = True
    with pytest.raises(OutOfMemoryError, match="no execution context can be made"), TensorRtRunner(plan):
        pass


def test_the_runtime_cache_is_kept_beside_the_plan_and_used(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    cache = plan.with_suffix(".runtime_cache")
    with TensorRtRunner(plan) as runner:
        runner.run(batch(0, 1, 3, 8, 8))
    assert json.loads(cache.read_bytes().partition(b"\n")[2]) == [[1, 3, 8, 8]]
    written = cache.stat().st_mtime_ns
    with TensorRtRunner(plan) as runner:
        runner.run(batch(0, 1, 3, 8, 8))
    assert cache.stat().st_mtime_ns == written, "nothing new was compiled, so nothing is written"
    with TensorRtRunner(plan) as runner:
        runner.run(batch(0, 1, 3, 8, 9))
    assert json.loads(cache.read_bytes().partition(b"\n")[2]) == [[1, 3, 8, 8], [1, 3, 8, 9]]


def test_classic_tensorrt_has_no_runtime_cache(make_engine: MakeEngine) -> None:
    plan = make_engine(CLASSIC)
    with TensorRtRunner(plan) as runner:
        runner.run(batch(0, 1, 3, 8, 8))
    assert not plan.with_suffix(".runtime_cache").exists()


@pytest.mark.parametrize("spoil", ["truncated", "changed", "of another plan", "refused"])
def test_a_runtime_cache_that_is_not_vouched_for_is_not_loaded(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    plan = make_engine(RTX)
    cache = plan.with_suffix(".runtime_cache")
    with TensorRtRunner(plan) as runner:
        runner.run(batch(0, 1, 3, 8, 8))
    data = cache.read_bytes()
    line, _, kernels = data.partition(b"\n")
    header = json.loads(line)
    cache.write_bytes(
        {
            "truncated": data[:40],
            "changed": data[:-3] + b"9]]",
            "of another plan": json.dumps(header | {"plan_sha256": "0" * 64}).encode() + b"\n" + kernels,
            "refused": data,
        }[spoil]
    )
    offered: list[bool] = []

    def deserialize(self: engine_double.IRuntimeCache, blob: bytes) -> bool:
        offered.append(True)
        return False

    monkeypatch.setattr(engine_double.IRuntimeCache, "deserialize", deserialize)
    with TensorRtRunner(plan) as runner:
        expect(plan, [batch(0, 1, 3, 8, 9)], [runner.run(batch(0, 1, 3, 8, 9))])
    assert offered == ([True] if spoil == "refused" else [])
    assert json.loads(cache.read_bytes().partition(b"\n")[2]) == [[1, 3, 8, 9]]


def test_a_runtime_cache_that_cannot_be_written_is_a_warning(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_engine(RTX)
    plan.with_suffix(".runtime_cache").mkdir()
    with TensorRtRunner(plan) as runner:
        runner.run(batch(0, 1, 3, 8, 8))
    assert any("the runtime cache is not kept" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("diagnosis", "line"),
    [
        (1, "was built by another TensorRT-RTX release; build the engine again"),
        (2, "holds no code for this GPU"),
        (4, "needs a newer NVIDIA driver"),
        (8, "needs a newer CUDA runtime"),
        (16, "does not fit into the GPU's memory"),
        (32, "is not an engine of TensorRT-RTX, or damaged"),
        (64, "cannot be checked: CUDA fails"),
    ],
)
def test_what_tensorrt_rtx_says_against_a_plan_is_one_line(
    make_engine: MakeEngine, diagnosis: int, line: str
) -> None:
    plan = make_engine(RTX)
    engine_double.ANSWERS["validity"] = (engine_double.EngineValidity.INVALID, diagnosis)
    with pytest.raises(HspanError, match=line) as caught, TensorRtRunner(plan):
        pass
    assert "\n" not in str(caught.value)
    assert "deserialize" not in engine_double.CALLS


def test_a_validity_without_diagnosis_is_no_answer(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    engine_double.ANSWERS["validity"] = (engine_double.EngineValidity.INVALID, 0)
    with TensorRtRunner(plan) as runner:
        expect(plan, [batch(0, 1, 3, 8, 8)], [runner.run(batch(0, 1, 3, 8, 8))])


def test_a_suboptimal_plan_is_a_warning(make_engine: MakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    plan = make_engine(RTX)
    engine_double.ANSWERS["validity"] = (engine_double.EngineValidity.SUBOPTIMAL, 4)
    with TensorRtRunner(plan):
        pass
    assert any("slower than it could: OLD_CUDA_DRIVER" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        ({"names": ["input", "picture"]}, "its tensors are input, picture, expected input and output"),
        ({"dtype": "HALF"}, "its input is not float32"),
    ],
)
def test_an_engine_with_another_interface_is_refused(
    make_engine: MakeEngine, plan: dict[str, Any], line: str
) -> None:
    with pytest.raises(HspanError, match=line), TensorRtRunner(make_engine(RTX, **plan)):
        pass


def test_a_gpu_that_is_not_there_is_told(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    with pytest.raises(HspanError, match="cannot run on a GPU: there is no GPU 1 here"):
        open_runner(plan, device="gpu:1")


def test_the_counters_see_what_a_runner_holds(make_engine: MakeEngine, driver: Driver) -> None:
    """Keeps the checks above honest: a runner that is open does show in the counters."""
    before = driver.alive()
    with TensorRtRunner(make_engine(RTX)) as runner:
        for _ in range(2):
            runner.run(batch(0, 1, 3, 8, 8))
        held = driver.alive()
    assert all(held[name] > before[name] for name in HANDLES if name != "graph")


def test_an_engine_is_benchmarked_with_and_without_graphs_and_by_stages(make_engine: MakeEngine) -> None:
    sizes = (ImageSize(height=8, width=8), ImageSize(height=12, width=10))
    spec = BenchSpec(sources=(str(make_engine(RTX)),), sizes=sizes, batches=(1, 2), seconds=0.02)
    report = run_bench(spec)
    assert [found.cuda_graph for found in report.measurements] == [True] * 4 + [False] * 4
    for found in report.measurements:
        assert found.gpu_stages_ms is not None
        assert set(found.gpu_stages_ms) == {"upload", "compute", "download"}
        assert found.gpu_stages_ms["compute"] > 0
        assert found.gpu_bytes is not None
        assert found.gpu_bytes["activation_bytes"] >= 64 * found.batch * found.height * found.width
        assert found.images_per_second > 0
        assert found.note is None


def test_a_benchmark_says_why_there_was_no_graph(make_engine: MakeEngine) -> None:
    plan = make_engine(RTX)
    engine_double.UNCAPTURABLE.add((1, 3, 8, 8))
    sizes = (ImageSize(height=8, width=8),)
    (found,) = run_bench(BenchSpec(sources=(str(plan),), sizes=sizes, graphs="on", seconds=0.02)).measurements
    assert "operation not permitted" in (found.note or "")


def test_a_benchmark_of_several_profiles_measures_within_each_and_says_which(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ((1, 3, 4, 4), (1, 3, 6, 6), (1, 3, 8, 8))
    large = ((1, 3, 12, 10), (1, 3, 16, 16), (2, 3, 24, 24))
    plan = make_engine(CLASSIC, profiles=(large, small))
    words = ["bench", str(plan), "--cuda-graph", "off", "--seconds", "0.02"]

    def told(*more: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        captured = capsys.readouterr()
        assert stopped.value.code == 0, captured.err
        return captured.out

    # 48x48 and 96x96, brought into what each of the two takes.
    found = json.loads(told("--json"))["measurements"]
    assert [(one["profile"], one["height"]) for one in found] == [(0, 24), (1, 8)]
    sizes = ["--size", "8x8", "--size", "12x10", "--size", "4x6"]
    found = json.loads(told(*sizes, "--json"))["measurements"]
    assert [(one["profile"], one["height"]) for one in found] == [(1, 8), (0, 12), (1, 4)]
    table = told(*sizes)
    assert "profile 0" in table
    assert "profile 1" in table
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--size", "9x9"])
    assert stopped.value.code == 1
    refusal = "net.plan takes 1x3x12x10 to 2x3x24x24 or 1x3x4x4 to 1x3x8x8"
    assert refusal in capsys.readouterr().err


def test_upscale_loads_the_plugin_library_that_is_named(
    make_engine: MakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = default_plugin_path()
    info = plugin_info_from_library(library)
    plan = make_engine(CLASSIC)
    record = {
        "file": library.name,
        "sha256": sha256_from_file(library),
        "abi_version": info.abi_version,
        "architectures": [f"sm_{number}" for number in info.cubin_architectures],
    }
    manifest = json.loads(plan.with_suffix(".json").read_text())
    manifest |= {"plugin": record, "attention": "plugin"}
    plan.with_suffix(".json").write_text(json.dumps(manifest))
    write_image(tmp_path / "in.png", (batch(0, 8, 6, 3) * 255).astype(np.uint8))
    monkeypatch.setenv("TRT_HSPAN_PLUGIN", str(tmp_path / "none.so"))
    words = ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--engine", str(plan)]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    assert "none.so: no such file" in capsys.readouterr().err
    assert engine_double.LIBRARIES == []
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--plugin", str(library)])
    assert stopped.value.code == 0, capsys.readouterr().err
    assert [str(library.resolve())] == engine_double.LIBRARIES
    assert size_from_image_file(tmp_path / "out.png") == (16, 12)


def test_a_board_validates_and_times_its_engine(
    make_engine: MakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`jetson validate` and `jetson bench` with classic TensorRT, as a board runs them."""
    plan = make_engine(CLASSIC)
    manifest = json.loads(plan.with_suffix(".json").read_text())
    plan.with_suffix(".json").write_text(json.dumps(manifest | {"source_sha256": "c" * 64}))
    picture = (batch(0, 8, 6, 3) * 255).astype(np.uint8)
    with OnnxRuntimeRunner(plan.with_suffix(".onnx"), threads=1) as runner:
        output = runner.run(tensor_from_image(picture))[0]
    stored = StoredReference(
        network="small",
        source_sha256="c" * 64,
        scale=2,
        res_scale=0.1,
        made_by="ONNX Runtime",
        pictures=(ReferencePicture(name="noise", picture=picture, output=output),),
    )
    write_reference(tmp_path / "r.npz", stored)

    def told(*words: object) -> Any:
        with pytest.raises(SystemExit) as stopped:
            main(["jetson", *map(str, words), "--json"])
        assert stopped.value.code == 0
        return json.loads(capsys.readouterr().out)

    report = told("validate", plan, "--reference", tmp_path / "r.npz", "--min-psnr", 100)
    assert (report["passed"], report["emulated"]) == (True, False)
    assert report["candidate"].startswith("TensorRT 10.3.0")
    words = (
        "bench",
        plan,
        "--board",
        "orin-nano-8g",
        "--size",
        "6x8",
        "--seconds",
        "0.05",
        "--device",
        "gpu",
    )
    timed = told(*words)
    assert {one["cuda_graph"] for one in timed["measurements"]} == {True, False}
    assert all(not one["emulated"] for one in timed["measurements"])
    assert timed["floors_ms"].keys() == {"8x6"}
