"""The eight flips and turns: which they are, their way back, and the mean of what a network makes of them."""

from __future__ import annotations

import numpy as np

from trt_hspan.upscaling.self_ensemble import TURNS, ensemble_mean, inverse_transform, transform

BATCH = np.random.default_rng(0).random((2, 3, 2, 4), dtype=np.float32)


def turn_reference(index: int) -> np.ndarray:
    columns, rows, swapped = index % 2, index // 2 % 2, index // 4
    turned = np.flip(BATCH, [axis for axis, is_flipped in ((3, columns), (2, rows)) if is_flipped])
    return np.swapaxes(turned, 2, 3) if swapped else turned


def test_turns_are_all_there_are_in_the_official_order_and_can_be_taken_back() -> None:
    assert TURNS == 8
    turns = [transform(BATCH, index) for index in range(TURNS)]
    assert len({(turn.shape, turn.tobytes()) for turn in turns}) == 8
    for index, turn in enumerate(turns):
        np.testing.assert_array_equal(turn, turn_reference(index))
        np.testing.assert_array_equal(inverse_transform(turn, index), BATCH)


def test_the_mean_is_that_of_all_turns_turned_back() -> None:
    given: list[np.ndarray] = []
    results: list[np.ndarray] = []

    def run(turn: np.ndarray, index: int) -> np.ndarray:
        assert turn.flags.c_contiguous
        assert index == len(given)
        given.append(turn)
        results.append(turn.repeat(2, 2).repeat(2, 3) * np.float32(2**index))
        return results[-1]

    before = BATCH.copy()
    mean = ensemble_mean(BATCH, run)
    for index, (turn, result) in enumerate(zip(given, results, strict=True)):
        np.testing.assert_array_equal(turn, turn_reference(index))
        np.testing.assert_array_equal(result, turn.repeat(2, 2).repeat(2, 3) * np.float32(2**index))
    np.testing.assert_array_equal(BATCH, before)
    assert mean.flags.c_contiguous
    # Sums of eight float32 numbers of up to 255 in all, then an eighth of it.
    np.testing.assert_allclose(mean, BATCH.repeat(2, 2).repeat(2, 3) * (255 / 8), rtol=8 * 2**-24)


def test_an_axis_of_one_pixel_has_no_negative_stride() -> None:
    def run(turn: np.ndarray, index: int) -> np.ndarray:
        assert min(turn.strides) > 0
        return turn

    line = np.random.default_rng(0).random((1, 3, 1, 5), dtype=np.float32)
    np.testing.assert_allclose(ensemble_mean(line, run), line, rtol=2**-22)
