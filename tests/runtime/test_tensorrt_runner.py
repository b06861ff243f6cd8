"""The GPU runner up to the point where it needs a driver. What follows is in `test_tensorrt_on_standin` and, with the
mark `gpu`, in `test_tensorrt_on_gpu`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

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
    other = dataclasses.replace(small_engine.manifest, targets=("sm_89", "sm_120"))
    assert engine_can_execute(other) == (False, "built for sm_89, sm_120, this GPU is sm_86")
    monkeypatch.setattr(tensorrt_api, "installed_flavors", lambda: ("tensorrt",))
    assert engine_can_execute(small_engine.manifest) == (False, "tensorrt-rtx is not installed here")


def test_says_what_the_manifest_says(small_engine: SmallEngine, small_x4: GoldenNetwork) -> None:
    runner = TensorRtRunner(small_engine.plan)
    assert runner.label == f"TensorRT-RTX {small_engine.manifest.tensorrt_version}, FP16"
    assert (runner.scale, runner.emulated, runner.res_scale) == (4, False, small_x4.res_scale)
    assert runner.source_sha256 == small_engine.manifest.source_sha256


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
