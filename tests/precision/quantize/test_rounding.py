"""Adaptive rounding: never worse than nearest, and as good as trying everything where that is possible."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from trt_hspan.precision.quantize import rounding
from trt_hspan.precision.quantize.rounding import InputMoments, best_flips
from trt_hspan.precision.quantize.scales import quantized_weights, weight_scales


def problem(seed: int, shape: tuple[int, int, int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights, and second moments of inputs that resemble each other."""
    random = np.random.default_rng(seed)
    size = int(np.prod(shape[1:]))
    inputs = random.normal(size=(4 * size, size)) + 3.0 * random.normal(size=(4 * size, 1))
    return random.normal(size=shape), inputs.T @ inputs / len(inputs)


def energy(
    weight: NDArray[np.float64], moments: NDArray[np.float64], flips: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    scales = weight_scales(weight, "int8", np.float64)
    stored = quantized_weights(weight, scales, "int8", flips).astype(np.float64)
    errors = (stored * scales.reshape(-1, 1, 1, 1) - weight).reshape(len(weight), -1)
    result: NDArray[np.float64] = np.einsum("ok,kl,ol->o", errors, moments, errors)
    return result


@pytest.mark.parametrize("seed", range(3))
def test_no_channel_gets_worse_and_correlated_inputs_get_much_better(seed: int) -> None:
    weight, moments = problem(seed, (5, 4, 3, 3))
    flips = best_flips(weight, weight_scales(weight, "int8", np.float64), moments)
    before, after = energy(weight, moments, None), energy(weight, moments, flips)
    assert (after <= before * (1 + 1e-9)).all()
    assert after.mean() < before.mean() / 2


def test_few_weights_end_within_a_quarter_of_the_best_of_all_choices() -> None:
    weight, moments = problem(7, (1, 8, 1, 1))
    flips = best_flips(weight, weight_scales(weight, "int8", np.float64), moments)
    every = [
        energy(weight, moments, np.array(bits).reshape(weight.shape))[0]
        for bits in itertools.product([False, True], repeat=8)
    ]
    assert energy(weight, moments, flips)[0] <= 1.25 * min(every)


def descent_reference(
    weight: NDArray[np.float64], scales: NDArray[np.float64], moments: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """The best single flip from nearest rounding until none gains, channel by channel."""
    ratio = weight.reshape(len(weight), -1) / scales[:, None]
    flips = np.zeros(ratio.shape, dtype=bool)
    for row, exact in enumerate(ratio):
        error = np.rint(exact) - exact
        step = np.where(exact > np.rint(exact), 1.0, -1.0)
        step[np.abs(np.rint(exact) + step) > 127] = 0.0
        while True:
            move = np.where(flips[row], -step, step)
            gain = np.diag(moments) * move**2 + 2.0 * move * (error @ moments)
            best = gain.argmin()
            if gain[best] >= -1e-9:
                break
            error[best] += move[best]
            flips[row, best] ^= True
    return flips.reshape(weight.shape)


def test_smooth_inputs_end_below_what_descent_from_nearest_rounding_reaches() -> None:
    totals = np.zeros(2)
    for seed in range(4):
        random = np.random.default_rng(seed)
        # Three shades mixed into 16 channels, the same at all nine taps but for a little noise.
        shades = random.normal(size=(2000, 3)) @ random.normal(size=(3, 16))
        inputs = np.repeat(shades, 9, axis=1) + 0.05 * random.normal(size=(2000, 144))
        weight, moments = random.normal(size=(8, 16, 3, 3)), inputs.T @ inputs / len(inputs)
        scales = weight_scales(weight, "int8", np.float64)
        plain = energy(weight, moments, descent_reference(weight, scales, moments))
        found = energy(weight, moments, best_flips(weight, scales, moments))
        assert (found <= plain * (1 + 1e-9)).all()
        totals += plain.sum(), found.sum()
    assert totals[1] < 0.8 * totals[0]


def test_an_input_of_zeros_leaves_nearest_rounding() -> None:
    weight, _ = problem(2, (3, 2, 3, 3))
    assert not best_flips(weight, weight_scales(weight, "int8", np.float64), np.zeros((18, 18))).any()


def test_unrelated_inputs_leave_nearest_rounding() -> None:
    weight, _ = problem(1, (3, 2, 3, 3))
    assert not best_flips(weight, weight_scales(weight, "int8", np.float64), np.eye(18)).any()


def test_moments_are_those_of_the_convolutions_patches() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    moments = InputMoments(node, (4, 3, 3, 3))
    values = np.random.default_rng(0).normal(size=(1, 3, 6, 7)).astype(np.float32)
    moments.add(values)
    patches = torch.nn.functional.unfold(torch.from_numpy(values), 3, padding=1)[0].double().numpy()
    np.testing.assert_allclose(moments.mean, patches @ patches.T / patches.shape[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "step"), [(32, 1), (33, 2), (64, 4), (65, 5)])
def test_of_a_large_tile_a_thousand_patches_are_taken_evenly(side: int, step: int) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    values = np.random.default_rng(0).normal(size=(1, 2, side, side)).astype(np.float32)
    moments = InputMoments(node, (1, 2, 1, 1))
    moments.add(values)
    patches = values.reshape(2, -1)[:, ::step].astype(np.float64)
    np.testing.assert_allclose(moments.mean, patches @ patches.T / patches.shape[1], rtol=1e-5, atol=1e-6)


def test_moments_are_means_over_all_tiles_with_each_side_padded_as_the_node_says() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[0, 1, 2, 3])
    moments = InputMoments(node, (1, 1, 2, 3))
    assert not moments.mean.any()
    patches = []
    for height in (3, 5):
        values = np.random.default_rng(height).normal(size=(1, 1, height, 4)).astype(np.float32)
        moments.add(values)
        padded = torch.nn.functional.pad(torch.from_numpy(values), (1, 3, 0, 2))
        patches.append(torch.nn.functional.unfold(padded, (2, 3))[0].double().numpy())
    every = np.concatenate(patches, axis=1)
    np.testing.assert_allclose(moments.mean, every @ every.T / every.shape[1], rtol=1e-5, atol=1e-6)
    assert moments.tensor == "x"


@pytest.mark.parametrize(
    ("weights", "importance", "first_is_flipped"),
    [
        ([126.4, 0.4, 0.4], [1.5, 1, 1], True),
        ([-126.4, -0.4, -0.4], [1.5, 1, 1], True),
        ([127.4, 0.4, 0.4], [1.5, 1, 1], False),  # to 128
        ([-127.4, -0.4, -0.4], [1.5, 1, 1], False),
        ([130.0, 0.4, 0.4], [1.5, 1, 1], False),  # clamped
        ([3.0, 0.6, 0.6, 0.6], [1.3, 1, 1, 1], False),  # exact: it has no other neighbor
    ],
)
def test_only_a_weight_between_two_integers_up_to_127_is_flipped(
    weights: list[float], importance: list[float], first_is_flipped: bool
) -> None:
    """All inputs are one, more or less of it: flipping the first weight alone would bring the sum nearest."""
    moments = np.outer(importance, importance)
    flips = best_flips(np.array(weights).reshape(1, -1, 1, 1), np.ones(1), moments).ravel()
    assert bool(flips[0]) is first_is_flipped
    assert flips.any()


def test_the_number_of_weights_between_updates_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = problem(5, (4, 10, 3, 3))
    scales = weight_scales(weight, "int8", np.float64)
    errors = np.rint(weight.reshape(4, -1) / scales[:, None]) - weight.reshape(4, -1) / scales[:, None]
    steps = np.where(errors < 0, 1.0, -1.0)
    every = []
    for block in (1, 7, 64, 90, 1000):
        monkeypatch.setattr(rounding, "_BLOCK", block)
        every.append(rounding._sequential_flips(errors, steps, moments))
    assert every[0].any()
    assert all((flips == every[0]).all() for flips in every)


def test_strides_dilations_and_groups_are_left_to_nearest_rounding() -> None:
    for attribute in ({"strides": [2, 2]}, {"dilations": [2, 2]}, {"group": 2}):
        assert not InputMoments.is_possible(helper.make_node("Conv", ["x", "w"], ["y"], **attribute))
    assert InputMoments.is_possible(helper.make_node("Conv", ["x", "w"], ["y"]))
    assert not InputMoments.is_possible(helper.make_node("Add", ["x", "w"], ["y"]))
