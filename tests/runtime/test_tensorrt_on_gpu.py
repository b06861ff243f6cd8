"""The GPU runner on a GPU, with the TensorRT that is installed. Skipped only where there is no driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.golden import GoldenNetwork

from trt_hspan.engine.build import build_engine
from trt_hspan.engine.spec import EngineSpec, ProfileRequest
from trt_hspan.evaluation.metrics import agreement
from trt_hspan.machine.gpu import gpu_architectures
from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.runtime.tensorrt_runner import TensorRtRunner
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.sizes import ImageSize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu_architectures(), reason="no NVIDIA driver"),
]

RUNS = 1000
# CUDA allocates in units of 2 MiB (CUDA C++ Programming Guide, "Virtual Memory Management"); one unit of slack.
GROWTH_BYTES = 2 << 20


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, exported) -> Path:
    output = tmp_path_factory.mktemp("gpu") / f"{request.param}.plan"
    profile = ProfileRequest(max=ImageSize(height=64, width=64), max_batch=2)
    build_engine(
        EngineSpec(onnx=exported("small_x4", precision=request.param), output=output, profiles=(profile,))
    )
    return output


@pytest.fixture
def engine(plan: Path) -> Iterator[TensorRtRunner]:
    with TensorRtRunner(plan) as runner:
        yield runner


def batch(seed: int, *shape: int) -> Float32Array:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 3, 64, 64), (2, 3, 33, 47), (2, 3, 64, 64)])
def test_every_corner_of_the_profile_agrees_with_onnx_runtime(
    engine: TensorRtRunner, plan: Path, shape: tuple[int, ...]
) -> None:
    source = batch(0, *shape)
    with OnnxRuntimeRunner(plan.with_suffix(".onnx")) as reference:
        # The same strongly typed graph; sums in another order. FP16 on a CPU agrees with FP32 to 88 dB, and TF32,
        # which TensorRT is not allowed here, would miss 80.
        bar = 100 if engine.precision == "fp32" else 60
        assert agreement(engine.run(source), reference.run(source)).psnr_db > bar


def test_the_engine_agrees_with_pytorch(engine: TensorRtRunner, small_x4: GoldenNetwork) -> None:
    source = batch(0, 1, 3, 32, 24)
    with TorchRunner(small_x4.checkpoint, res_scale=small_x4.res_scale) as reference:
        # The bar of `trt-hspan validate`.
        assert agreement(engine.run(source), reference.run(source)).psnr_db > 50


def test_a_graph_is_captured_and_its_replay_is_the_same_picture(engine: TensorRtRunner) -> None:
    source = batch(0, 1, 3, 32, 32)
    outputs = [engine.run(source) for _ in range(5)]
    assert engine.session.capture_failures == {}
    assert engine.session.graph_launches == 3
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_overlapped_batches_are_those_of_single_runs(engine: TensorRtRunner) -> None:
    batches = [batch(seed, 1, 3, 32, 20 + seed % 3) for seed in range(30)]
    single = [engine.run(one) for one in batches]
    for output, expected in zip(engine.run_many(batches), single, strict=True):
        np.testing.assert_array_equal(output, expected)


def test_a_thousand_runs_take_no_more_memory(engine: TensorRtRunner) -> None:
    batches = [batch(seed, 1, 3, 32, 32 + 8 * (seed % 2)) for seed in range(20)]
    for one in batches:
        engine.run(one)
    list(engine.run_many(batches * 3))

    def free_bytes() -> int:
        with engine.device.current():
            return engine.device.memory_bytes()[0]

    before, held = free_bytes(), engine.session.memory
    for run in range(RUNS):
        engine.run(batches[run % len(batches)])
    assert engine.session.memory == held
    assert before - free_bytes() <= GROWTH_BYTES


def test_the_stages_are_timed(plan: Path) -> None:
    with TensorRtRunner(plan, timing=True) as runner:
        runner.run(batch(0, 1, 3, 64, 64))
        times = runner.session.last_times
    assert times is not None
    assert min(times.upload_ms, times.compute_ms, times.download_ms) > 0
