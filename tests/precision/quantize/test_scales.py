"""Scales and rounding of numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from trt_hspan.precision.quantize.scales import quantized_weights, scale_from_range, weight_scales


def test_the_largest_value_maps_to_the_end_of_the_range() -> None:
    assert scale_from_range(254.0, "int8", np.float32) == 2.0
    assert scale_from_range(224.0, "fp8", np.float32) == 0.5
    assert scale_from_range(1.0, "int8", np.float16) == float(np.float16(1 / 127))


@pytest.mark.parametrize("largest", [0.0, -1.0, np.inf, np.nan, 1e-8])
def test_a_range_without_a_scale_is_refused(largest: float) -> None:
    with pytest.raises(ValueError, match="has no int8 scale in float16"):
        scale_from_range(largest, "int8", np.float16)


def test_each_output_channel_has_its_own_scale() -> None:
    weight = np.array([[[[1.0, -2.54]]], [[[0.127, 0.0]]]], np.float32)
    scales = weight_scales(weight, "int8", np.float32)
    np.testing.assert_allclose(scales, [0.02, 0.001], rtol=1e-6)
    assert quantized_weights(weight, scales, "int8").ravel().tolist() == [50, -127, 127, 0]


def test_a_channel_of_zeros_has_a_scale_and_stays_zero() -> None:
    weight = np.zeros((1, 2, 3, 3), np.float16)
    scales = weight_scales(weight, "int8", np.float16)
    assert scales[0] > 0
    assert not quantized_weights(weight, scales, "int8").any()


def test_ties_go_to_even_and_nothing_passes_127() -> None:
    weight = np.array([[0.5, 1.5, -0.5, 126.5, 127.5, -200.0]])
    assert quantized_weights(weight, np.array([1.0]), "int8").tolist() == [[0, 2, 0, 126, 127, -127]]


def test_a_flip_takes_the_other_neighbor() -> None:
    weight = np.array([[0.4, 0.6, -0.4, -0.6]])
    flips = np.ones((1, 4), bool)
    assert quantized_weights(weight, np.array([1.0]), "int8", flips).tolist() == [[1, 0, -1, 0]]


def test_fp8_weights_are_the_nearest_e4m3_numbers() -> None:
    weight = np.array([[448.0, 1000.0, 0.3, -17.0]])
    stored = quantized_weights(weight, np.array([1.0]), "fp8")
    assert stored.dtype == ml_dtypes.float8_e4m3fn
    assert stored.astype(np.float64).tolist() == [[448.0, 448.0, 0.3125, -16.0]]
