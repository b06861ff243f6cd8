"""The reference backend."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
import torch
from support.golden import GOLDEN, GoldenNetwork

from trt_hspan.errors import HspanError, OutOfMemoryError, UsageError
from trt_hspan.files import sha256_from_file
from trt_hspan.runtime import torch_runner
from trt_hspan.runtime.torch_runner import TorchRunner


def test_computes_what_the_official_network_computed(golden_network: GoldenNetwork) -> None:
    with TorchRunner(golden_network.checkpoint, res_scale=golden_network.res_scale) as runner:
        output = runner.run(golden_network.input)
    np.testing.assert_allclose(output, golden_network.output, atol=1e-5)
    assert runner.scale == golden_network.output.shape[2] // golden_network.input.shape[2]


def test_says_what_it_is(small_x4: GoldenNetwork) -> None:
    runner = TorchRunner(small_x4.checkpoint)
    assert runner.label == f"PyTorch {torch.__version__.split('+')[0]}, FP32"
    assert not runner.emulated
    assert runner.source_sha256 == sha256_from_file(small_x4.checkpoint)


def test_a_run_too_small_to_share_takes_one_thread(
    small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TorchRunner(small_x4.checkpoint, threads=3)
    used: list[int] = []
    forward = runner._model.forward

    def counted(batch: torch.Tensor) -> torch.Tensor:
        used.append(torch.get_num_threads())
        return forward(batch)

    monkeypatch.setattr(runner._model, "forward", counted)
    with runner:
        runner.infer(np.zeros((1, 3, 4, 4), np.float32))
        runner.infer(np.zeros((1, 3, 64, 64), np.float32))
        runner.infer(np.zeros((1, 3, 4, 4), np.float32))
    assert used == [1, 3, 1]


def test_threads_are_used_inside_and_restored_after(small_x4: GoldenNetwork) -> None:
    before = torch.get_num_threads()
    with TorchRunner(small_x4.checkpoint, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_bad_checkpoint_is_reported_before_the_block() -> None:
    with pytest.raises(HspanError, match="no such file"):
        TorchRunner(GOLDEN / "none.pt")


def test_memory_estimate_grows_with_the_picture_and_not_with_its_square(small_x4: GoldenNetwork) -> None:
    runner = TorchRunner(small_x4.checkpoint)
    assert runner.memory_bytes((1, 3, 64, 64)) == 4 * runner.memory_bytes((1, 3, 32, 32))
    # Features at four times the size, float32: what a convolution reads, what it writes, and the shuffled copy.
    assert runner.memory_bytes((1, 3, 10, 10)) == 3 * 4 * 32 * 40 * 40


def test_bf16_stays_close_to_float32(small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    # The processor of the test may lack the instructions; the numbers are the same without them.
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: True)
    with TorchRunner(small_x4.checkpoint, res_scale=small_x4.res_scale, precision="bf16") as runner:
        output = runner.run(small_x4.input)
    assert runner.label.endswith(", BF16")
    assert output.dtype == np.float32
    # BF16 has 8 bits of significand: one rounding of numbers around 1 errs by 1e-3 on average, which is 60 dB.
    # Features are rounded some ten times on the way, but keep their float32 sums.
    error = np.mean((output - small_x4.output) ** 2)
    assert 0 < error < 10**-4.5


def test_what_sees_colors_computes_in_float32(
    small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: True)
    model: Any = TorchRunner(small_x4.checkpoint, precision="bf16")._model
    colors, features = torch.rand(1, 3, 4, 4), torch.rand(1, 32, 4, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for module, value in ((model.sub_mean, colors), (model.head, colors), (model.add_mean, colors)):
            assert module(value.bfloat16()).dtype == torch.float32
        assert model.tail[0](features).dtype == torch.bfloat16
        assert model.tail[1](features).dtype == torch.float32


def test_bf16_needs_a_processor_that_has_it(small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: False)
    with pytest.raises(HspanError, match=r"no BF16 instructions .*; leave it out"):
        TorchRunner(small_x4.checkpoint, precision="bf16")
    with pytest.raises(UsageError, match="--precision: got 'fp8', PyTorch on a CPU runs fp32 or bf16"):
        TorchRunner(small_x4.checkpoint, precision="fp8")


@pytest.fixture
def borrowed_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is this CPU: everything but CUDA itself."""
    monkeypatch.setattr(torch_runner, "gpu_device", lambda index, where: torch.device("cpu"))
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: True)


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 100), ("fp16", 62), ("bf16", 45)])
def test_a_gpu_runs_three_precisions(
    small_x4: GoldenNetwork, borrowed_cpu: None, precision: str, least_db: float
) -> None:
    """FP16 has three bits more than BF16, 18 dB."""
    with TorchRunner(small_x4.checkpoint, res_scale=small_x4.res_scale, precision=precision, gpu=0) as runner:
        output = runner.run(small_x4.input)
    assert runner.label.endswith(f" on the GPU, {precision.upper()}")
    assert output.dtype == np.float32
    error = float(np.mean((output - small_x4.output) ** 2))
    assert -10 * np.log10(max(error, 1e-20)) >= least_db
    assert (error > 1e-10) == (precision != "fp32")


