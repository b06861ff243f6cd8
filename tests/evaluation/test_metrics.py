"""PSNR, SSIM and agreement against the official formula in PyTorch, scikit-image, and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import structural_similarity

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.metrics import agreement, luma_from_rgb, mean_psnr_y, psnr_y, require_bar, ssim_y

PICTURES = hnp.arrays(np.uint8, (20, 23, 3))
TENSORS = hnp.arrays(np.float32, (1, 3, 4, 5), elements=st.floats(-1, 2, width=32))


def noisy_pair(height: int, width: int, seed: int, strength: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture and a copy with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([128 + 90 * np.sin(x / 7 + c) * np.cos(y / 5 - c) for c in range(3)], axis=-1)
    noise = rng.integers(-strength, strength + 1, smooth.shape)
    return (
        np.clip(smooth + noise, 0, 255).astype(np.uint8),
        np.clip(smooth, 0, 255).astype(np.uint8),
    )


def psnr_reference(image: np.ndarray, truth: np.ndarray, scale: int) -> float:
    """The steps of the official evaluation code in PyTorch, float64, rgb_range 1."""
    sr, hr = (torch.from_numpy(a).permute(2, 0, 1)[None].double() / 255 for a in (image, truth))
    luma = torch.tensor([65.738, 129.057, 25.064], dtype=torch.float64).view(1, 3, 1, 1) / 256
    difference = ((sr - hr) * luma).sum(dim=1, keepdim=True)
    valid = difference[..., scale:-scale, scale:-scale]
    return float(-10 * torch.log10(valid.pow(2).mean()))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("strength", [1, 20])
def test_psnr_is_the_one_of_the_official_code(scale: int, strength: int) -> None:
    image, truth = noisy_pair(40, 50, seed=scale, strength=strength)
    assert psnr_y(image, truth, scale) == pytest.approx(psnr_reference(image, truth, scale), abs=1e-10)


def test_psnr_of_one_gray_level_is_known() -> None:
    # The luma of a gray step of 1 is (65.738 + 129.057 + 25.064) / 256 / 255 of the peak.
    truth = np.full((30, 30, 3), 100, np.uint8)
    expected = -20 * math.log10(219.859 / 256 / 255)
    assert psnr_y(truth + np.uint8(1), truth, 4) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("channel", "weight"), [(0, 65.738), (1, 129.057), (2, 25.064)])
def test_each_channel_has_its_own_weight(channel: int, weight: float) -> None:
    truth = np.full((20, 20, 3), 100, np.uint8)
    image = truth.copy()
    image[..., channel] += 10
    assert psnr_y(image, truth, 2) == pytest.approx(-20 * math.log10(10 * weight / 256 / 255), abs=1e-10)
    assert luma_from_rgb(image)[0, 0] - luma_from_rgb(truth)[0, 0] == pytest.approx(10 * weight / 256)


def test_a_mean_counts_what_the_reference_does_not_restore_exactly() -> None:
    assert mean_psnr_y([30, math.inf, 40], [31, math.inf, 149.9]) == 35
    assert mean_psnr_y([30, 50], [150, 40]) == 50
    assert mean_psnr_y([math.inf, 100], [math.inf, 150]) == 125  # infinity counts as 150 dB
    assert math.isnan(mean_psnr_y([math.nan, 30], [30, 30]))


@pytest.mark.parametrize("bar", [math.inf, -math.inf, math.nan])
def test_a_bar_is_a_number(bar: float) -> None:
    require_bar(None)
    require_bar(-1.0)
    with pytest.raises(UsageError, match="--min-psnr: got"):
        require_bar(bar)


def test_luma_runs_from_16_to_235() -> None:
    # BT.601: black is 16, white 235 (the weights are rounded to three decimals).
    assert luma_from_rgb(np.zeros((1, 1, 3), np.uint8))[0, 0] == 16.0
    assert luma_from_rgb(np.full((1, 1, 3), 255, np.uint8))[0, 0] == pytest.approx(235.0, abs=1e-3)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_exactly_the_border_is_left_out(metric) -> None:
    truth = noisy_pair(40, 40, seed=1, strength=9)[0]
    image = truth.copy()
    image[:3], image[-3:], image[:, :3], image[:, -3:] = 0, 255, 255, 0
    assert metric(image, truth, 3) == (math.inf if metric is psnr_y else pytest.approx(1.0, abs=1e-12))
    image[3, 20] ^= 255
    assert metric(image, truth, 3) < (60 if metric is psnr_y else 1 - 1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("strength", [2, 60])
def test_ssim_agrees_with_scikit_image_where_the_window_fits(scale: int, strength: int) -> None:
    image, truth = noisy_pair(41, 52, seed=scale, strength=strength)
    inner = slice(scale, -scale)
    ours, theirs = luma_from_rgb(image[inner, inner]), luma_from_rgb(truth[inner, inner])
    _, full = structural_similarity(
        ours,
        theirs,
        gaussian_weights=True,
        sigma=1.5,
        truncate=3.5,  # radius int(3.5 * 1.5 + 0.5) = 5: the 11x11 window
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    # Both work in float64; variances of values up to 235 lose about 235^2 * 2^-52 = 1e-11 by cancellation,
    # against C2 = 58.
    assert ssim_y(image, truth, scale) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-11)


@settings(max_examples=40, deadline=None)
@given(image=PICTURES, truth=PICTURES)
def test_metrics_are_symmetric_and_bounded(image: np.ndarray, truth: np.ndarray) -> None:
    assert psnr_y(image, truth, 2) == psnr_y(truth, image, 2)
    assert ssim_y(image, truth, 2) == pytest.approx(ssim_y(truth, image, 2), abs=1e-12)
    assert -1 - 1e-12 <= ssim_y(image, truth, 2) <= 1 + 1e-12
    # The largest difference of two lumas is 255 * 219.859 / 256.
    assert psnr_y(image, truth, 2) >= -20 * math.log10(219.859 / 256) - 1e-9


@settings(max_examples=20, deadline=None)
@given(image=PICTURES)
def test_equal_pictures_are_perfect(image: np.ndarray) -> None:
    assert psnr_y(image, image, 4) == math.inf
    assert ssim_y(image, image, 4) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr_y(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8), 2), "of the same size"),
        (lambda: psnr_y(*[np.zeros((30, 30), np.uint8)] * 2, 4), "expected two .* of the same size"),
        (lambda: psnr_y(*[np.zeros((30, 30, 4), np.uint8)] * 2, 4), "expected two .* of the same size"),
        (lambda: psnr_y(*[np.zeros((8, 30, 3), np.uint8)] * 2, 4), "8x30 pixels leave 0x22 after cropping 4"),
        (lambda: psnr_y(*[np.zeros((30, 5, 3), np.uint8)] * 2, 4), "30x5 pixels leave 22x0 after cropping 4"),
        (lambda: ssim_y(*[np.zeros((18, 30, 3), np.uint8)] * 2, 4), "leave 10x22 after cropping 4 .* 11x11"),
        (lambda: agreement(np.zeros(3), np.zeros(4)), "of the same shape"),
        (lambda: agreement(np.zeros(0), np.zeros(0)), "of the same shape"),
    ],
)
def test_what_cannot_be_compared_is_one_error_line(call, message: str) -> None:
    with pytest.raises(HspanError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@given(result=TENSORS, reference=TENSORS)
def test_agreement_follows_its_definition(result: np.ndarray, reference: np.ndarray) -> None:
    got = agreement(result, reference)
    difference = np.abs(result.astype(np.float64) - reference.astype(np.float64))
    assert got.max_abs_error == difference.max()
    assert got.mean_abs_error == pytest.approx(difference.mean(), rel=1e-12)
    assert got.mean_abs_error <= got.max_abs_error
    assert got.nan_count == 0
    if got.max_abs_error == 0:
        assert got.psnr_db == math.inf
    elif (difference**2).mean() > 0:  # squares of differences below 1e-154 vanish
        assert got.psnr_db == pytest.approx(-10 * math.log10((difference**2).mean()), abs=1e-9)
        # The largest error bounds the mean square from above.
        assert got.psnr_db >= -20 * math.log10(got.max_abs_error) - 1e-9


def test_agreement_of_a_constant_offset_is_known() -> None:
    reference = np.linspace(0, 1, 48, dtype=np.float64).reshape(1, 3, 4, 4)
    got = agreement(reference + 1e-3, reference)
    assert got.psnr_db == pytest.approx(60.0, abs=1e-9)


def test_agreement_sees_values_outside_the_pictures_range() -> None:
    reference = np.full((1, 3, 2, 2), 1.5, np.float32)
    assert agreement(reference + 1, reference).psnr_db == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_one_broken_value_on_either_side_spoils_every_figure(bad: float, side: int) -> None:
    pair = [np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 3, 4, 4), np.float32)]
    pair[side][0, 0, 0, 0] = bad
    got = agreement(*pair)
    assert got.nan_count == 1
    assert all(math.isnan(x) for x in (got.psnr_db, got.max_abs_error, got.mean_abs_error))
