"""What every runner promises, whatever its backend."""

from __future__ import annotations

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.runtime.runner import is_for_one_thread


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
    assert runner.shape_ranges == (((None, 3, None, None),) * 2,)
    runner.fixed_shape = (1, 3, None, 6)
    assert runner.shape_ranges == (((1, 3, None, 6),) * 2,)
    runner.min_size = 4
    assert runner.shape_ranges == (((1, 3, 4, 6), (1, 3, None, 6)),)
    runner.profiles = (((1, 3, 8, 8), (2, 3, 9, 9)), ((1, 3, 2, 8), (1, 3, 4, 9)))
    assert runner.shape_ranges == runner.profiles


def test_each_profile_is_held_to_for_itself() -> None:
    runner = NearestRunner(scale=2)
    runner.profiles = (((1, 3, 8, 8), (2, 3, 9, 9)), ((1, 3, 2, 8), (1, 3, 4, 9)))
    for shape in ((1, 3, 8, 8), (2, 3, 9, 9), (1, 3, 2, 8), (1, 3, 4, 9)):
        runner.require_shape(shape, "input")
    for shape in ((1, 3, 7, 8), (1, 3, 9, 10), (3, 3, 9, 9), (2, 3, 4, 9), (1, 3, 4), (1, 4, 8, 8)):
        with pytest.raises(HspanError, match=r"takes 1x3x8x8 to 2x3x9x9 or 1x3x2x8 to 1x3x4x9"):
            runner.require_shape(shape, "input")


def test_sides_are_multiples_from_the_smallest_on() -> None:
    runner = NearestRunner(scale=2)
    runner.size_multiple = runner.min_size = 4
    runner.require_shape((1, 3, 4, 8), "input")
    for shape in ((1, 3, 4, 6), (1, 3, 6, 4)):
        with pytest.raises(HspanError, match="takes sides that are multiples of 4; give such a size"):
            runner.require_shape(shape, "input")
    runner.min_size = 8
    runner.require_shape((1, 3, 8, 8), "input")
    with pytest.raises(
        HspanError, match="is 1x3x4x8, but nearest takes sides that are multiples of 4 from 8"
    ):
        runner.require_shape((1, 3, 4, 8), "input")


def test_a_run_of_less_than_64_million_multiplications_is_for_one_thread() -> None:
    assert is_for_one_thread((2, 3, 4, 8), 999_999)
    assert not is_for_one_thread((2, 3, 4, 8), 1_000_000)
    assert not is_for_one_thread((1, 3, 1, 1), 64_000_000)
    assert is_for_one_thread((1, 3, 1, 1), 63_999_999)


def test_without_limits_of_its_own_a_network_on_a_cpu_takes_a_single_pixel() -> None:
    runner = active(NearestRunner(scale=2))
    assert runner.run(np.zeros((1, 3, 1, 1), np.float32)).shape == (1, 3, 2, 2)
    assert (runner.on_gpu, runner.size_multiple, runner.min_size) == (False, 1, 1)


def test_many_batches_of_several_shapes_come_in_order() -> None:
    batches = [np.full((1, 3, 2, side), side, np.float32) for side in (3, 1, 2)]
    outputs = list(active(NearestRunner(scale=2)).run_many(batches))
    assert [(output.shape[3], output.max()) for output in outputs] == [(6, 3), (2, 1), (4, 2)]
