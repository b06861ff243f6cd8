"""Pixels of every kind as tensors and back, and as a viewer shows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from trt_hspan.errors import HspanError
from trt_hspan.media.pixels import (
    PixelFormat,
    TensorFormat,
    image_from_tensor,
    luma,
    require_finite,
    rgb_on_white,
    tensor_from_image,
)


def noise(channels: int, dtype: type = np.uint8) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, np.iinfo(dtype).max, (5, 7, channels), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gray_and_alpha_travel_as_three_equal_channels(channels: int, dtype: type) -> None:
    image = noise(channels, dtype)
    kind = PixelFormat.of(image)
    assert (kind.channels, kind.dtype, kind.where) == (channels, dtype, "network output")
    assert (kind.white, kind.has_alpha) == (np.iinfo(dtype).max, channels in (2, 4))
    tensor = kind.tensor_from_pixels(image)
    assert tensor.dtype == np.float32
    levels = (image.astype(np.float32) / np.float32(kind.white)).transpose(2, 0, 1)
    colors = levels[:3] if channels >= 3 else levels[[0, 0, 0]]
    np.testing.assert_array_equal(tensor[0], colors)
    assert len(tensor) == (2 if channels in (2, 4) else 1)
    if channels in (2, 4):
        np.testing.assert_array_equal(tensor[1], levels[[-1] * 3])
    np.testing.assert_array_equal(kind.pixels_from_tensor(tensor), image)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *[((4, 5), np.uint8), ((4, 5, 0), np.uint8), ((4, 5, 5), np.uint8), ((4, 0, 3), np.uint8)],
        *[((1, 4, 5, 3), np.uint8), ((4, 5, 3), np.int16), ((4, 5, 3), np.float32)],
    ],
)
def test_what_is_no_pixels_is_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(HspanError, match=r"^a\.png: expected pixels as \(H, W, C\) uint8 or uint16"):
        PixelFormat.of(np.zeros(shape, dtype), where="a.png")


def test_luma_is_the_one_of_picture_libraries() -> None:
    image = noise(3)
    gray = np.asarray(Image.fromarray(image).convert("L"))
    found = luma(tensor_from_image(image)[0])
    assert found.shape == (1, 5, 7)
    # Pillow's weights are multiples of 1 / 65536, and it rounds to the nearest level.
    np.testing.assert_allclose(found[0] * 255, gray, rtol=0, atol=0.5 + 3 * 255 / 65536)
    # A result in gray, and one with alpha, is made of it.
    for channels in (1, 2):
        kind = PixelFormat(channels=channels, dtype=np.uint8)
        pixels = kind.pixels_from_tensor(np.stack([tensor_from_image(image)[0]] * 2))
        for channel in range(channels):
            assert np.abs(pixels[..., channel].astype(int) - gray).max() <= 1


def test_tensors_as_pixels_are_only_turned() -> None:
    batch = np.random.default_rng(0).random((2, 3, 5, 7), dtype=np.float32)
    turned = TensorFormat().pixels_from_tensor(batch)
    assert turned.shape == (5, 7, 2, 3)
    again = TensorFormat().tensor_from_pixels(turned)
    assert again.flags.c_contiguous
    np.testing.assert_array_equal(again, batch)
    assert not TensorFormat.has_alpha


def test_a_viewer_shows_8_bits_and_colors_on_white() -> None:
    deep = noise(4, np.uint16)
    shown = rgb_on_white(deep)
    assert (shown.shape, shown.dtype) == ((5, 7, 3), np.uint8)
    levels = np.rint(deep / 257)
    exact = (levels[..., :3] * levels[..., 3:] + 255 * (255 - levels[..., 3:])) / 255
    np.testing.assert_array_equal(shown, np.rint(exact))
    np.testing.assert_array_equal(rgb_on_white(noise(1)), noise(1).repeat(3, 2))
    np.testing.assert_array_equal(rgb_on_white(noise(3)), noise(3))


def test_numbers_that_are_none_are_counted() -> None:
    tensor = np.zeros((1, 3, 2, 2), np.float32)
    require_finite(tensor, "net")
    tensor[0, 0, 0] = np.nan, np.inf
    with pytest.raises(HspanError, match=r"^net: 2 of 12 values are NaN or infinite; see where"):
        require_finite(tensor, "net")


def test_tensor_has_channels_first_in_zero_to_one() -> None:
    image = noise(3)
    tensor = tensor_from_image(image)
    assert tensor.shape == (1, 3, 5, 7)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor[0, 2], image[..., 2].astype(np.float32) / np.float32(255))


def test_every_gray_level_survives_the_way_there_and_back() -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    np.testing.assert_array_equal(image_from_tensor(tensor_from_image(levels)), levels)
    np.testing.assert_array_equal(image_from_tensor(tensor_from_image(levels)[0]), levels)


@settings(max_examples=60)
@given(hnp.arrays(np.float32, (1, 3, 4, 4), elements=st.floats(-2, 3, width=32)))
def test_rounding_is_the_one_of_the_official_code(tensor: np.ndarray) -> None:
    official = torch.from_numpy(tensor).mul(255).clamp(0, 255).round()[0].permute(1, 2, 0)
    np.testing.assert_array_equal(image_from_tensor(tensor), official.numpy())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_value_is_an_error_and_not_a_pixel(bad: float) -> None:
    tensor = np.full((1, 3, 4, 4), 0.5, np.float32)
    tensor[0, 1, 2, 3] = bad
    with pytest.raises(HspanError, match="1 of 48 values are NaN or infinite"):
        image_from_tensor(tensor)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 4, 4, 4), (4, 4)])
def test_other_shapes_are_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(HspanError, match="expected shape"):
        image_from_tensor(np.zeros(shape, np.float32))
