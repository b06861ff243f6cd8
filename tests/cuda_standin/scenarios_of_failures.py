"""The GPU runner on the stand-in driver when calls fail, memory ends, or plan, cache or GPU is wrong.

Not collected by name: `tests/runtime/test_tensorrt_on_standin.py` runs it in processes of its own, once with work done
at once and once with work done only when something waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from typing import Any

import pytest

from cuda_standin import engine_double
from cuda_standin.conftest import CLASSIC, RTX, WIDE, Driver
from cuda_standin.expectations import MakeEngine, batch, expect
from trt_hspan.engine.manifest import PluginRecord
from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.tensorrt_runner import TensorRtRunner

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
    with pytest.raises(OutOfMemoryError, match="cannot create an execution context"), TensorRtRunner(plan):
        pass


def test_whoever_waits_for_an_integrated_gpu_does_not_spin(make_engine: MakeEngine, driver: Driver) -> None:
    plan, integrated = (
        make_engine(CLASSIC),
        ctypes.c_int.in_dll(ctypes.CDLL("libcuda.so.1"), "custandin_integrated"),
    )
    for shared in (0, 1):
        integrated.value = shared
        before = driver.count("blocking events made"), driver.count("made event")
        with TensorRtRunner(plan, timing=True) as runner:
            expect(plan, [batch(0, 1, 3, 8, 8)], [runner.run(batch(0, 1, 3, 8, 8))])
        blocking = driver.count("blocking events made") - before[0]
        made = driver.count("made event") - before[1]
        assert made > 0
        assert blocking == shared * made
    integrated.value = 0


def test_what_a_binding_raises_is_one_line(make_engine: MakeEngine) -> None:
    """TensorRT's Python bindings raise where C++ returns an error."""
    plan = make_engine(CLASSIC, profiles=(WIDE, WIDE))
    with TensorRtRunner(plan) as runner:
        engine_double.ANSWERS["infer_shapes raises"] = True
        line = r"net\.plan: cannot infer the output's shape for 1x3x8x8: infer_shapes error code: -1; build"
        with pytest.raises(HspanError, match=line):
            runner.run(batch(0, 1, 3, 8, 8))
        engine_double.ANSWERS.clear()
        expect(plan, [batch(0, 1, 3, 8, 8)], [runner.run(batch(0, 1, 3, 8, 8))])
    engine_double.ANSWERS["profiles raise"] = True
    line = r"net\.plan: cannot select profile 0: Error in set optimization profile async\.; build"
    with pytest.raises(HspanError, match=line), TensorRtRunner(plan):
        pass


@pytest.mark.parametrize("trait", ["embedded-plugin", "version-compatible"])
def test_code_in_a_plan_is_allowed_where_its_manifest_says_so(make_engine: MakeEngine, trait: str) -> None:
    plugin = PluginRecord(file="none.so", sha256="0" * 64, abi_version=1, architectures=("sm_86",))
    embedded = {"traits": (trait,), "plugin": plugin if trait == "embedded-plugin" else None}
    code = {
        "cubin_architectures": [86],
        "ptx_architectures": [],
        "cuda_version": "12.4",
        "ptx_isa_version": "8.4",
    }
    inside = f"hspan-plugin-info:{json.dumps(code)}\0"
    plan = make_engine(CLASSIC, has_code=True, changes=embedded, inside=inside)
    with TensorRtRunner(plan) as runner:
        expect(plan, [batch(0, 1, 3, 8, 8)], [runner.run(batch(0, 1, 3, 8, 8))])
    assert engine_double.LIBRARIES == []
    plan = make_engine(CLASSIC, has_code=True)
    with pytest.raises(HspanError, match="host code is not allowed"), TensorRtRunner(plan):
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
        (2, "contains no code for this GPU"),
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
