"""What every runner promises, whatever its backend."""

from __future__ import annotations

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError


class Unstartable(NearestRunner):
    def activate(self) -> None:
        super().activate()
        raise HspanError("nearest", "cannot start")


def active(runner: NearestRunner) -> NearestRunner:
    runner.activate()
    return runner


def test_active_inside_the_block_and_freed_after_it() -> None:
    runner = NearestRunner(scale=2)
    with runner as entered:
        assert entered is runner
        assert runner.active
    assert not runner.active


def test_freed_when_the_block_or_the_start_fails() -> None:
    runner = NearestRunner(scale=2)
    with pytest.raises(KeyboardInterrupt), runner:
        raise KeyboardInterrupt
    assert not runner.active
    broken = Unstartable()
    with pytest.raises(HspanError, match="cannot start"), broken:
        pass
    assert not broken.active


def test_any_memory_layout_is_taken() -> None:
    batch = np.random.default_rng(0).random((4, 6, 3), dtype=np.float32).transpose(2, 0, 1)[None]
    assert not batch.flags.c_contiguous
    assert active(NearestRunner(scale=2)).run(batch).shape == (1, 3, 8, 12)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 4, 4, 4), (3, 4, 4), (1, 3, 0, 4), (0, 3, 4, 4)])
def test_shape_that_is_no_rgb_batch_is_reported(shape: tuple[int, ...]) -> None:
    with pytest.raises(HspanError, match=r"takes anyx3xanyxany"):
        active(NearestRunner(scale=2)).run(np.zeros(shape, np.float32))


def test_fixed_shape_is_held_to() -> None:
    runner = active(NearestRunner(scale=2))
    runner.fixed_shape = (1, 3, 4, 6)
    assert runner.run(np.zeros((1, 3, 4, 6), np.float32)).shape == (1, 3, 8, 12)
    with pytest.raises(HspanError, match=r"input: is 1x3x6x4, but nearest takes 1x3x4x6 .*--static"):
        runner.run(np.zeros((1, 3, 6, 4), np.float32))


def test_other_number_types_are_refused() -> None:
    with pytest.raises(HspanError, match="expected a float32 input, got float64"):
        active(NearestRunner(scale=2)).run(np.zeros((1, 3, 4, 4)))


def test_output_of_another_size_than_the_scale_says_is_an_error() -> None:
    runner = active(NearestRunner(scale=2))
    runner.scale = 3
    with pytest.raises(HspanError, match=r"output of shape \(1, 3, 8, 8\), expected \(1, 3, 12, 12\)"):
        runner.run(np.zeros((1, 3, 4, 4), np.float32))


def test_label_says_backend_precision_and_emulation() -> None:
    runner = NearestRunner(scale=2)
    assert runner.label == "numpy, FP32"
    runner.emulated, runner.precision = True, "bf16"
    assert runner.label == "numpy, BF16, emulated on CPU"


def test_limits_of_a_run_follow_the_fixed_shape() -> None:
    runner = NearestRunner(scale=2)
    assert runner.min_shape == runner.max_shape == (None, 3, None, None)
    runner.fixed_shape = (1, 3, None, 6)
    assert runner.min_shape == runner.max_shape == (1, 3, None, 6)
