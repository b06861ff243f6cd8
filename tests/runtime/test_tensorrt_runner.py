"""The GPU runner up to the point where it needs a driver. What follows is in `test_tensorrt_on_standin` and, with the
mark `gpu`, in `test_tensorrt_on_gpu`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.golden import GoldenNetwork
from support.small_engine import SmallEngine

from trt_hspan.engine import passport, tensorrt_api
from trt_hspan.engine.manifest import PluginRecord
from trt_hspan.errors import HspanError
from trt_hspan.files import write_text
from trt_hspan.machine.gpu import GpuDriver, gpu_architectures
from trt_hspan.runtime.tensorrt_runner import TensorRtRunner, engine_can_execute

needs_no_gpu = pytest.mark.skipif(bool(gpu_architectures()), reason="this is about machines without a GPU")


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = GpuDriver(state="ready", cuda_version=(13, 0), architectures=("sm_86",))
    monkeypatch.setattr(passport, "gpu_driver", lambda: driver)


def changed(small_engine: SmallEngine, folder: Path, **fields: object) -> Path:
    """A copy of the engine whose manifest says something else."""
    plan = small_engine.copy_to(folder)
    manifest = dataclasses.replace(small_engine.manifest, **fields)
    write_text(plan.with_suffix(".json"), manifest.as_json())
    return plan


@needs_no_gpu
def test_says_why_an_engine_cannot_run_here(small_engine: SmallEngine) -> None:
    assert engine_can_execute(small_engine.manifest) == (False, "no NVIDIA GPU with a driver here")
    with (
        pytest.raises(
            HspanError,
            match=r"small\.plan: needs a GPU: no NVIDIA GPU with a driver here; install the driver",
        ),
        TensorRtRunner(small_engine.plan),
    ):
        pass


@pytest.mark.usefixtures("pretended_gpu")
def test_gpu_tensorrt_and_target_must_all_be_there(
    small_engine: SmallEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_can_execute(small_engine.manifest) == (True, "")
    assert engine_can_execute(small_engine.manifest, index=1) == (False, "there is no GPU 1 here")
    other = dataclasses.replace(small_engine.manifest, targets=("sm_89", "sm_120"))
    assert engine_can_execute(other) == (False, "built for sm_89, sm_120, this GPU is sm_86")
    monkeypatch.setattr(tensorrt_api, "installed_flavors", lambda: ("tensorrt",))
    assert engine_can_execute(small_engine.manifest) == (False, "tensorrt-rtx is not installed here")


def test_says_what_the_manifest_says(small_engine: SmallEngine, small_x4: GoldenNetwork) -> None:
    runner = TensorRtRunner(small_engine.plan)
    assert runner.label == f"TensorRT-RTX {small_engine.manifest.tensorrt_version}, FP16"
    assert (runner.scale, runner.emulated, runner.res_scale) == (4, False, small_x4.res_scale)
    assert runner.source_sha256 == small_engine.manifest.source_sha256
    assert (runner.size_multiple, runner.min_size) == (1, 1)


def test_limits_are_the_profiles(small_engine: SmallEngine) -> None:
    runner = TensorRtRunner(small_engine.plan)
    assert runner.shape_ranges == tuple((each.min, each.max) for each in small_engine.manifest.profiles)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 3, 32, 20)])
def test_shapes_of_the_profile_are_taken(small_engine: SmallEngine, shape: tuple[int, ...]) -> None:
    TensorRtRunner(small_engine.plan).require_shape(shape, "a.png")


@pytest.mark.parametrize("shape", [(1, 3, 15, 16), (1, 3, 16, 33), (2, 3, 16, 16), (3, 16, 16)])
def test_shapes_outside_the_profile_are_reported(small_engine: SmallEngine, shape: tuple[int, ...]) -> None:
    with pytest.raises(HspanError, match=r"a\.png: is .*takes 1x3x16x16 to 1x3x32x32 .*--min, --max"):
        TensorRtRunner(small_engine.plan).require_shape(shape, "a.png")


def test_main_memory_of_a_run_is_input_and_result_twice(small_engine: SmallEngine) -> None:
    """Pinned, and as they are handed over: float32, three channels, four times as high and wide."""
    assert TensorRtRunner(small_engine.plan).memory_bytes((2, 3, 16, 20)) == 2 * 4 * 2 * 3 * 17 * 16 * 20


def test_outside_of_a_block_there_is_no_session(small_engine: SmallEngine) -> None:
    runner = TensorRtRunner(small_engine.plan)
    assert runner.on_gpu
    for use in (lambda: runner.session, lambda: runner.device, runner.layer_information):
        with pytest.raises(RuntimeError, match="the runner is not active: use it in a `with` block"):
            use()


@needs_no_gpu
@pytest.mark.usefixtures("pretended_gpu")
def test_a_machine_without_pycuda_is_one_error_line(
    small_engine: SmallEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with (
        pytest.raises(HspanError, match=r"^PyCUDA: is not installed; pip install -e '\.\[gpu\]'$"),
        TensorRtRunner(small_engine.plan),
    ):
        pass


@pytest.mark.usefixtures("pretended_gpu")
def test_engine_of_another_release_is_refused(small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = changed(small_engine, tmp_path, tensorrt_version="1.2.3")
    with pytest.raises(HspanError, match=r"version 1\.2\.3, installed is"), TensorRtRunner(plan):
        pass


@pytest.mark.usefixtures("pretended_gpu")
def test_plan_swapped_after_the_check_is_not_loaded(small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = small_engine.copy_to(tmp_path)
    runner = TensorRtRunner(plan)
    plan.write_bytes(b"other code")
    with pytest.raises(HspanError, match="is not the plan of its manifest"), runner:
        pass


@pytest.mark.usefixtures("pretended_gpu")
def test_plugin_library_with_another_hash_is_not_loaded(
    small_engine: SmallEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = PluginRecord(file="libhspan_plugin.so", sha256="0" * 64, abi_version=1, architectures=("sm_86",))
    plan = changed(small_engine, tmp_path, plugin=record)
    library = tmp_path / "libhspan_plugin.so"
    library.write_bytes(b"other code")

    def never(*_: object) -> None:
        raise AssertionError("loaded a library that is not the manifest's")

    monkeypatch.setattr(tensorrt_api, "load_plugin_library", never)
    with (
        pytest.raises(HspanError, match=r"libhspan_plugin\.so: is no shared library"),
        TensorRtRunner(plan, plugin=library),
    ):
        pass
    with (
        pytest.raises(HspanError, match="there is no plugin library here"),
        TensorRtRunner(plan, plugin=tmp_path / "none.so"),
    ):
        pass


# On doubles of what needs a driver
# ----------------------------------------------------------------------------------------------


def batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def enlarged(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    return (one.repeat(4, 2).repeat(4, 3) for one in batches)


def test_many_batches_are_checked_before_and_after_the_gpu(small_engine: SmallEngine) -> None:
    runner = TensorRtRunner(small_engine.plan)
    runner._session = SimpleNamespace(run_many=enlarged)  # type: ignore[assignment]
    batches = [batch(1, 3, 16, 17), batch(1, 3, 20, 16), batch(1, 3, 16, 16)]
    for output, source in zip(runner.run_many(batches), batches, strict=True):
        np.testing.assert_array_equal(output, source.repeat(4, 2).repeat(4, 3))
    with pytest.raises(HspanError, match="input: is 1x3x15x16, but"):
        list(runner.run_many([*batches, batch(1, 3, 15, 16)]))
    runner._session = SimpleNamespace(run_many=iter)  # type: ignore[assignment]
    with pytest.raises(
        HspanError, match=r"gave an output of shape \(1, 3, 16, 17\), expected \(1, 3, 64, 68\)"
    ):
        list(runner.run_many(batches))


def test_a_plan_that_is_gone_after_the_check_is_one_line(small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = small_engine.copy_to(tmp_path)
    runner = TensorRtRunner(plan)
    assert runner._verified_plan() == plan.read_bytes()
    plan.unlink()
    with pytest.raises(HspanError, match=r"small\.plan: no such file"):
        runner._verified_plan()


def test_kernels_of_rtx_alone_are_kept_and_only_when_there_are_new_ones(
    small_engine: SmallEngine, tmp_path: Path
) -> None:
    plan = small_engine.copy_to(tmp_path)
    runner, cache = TensorRtRunner(plan), tmp_path / "small.runtime_cache"
    trt = SimpleNamespace(__version__=small_engine.manifest.tensorrt_version)
    assert runner._read_cache(trt) is None
    for data in (None, b"kernels"):
        runner._keep_cache(SimpleNamespace(runtime_cache_data=lambda data=data: data))  # type: ignore[arg-type]
        assert cache.exists() is (data is not None)
    assert runner._read_cache(trt) == b"kernels"
    runner._cache_read = b"kernels"
    cache.unlink()
    runner._keep_cache(SimpleNamespace(runtime_cache_data=lambda: b"kernels"))  # type: ignore[arg-type]
    assert not cache.exists()
    runner._keep_cache(SimpleNamespace(runtime_cache_data=lambda: b"more"))  # type: ignore[arg-type]
    assert runner._read_cache(trt) == b"more"
    classic = TensorRtRunner(changed(small_engine, tmp_path, flavor="tensorrt"))
    assert classic._read_cache(trt) is None


def test_what_was_opened_is_closed_in_the_order_in_which_it_depends_on_each_other(
    small_engine: SmallEngine,
) -> None:
    log: list[str] = []

    @contextmanager
    def current() -> Iterator[None]:
        log.append("current")
        yield
        log.append("left")

    runner = TensorRtRunner(small_engine.plan)
    runner.deactivate()  # nothing was
    opened = {
        "device": SimpleNamespace(current=current),
        "engine": SimpleNamespace(
            close=lambda: log.append("engine"), runtime_cache_data=lambda: log.append("cache")
        ),
        "session": SimpleNamespace(close=lambda: log.append("session")),
    }
    for parts, expected in (
        (("device",), []),
        (("device", "engine"), ["current", "engine", "left"]),
        (("device", "engine", "session"), ["session", "current", "cache", "engine", "left"]),
    ):
        for name in parts:
            setattr(runner, f"_{name}", opened[name])
        runner.deactivate()
        assert log == expected
        assert (runner._session, runner._engine, runner._device) == (None, None, None)
        log.clear()
