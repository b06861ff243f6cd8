"""Adaptive rounding: never worse than nearest, and as good as trying everything where that is possible."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from trt_hspan.quantization.rounding import InputMoments, best_flips, error_energy
from trt_hspan.quantization.scales import quantized_weights, weight_scales


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
    return error_energy(weight, stored * scales.reshape(-1, 1, 1, 1), moments)


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


def test_strides_dilations_and_groups_are_left_to_nearest_rounding() -> None:
    for attribute in ({"strides": [2, 2]}, {"dilations": [2, 2]}, {"group": 2}):
        assert not InputMoments.is_possible(helper.make_node("Conv", ["x", "w"], ["y"], **attribute))
    assert InputMoments.is_possible(helper.make_node("Conv", ["x", "w"], ["y"]))
    assert not InputMoments.is_possible(helper.make_node("Add", ["x", "w"], ["y"]))