def test_fp32_on_a_gpu_is_never_tf32(
    small_x4: GoldenNetwork, borrowed_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    runner = TorchRunner(small_x4.checkpoint, gpu=0)
    forward = runner._model.forward

    def noting(batch: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
        result: torch.Tensor = forward(batch)
        return result

    monkeypatch.setattr(runner._model, "forward", noting)
    before = torch.backends.cudnn.allow_tf32
    with runner:
        runner.run(small_x4.input)
    assert seen == [(True, False)]
    assert torch.backends.cudnn.allow_tf32 == before


def test_main_memory_of_a_run_on_a_gpu_is_input_and_result(
    small_x4: GoldenNetwork, borrowed_cpu: None
) -> None:
    runner = TorchRunner(small_x4.checkpoint, gpu=0)
    assert runner.memory_bytes((2, 3, 10, 20)) == 4 * 2 * 3 * (10 * 20 + 40 * 80)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
            OutOfMemoryError,
            "CUDA out of memory; ",
        ),
        (
            RuntimeError("CUDA error: an illegal address\nmore"),
            HspanError,
            "illegal address; take --device cpu",
        ),
    ],
    ids=["memory", "other"],
)
def test_errors_of_cuda_are_one_line(
    small_x4: GoldenNetwork,
    borrowed_cpu: None,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[HspanError],
    words: str,
) -> None:
    runner = TorchRunner(small_x4.checkpoint, gpu=0)

    def failing(batch: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(runner._model, "forward", failing)
    with runner, pytest.raises(kind, match=words):
        runner.run(small_x4.input)


def test_what_pytorch_raises_on_a_cpu_stays_as_it_is(
    small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TorchRunner(small_x4.checkpoint)

    def failing(batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal address")

    monkeypatch.setattr(runner._model, "forward", failing)
    with runner, pytest.raises(RuntimeError, match=r"^CUDA error: an illegal address$"):
        runner.run(small_x4.input)


def test_after_an_error_of_cuda_threads_are_restored_all_the_same(
    small_x4: GoldenNetwork, borrowed_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, before = TorchRunner(small_x4.checkpoint, gpu=1, threads=3), torch.get_num_threads()
    assert runner.label.endswith(" on the GPU 1, FP32")
    assert runner.on_gpu
    assert not TorchRunner(small_x4.checkpoint).on_gpu

    def failing(device: str) -> None:
        raise RuntimeError("CUDA error: an illegal address")

    with runner:
        monkeypatch.setattr(runner._model, "to", failing)
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def test_without_a_number_threads_are_pytorchs_own(small_x4: GoldenNetwork) -> None:
    before = torch.get_num_threads()
    with TorchRunner(small_x4.checkpoint) as runner:
        assert torch.get_num_threads() == before
        runner.infer(np.zeros((1, 3, 64, 64), np.float32))
        assert torch.get_num_threads() == before


class Blocks(torch.nn.Module):
    """Takes sides that are multiples of 4, in double precision; every pixel times a weight, twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
        self.unused = torch.nn.Conv2d(7, 3, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        rows = batch.unflatten(2, (-1, 4)).flatten(2, 3).unflatten(3, (-1, 4)).flatten(3, 4)
        return (rows * self.weight).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_module_runs_as_a_copy_in_float32_that_knows_what_it_takes() -> None:
    module = Blocks()
    runner = TorchRunner(module)
    assert (runner.where, runner.scale, runner.size_multiple, runner.min_size) == ("Blocks", 2, 4, 4)
    assert (runner.res_scale, runner.source_sha256, runner.emulated) == (None, None, False)
    batch = np.random.default_rng(0).random((2, 3, 8, 12), dtype=np.float32)
    with runner:
        output = runner.run(batch)
    np.testing.assert_array_equal(output, (batch / 2).repeat(2, 2).repeat(2, 3))
    assert module.weight.dtype == torch.float64
    assert module.training
    with runner, pytest.raises(HspanError, match="multiples of 4"):
        runner.run(batch[:, :, :6])
    # Without a convolution of neighborhoods, colors are what is upscaled.
    assert runner.memory_bytes((2, 3, 8, 12)) == 3 * 4 * 2 * 3 * 16 * 24


def test_a_pytorch_without_cuda_says_so(small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        HspanError, match=r"--device gpu:1: PyTorch .* is a build without CUDA; install one with CUDA"
    ):
        TorchRunner(small_x4.checkpoint, gpu=1)


def test_a_pytorch_without_a_driver_says_what_it_misses(
    small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", no_driver)
    with pytest.raises(
        HspanError, match="finds no GPU: Found no NVIDIA driver on your system; see trt-hspan doctor"
    ):
        TorchRunner(small_x4.checkpoint, gpu=0)


def test_a_gpu_that_is_not_there_is_named(small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        HspanError, match="--device gpu:2: there is no GPU 2 here, PyTorch finds 2; take --device cpu"
    ):
        TorchRunner(small_x4.checkpoint, gpu=2)
    assert torch_runner.gpu_device(1, "x") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("machine", "supported", "has"),
    [("x86_64", True, True), ("x86_64", False, False), ("aarch64", False, True)],
)
def test_processors_of_x86_alone_may_lack_bf16(
    monkeypatch: pytest.MonkeyPatch, machine: str, supported: bool, has: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert torch_runner.has_bf16_instructions(torch.device("cpu")) is has


def test_bf16_needs_a_gpu_that_has_it(small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runner, "gpu_device", lambda index, where: torch.device("cuda"))
    for capability, has in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, capability=capability: capability
        )
        assert torch_runner.has_bf16_instructions(torch.device("cuda")) == has
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(HspanError, match=r"this GPU has no BF16 instructions .*; take --precision fp16"):
        TorchRunner(small_x4.checkpoint, precision="bf16", gpu=0)
    with pytest.raises(UsageError, match="got 'int8', PyTorch on a GPU runs fp32, fp16 or bf16"):
        TorchRunner(small_x4.checkpoint, precision="int8", gpu=0)
