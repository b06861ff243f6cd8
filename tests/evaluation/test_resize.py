"""Bicubic resizing against known values, Pillow's independent implementation, and its own invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.resize import (
    bicubic_pixels,
    bicubic_resize,
    cubic_kernel,
    downscale,
    resampling_weights,
)

SIZES = st.integers(min_value=1, max_value=70)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def test_kernel_has_the_values_of_keys_cubic() -> None:
    # By hand from a = -1/2: h(0.5) = 9/16, h(1.5) = -1/16, zeros at the integers.
    values = cubic_kernel(np.array([0.0, 0.5, 1.0, -1.5, 2.0, 2.5]))
    np.testing.assert_array_equal(values, [1.0, 9 / 16, 0.0, -1 / 16, 0.0, 0.0])


def test_halving_uses_the_eight_antialiased_taps() -> None:
    # Output pixel 4 of 16 -> 8 lies at 8.5; the stretched kernel's taps are h(d/2)/2 at
    # d = 1/2, 3/2, 5/2, 7/2: h(1/4) = 111/128, h(3/4) = 29/128, h(5/4) = -9/128, h(7/4) = -3/128.
    weights, positions = resampling_weights(16, 8)
    row = {int(p): w for p, w in zip(positions[4], weights[4], strict=True) if w}
    taps = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    assert sorted(row) == list(range(5, 13))
    np.testing.assert_allclose([row[p] for p in sorted(row)], taps, atol=1e-15)


@given(input_size=SIZES, output_size=SIZES)
def test_weights_are_a_partition_of_unity_inside_the_image(input_size: int, output_size: int) -> None:
    weights, positions = resampling_weights(input_size, output_size)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-14)
    assert positions.min() >= 0
    assert positions.max() < input_size


@settings(max_examples=40)
@given(height=SIZES, width=SIZES, output_height=SIZES, output_width=SIZES, value=st.floats(-1e3, 1e3))
def test_constant_image_stays_constant(
    height: int, width: int, output_height: int, output_width: int, value: float
) -> None:
    result = bicubic_resize(np.full((height, width, 2), value), output_height, output_width)
    assert result.shape == (output_height, output_width, 2)
    # Two passes of at most 70 * 4 + 2 taps whose absolute weights sum to less than 2 after normalization.
    np.testing.assert_allclose(result, value, rtol=0, atol=1e-12 * max(abs(value), 1.0))


@given(height=SIZES, width=SIZES)
def test_same_size_is_the_identity(height: int, width: int) -> None:
    image = random_image(height, width)
    np.testing.assert_array_equal(bicubic_resize(image, height, width), image)


@pytest.mark.parametrize("size", [(36, 60), (40, 18), (31, 47), (12, 23)])
def test_flipping_before_or_after_is_the_same(size: tuple[int, int]) -> None:
    image = random_image(24, 36)
    expected = bicubic_resize(image, *size)[::-1, ::-1]
    np.testing.assert_allclose(bicubic_resize(image[::-1, ::-1], *size), expected, atol=1e-10)


def test_straight_ramp_is_reproduced_away_from_the_edges() -> None:
    # Keys' kernel reproduces polynomials up to degree 2 when it interpolates.
    column = np.arange(20.0)[:, None, None]
    result = bicubic_resize(np.broadcast_to(column, (20, 5, 1)), 80, 5)[:, 2, 0]
    centers = (np.arange(80) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(result[8:-8], centers[8:-8], atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarging_agrees_with_pillow_away_from_the_edges(scale: int) -> None:
    inner = slice(2 * scale, -2 * scale)
    # Pillow clamps and rounds to 8 bits after its first (horizontal) pass and again at the end. Clamping
    # between the passes is the large difference on noise, so the image lies in the middle of the range here.
    calm = (random_image(17, 23, seed=scale) // 4 + 96).astype(np.uint8)
    expected = np.asarray(
        Image.fromarray(calm).resize((23 * scale, 17 * scale), Image.Resampling.BICUBIC), dtype=np.float64
    )
    result = bicubic_resize(calm, 17 * scale, 23 * scale)
    # 0.5 for the first rounding, amplified by the second pass's absolute weights (at most 1.25), and 0.5 for
    # the last.
    assert np.abs(result - expected)[inner, inner].max() <= 0.5 * 1.25 + 0.5 + 0.01


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shrinking_agrees_with_pillow_away_from_the_edges(scale: int) -> None:
    calm = (random_image(24 * scale, 30 * scale, seed=scale) // 4 + 96).astype(np.uint8)
    expected = np.asarray(Image.fromarray(calm).resize((30, 24), Image.Resampling.BICUBIC), dtype=np.float64)
    result = bicubic_resize(calm, 24, 30)
    assert np.abs(result - expected)[2:-2, 2:-2].max() <= 0.5 * 1.25 + 0.5 + 0.01
    eight_bit = downscale(calm, scale).astype(np.float64)
    # The 8-bit version rounds twice as well: twice the bound above, in whole gray levels.
    assert np.abs(eight_bit - expected)[2:-2, 2:-2].max() <= 2


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((32, 32, 1))
    stripes[:, ::2] = 255.0
    result = bicubic_resize(stripes, 8, 8)
    # Point sampling would give 0 or 255; the antialiased taps average the stripes to the middle.
    # (Mirroring breaks the stripes' alternation within two output pixels of the edges.)
    np.testing.assert_allclose(result[:, 2:-2], 127.5, atol=1e-9)


def test_downscale_crops_to_a_multiple_and_rounds_half_up() -> None:
    image = random_image(23, 29)
    np.testing.assert_array_equal(downscale(image, 4), downscale(image[:20, :28], 4))
    assert downscale(image, 4).shape == (5, 7, 3)
    # Columns 0 1 1 0 0 1 1 0 ... halve to exactly 0.5, which MATLAB's uint8() rounds to 1.
    half = np.tile(np.array([0, 1, 1, 0], dtype=np.uint8)[None, :, None], (4, 4, 1))
    assert set(np.unique(bicubic_resize(half, 2, 8))) == {0.5}
    np.testing.assert_array_equal(downscale(half, 2), 1)


def test_downscale_rounds_between_rows_and_columns_as_matlab_does() -> None:
    image = random_image(32, 32, seed=5)
    rows = np.floor(np.clip(bicubic_resize(image, 16, 32), 0, 255) + 0.5)
    expected = np.floor(np.clip(bicubic_resize(rows, 16, 16), 0, 255) + 0.5)
    np.testing.assert_array_equal(downscale(image, 2), expected)


def test_picture_smaller_than_the_scale_is_one_error_line() -> None:
    with pytest.raises(HspanError, match="3x9 pixels is too small for scale 4"):
        downscale(np.zeros((3, 9, 3), np.uint8), 4)
    with pytest.raises(HspanError, match="9x3 pixels is too small for scale 4"):
        downscale(np.zeros((9, 3, 3), np.uint8), 4)
    np.testing.assert_array_equal(downscale(np.full((4, 7, 3), 9, np.uint8), 4), np.full((1, 1, 3), 9))


@pytest.mark.parametrize("scale", [2, 3])
def test_pixels_are_enlarged_clamped_and_rounded(scale: int) -> None:
    low = random_image(5, 7)
    exact = bicubic_resize(low, 5 * scale, 7 * scale)
    assert exact.min() < 0
    assert exact.max() > 255
    expected = np.floor(np.clip(exact, 0, 255) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(bicubic_pixels(low, scale), expected, strict=True)
