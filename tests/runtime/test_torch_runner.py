"""The reference backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.golden import GOLDEN, GoldenNetwork

from trt_hspan.errors import HspanError, UsageError
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
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda: True)
    with TorchRunner(small_x4.checkpoint, res_scale=small_x4.res_scale, precision="bf16") as runner:
        output = runner.run(small_x4.input)
    assert runner.label.endswith(", BF16")
    assert output.dtype == np.float32
    # BF16 has 8 bits of significand: one rounding of numbers around 1 errs by 1e-3 on average, which is 60 dB.
    # Features are rounded some ten times on the way, but keep their float32 sums.
    error = np.mean((output - small_x4.output) ** 2)
    assert 0 < error < 10**-4.5


def test_bf16_needs_a_processor_that_has_it(small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda: False)
    with pytest.raises(HspanError, match=r"no BF16 instructions .*; leave it out"):
        TorchRunner(small_x4.checkpoint, precision="bf16")
    with pytest.raises(UsageError, match="--precision: got 'fp8', PyTorch on a CPU runs fp32 or bf16"):
        TorchRunner(small_x4.checkpoint, precision="fp8")
