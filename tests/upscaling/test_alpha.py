"""Transparency: edges keep their colors, what is clear stays clear, what is solid stays solid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.media.pictures import read_picture
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.upscaling import pictures
from trt_hspan.upscaling.alpha import TileAlpha
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler, upscale_array


def disc(color: tuple[int, ...], hidden: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    """24x28 pixels: solid within 8 pixels of the middle, clear and of another color outside, nothing in between."""
    y, x = np.mgrid[:24, :28]
    solid = np.hypot(y - 11.5, x - 13.5) < 8
    picture = np.where(solid[..., None], (*color, 255), (*hidden, 0)).astype(dtype)
    return picture * dtype(np.iinfo(dtype).max // 255)


def on_white(picture: np.ndarray) -> np.ndarray:
    levels = picture / np.iinfo(picture.dtype).max * 255
    return levels[..., :-1] * levels[..., -1:] / 255 + 255 - levels[..., -1:]


def means_reference(picture: np.ndarray, y: int, x: int) -> list[int]:
    """The mean color of the smallest aligned block around a pixel that is not clear, weighted by alpha."""
    side = 1
    while True:
        side *= 2
        top, left = y // side * side, x // side * side
        block = picture[top : top + side, left : left + side].astype(object)
        weight = block[..., -1].sum()
        if weight:
            sums = (block[..., :-1] * block[..., -1:]).sum(axis=(0, 1))
            return [(2 * total + weight) // (2 * weight) for total in sums]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("color", [(255, 0, 0), (230,)])
def test_a_network_sees_the_colors_around_under_what_is_clear(color: tuple[int, ...], dtype: type) -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, np.iinfo(dtype).max, (13, 10, len(color) + 1), dtype, endpoint=True)
    clear = random.random((13, 10)) < 0.7
    picture[clear] = 0
    filled = TileAlpha(picture).filled
    np.testing.assert_array_equal(filled[~clear], picture[~clear])
    assert not filled[clear][:, -1].any()
    for y, x in np.argwhere(clear):
        assert filled[y, x, :-1].tolist() == means_reference(picture, y, x)


def test_what_is_clear_and_stays_so_keeps_its_color() -> None:
    picture = np.full((8, 4, 4), (50, 60, 70, 255), np.uint8)
    picture[:4] = (5, 0, 9, 0)
    output = np.full((2, 3, 16, 8), 0.25, np.float32)
    output[1, :, 6], output[1, :, 7] = 0.49 / 255, 0.51 / 255  # on the edge of what is clear
    colors, alpha = TileAlpha(picture).finished(output)
    hidden = np.array([5, 0, 9], np.float32)[:, None, None] / np.float32(255)
    np.testing.assert_array_equal(colors[:, :7], np.broadcast_to(hidden, (3, 7, 8)))
    assert (colors[:, 7:] == 0.25).all()
    assert not alpha[:, :6].any()
    np.testing.assert_array_equal(alpha[:, 6:10], output[1, :, 6:10])
    assert (alpha[:, 10:] == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (0, 255, 0)])
def test_hidden_colors_do_not_reach_the_edges(hidden: tuple[int, int, int], dtype: type) -> None:
    picture, white = disc((255, 100, 60), hidden, dtype), np.iinfo(dtype).max
    with TorchRunner("hspan-tiny-x2") as runner:
        result = upscale_array(runner, picture)
        plane = upscale_array(runner, np.full((24, 28, 3), (255, 100, 60), np.uint8))
    # Of one color on white each pixel is a mixture of the two.
    shown = on_white(result)
    for channel in range(3):
        assert shown[..., channel].min() >= int(plane[..., channel].min()) - 1
    for y, x in np.ndindex(24, 28):
        around = picture[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        block = result[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        if not around[..., 3].any():
            np.testing.assert_array_equal(block, np.broadcast_to(picture[y, x], (2, 2, 4)))
        elif (around[..., 3] == white).all():
            assert (block[..., 3] == white).all()


def test_hidden_colors_that_differ_are_a_picture_and_stay() -> None:
    """Textures keep other things than transparency in alpha."""
    picture = np.random.default_rng(0).integers(0, 256, (12, 9, 4), np.uint8)
    picture[:8, :, 3] = 0
    assert TileAlpha(picture).filled is picture


@pytest.mark.parametrize("others", [(9, 0, 0), (0, 0, 9)])
@pytest.mark.parametrize("count", [16, 17, 20])
def test_a_color_of_more_than_half_of_what_is_clear_is_unused(others: tuple[int, ...], count: int) -> None:
    """Of 32 clear pixels above 32 solid ones; what is left over has colors of larger or of smaller numbers."""
    picture = np.full((8, 8, 4), (50, 60, 70, 255), np.uint8)
    picture[:4] = (*others, 0)
    picture[:4].reshape(32, 4)[:count] = (5, 0, 5, 0)
    unused = (picture == (5, 0, 5, 0)).all(axis=2)
    tile = TileAlpha(picture)
    assert (tile.filled is picture) is (count == 16)
    if count > 16:
        np.testing.assert_array_equal(tile.filled[~unused], picture[~unused])
        assert (tile.filled[unused] == (50, 60, 70, 0)).all()
        output = np.zeros((2, 3, 16, 16), np.float32)
        output[1] = 1
        finished = tile.finished(output)
        # All but the last row of what is clear is surrounded by what is.
        clear = unused.repeat(2, 0).repeat(2, 1)[:6]
        np.testing.assert_array_equal(finished[0][:, :6][:, clear].T * 255, [[5, 0, 5]] * clear.sum())
        assert not finished[0][:, 6:].any()
        assert not finished[1][:, :6].any()
        assert finished[1][:, 6:].all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_streamed_pictures_have_the_same_edges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, dtype: type
) -> None:
    write_picture(tmp_path / "a.png", disc((200, 90, 30)[: channels - 1], (0, 0, 0)[: channels - 1], dtype))
    options = UpscaleOptions(tile=(16, 20), overlap=6)
    for name, most in (("whole", 1 << 20), ("streamed", 1)):
        monkeypatch.setattr(pictures, "STREAM_PIXELS", most)
        with TorchRunner("hspan-tiny-x2") as runner:
            report = upscale_picture_file(
                Upscaler(runner, options), tmp_path / "a.png", tmp_path / f"{name}.png"
            )
        assert report.streamed is (name == "streamed")
    whole, streamed = (read_picture(tmp_path / f"{name}.png").pixels for name in ("whole", "streamed"))
    np.testing.assert_array_equal(whole, streamed)
    assert whole[0, 0].tolist() == [0] * channels


def test_a_self_ensemble_by_the_official_protocol_keeps_edges_too() -> None:
    picture = np.tile(disc((255, 40, 0), (0, 0, 0)), (2, 2, 1))
    options = UpscaleOptions(protocol="official", self_ensemble=True)
    with NearestRunner(scale=2, offset=-0.1) as runner:
        result = upscale_array(runner, picture, options)
    assert on_white(result)[..., 0].min() >= 229  # of 0.9 times white
    assert set(np.unique(result[:2, :2])) == {0}
