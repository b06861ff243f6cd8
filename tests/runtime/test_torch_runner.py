"""The reference backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.golden import GOLDEN, GoldenNetwork

from trt_hspan.errors import HspanError
from trt_hspan.files import sha256_from_file
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


def test_bad_checkpoint_is_told_before_the_block() -> None:
    with pytest.raises(HspanError, match="no such file"):
        TorchRunner(GOLDEN / "none.pt")


def test_memory_estimate_grows_with_the_picture_and_not_with_its_square(small_x4: GoldenNetwork) -> None:
    runner = TorchRunner(small_x4.checkpoint)
    assert runner.memory_bytes((1, 3, 64, 64)) == 4 * runner.memory_bytes((1, 3, 32, 32))
    # The up-sampler's last convolution and its shuffled copy: 32 features at four times the size, float32.
    assert runner.memory_bytes((1, 3, 10, 10)) == 2 * 4 * 32 * 40 * 40
