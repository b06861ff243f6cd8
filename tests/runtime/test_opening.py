"""Which runner a file gets, and engines that cannot run here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.golden import GoldenNetwork
from support.small_engine import SmallEngine
from support.small_networks import write_attention_network

from trt_hspan.engine.gpu import gpu_architectures
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.runtime.opening import open_runner
from trt_hspan.runtime.torch_runner import TorchRunner

needs_no_gpu = pytest.mark.skipif(bool(gpu_architectures()), reason="a GPU would run the engine itself")


def test_checkpoint_opens_in_pytorch(small_x4: GoldenNetwork) -> None:
    runner = open_runner(small_x4.checkpoint, res_scale=0.25)
    assert isinstance(runner, TorchRunner)
    assert runner.res_scale == 0.25


def test_onnx_file_opens_in_onnxruntime(tmp_path: Path) -> None:
    path = tmp_path / "A.ONNX"
    shutil.copy(write_attention_network(tmp_path / "a.onnx"), path)
    runner = open_runner(path)
    assert isinstance(runner, OnnxRuntimeRunner)
    assert runner.why_emulated is None


def test_other_suffix_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no network")
    with pytest.raises(UsageError, match="not a checkpoint's name"):
        open_runner(tmp_path / "a.txt")


@needs_no_gpu
def test_engine_without_a_gpu_is_emulated_from_its_onnx_file(small_engine: SmallEngine) -> None:
    runner = open_runner(small_engine.plan)
    assert isinstance(runner, OnnxRuntimeRunner)
    assert runner.emulated
    assert runner.why_emulated == "no NVIDIA GPU with a driver here"
    assert runner.where == str(small_engine.plan)
    image = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
    with runner, open_runner(small_engine.onnx) as same:
        np.testing.assert_array_equal(runner.run(image), same.run(image))


def test_engine_with_another_onnx_file_is_refused(small_engine: SmallEngine, tmp_path: Path) -> None:
    plan = small_engine.copy_to(tmp_path)
    plan.with_suffix(".onnx").write_bytes(b"another")
    with pytest.raises(HspanError, match="not of one build"):
        open_runner(plan)


def test_engine_without_manifest_or_with_a_changed_plan_is_refused(
    small_engine: SmallEngine, tmp_path: Path
) -> None:
    plan = small_engine.copy_to(tmp_path)
    plan.write_bytes(plan.read_bytes() + b"x")
    with pytest.raises(HspanError, match="not of one build"):
        open_runner(plan)
    plan.with_suffix(".json").unlink()
    with pytest.raises(HspanError, match="nothing vouches for this engine"):
        open_runner(plan)
    with pytest.raises(HspanError, match="no such file"):
        open_runner(tmp_path / "none.plan")
