"""Tiles against the whole picture, and the official protocol against a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.official_chop import chop_reference, self_ensemble_reference
from support.runner_doubles import NearestRunner
from support.tile_networks import BoundedRunner
from support.torch_function_runner import (
    ROUNDING,
    TorchFunctionRunner,
    batch,
    convolutions,
    global_network,
    untiled,
)

from trt_hspan.errors import HspanError
from trt_hspan.sizes import ImageSize, TileChoice
from trt_hspan.upscaling import tile_size
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import tile_effect
from trt_hspan.upscaling.upscaler import Upscaler, reflected, upscale_array, upscale_batch

# Tiles
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 61),
    width=st.integers(1, 61),
    tile=st.tuples(st.integers(16, 30), st.integers(16, 30)),
    scale=st.sampled_from([1, 2, 3]),
)
def test_convolutions_give_the_untiled_result_where_the_margin_holds_their_reach(
    height: int, width: int, tile: tuple[int, int], scale: int
) -> None:
    # Two 3x3 convolutions reach 2 pixels, and an overlap of 6 leaves a margin of 2.
    network = convolutions(scale, layers=2)
    x = batch(height, width)
    result = upscale_batch(TorchFunctionRunner(network, scale), x, UpscaleOptions(tile=tile, overlap=6))
    np.testing.assert_allclose(result, untiled(network, x), rtol=0, atol=ROUNDING)


def test_an_overlap_below_the_reach_shows() -> None:
    network = convolutions(2, layers=2)
    x = batch(40, 40)
    result = upscale_batch(TorchFunctionRunner(network, 2), x, UpscaleOptions(tile=(16, 16), overlap=2))
    assert np.abs(result - untiled(network, x)).max() > 100 * ROUNDING


def test_all_items_of_a_batch_are_tiled_alike() -> None:
    network = global_network(2)
    x = batch(50, 41, n=3)
    options = UpscaleOptions(tile=(24, 20), overlap=8)
    runner = TorchFunctionRunner(network, 2)
    together = upscale_batch(runner, x, options)
    single = [upscale_batch(runner, x[i : i + 1], options) for i in range(3)]
    np.testing.assert_allclose(together, np.concatenate(single), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (1, 2), (4, 4)])
def test_a_network_with_another_batch_gets_what_it_takes(low: int, high: int) -> None:
    network = convolutions(2)
    runner = TorchFunctionRunner(network, 2, low=(low, 3, None, None), high=(high, 3, None, None))
    x = batch(9, 8, n=3)
    np.testing.assert_allclose(upscale_batch(runner, x), untiled(network, x), rtol=0, atol=ROUNDING)
    assert {shape[0] for shape in runner.shapes} <= set(range(low, high + 1))


@pytest.mark.parametrize("options", [{"tile": "none"}, {"tile": (24, 24)}, {"protocol": "official"}])
def test_an_engine_for_larger_batches_takes_one_picture_in_every_way(options: dict[str, Any]) -> None:
    engine, x = NearestRunner(), batch(40, 48)
    engine.profiles = (((2, 3, 16, 16), (4, 3, 64, 64)),)
    with engine:
        result = upscale_batch(engine, x, UpscaleOptions(**options))
    np.testing.assert_allclose(result, x.repeat(4, 2).repeat(4, 3), rtol=0, atol=2**-22)
    assert {shape[0] for shape in engine.calls} == {2}


def test_what_the_official_protocol_cuts_must_fit_the_profiles() -> None:
    engine = NearestRunner()
    engine.profiles = (((1, 3, 16, 16), (1, 3, 32, 32)),)
    with pytest.raises(HspanError, match=r"^fox\.png, a tile of --protocol official: is 1x3x44x48, but"):
        upscale_batch(engine, batch(64, 64), UpscaleOptions(protocol="official"), what="fox.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (12, 40)])
def test_a_picture_below_the_least_size_is_reflected_and_cropped(size: tuple[int, int]) -> None:
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    runner = TorchFunctionRunner(network, 2, low=(1, 3, 16, 16), high=(1, 3, 32, 32))
    x = batch(*size)
    result = upscale_batch(runner, x, UpscaleOptions(overlap=4))
    # Where tiles meet, two weights that sum to 1 within a rounding share a pixel.
    np.testing.assert_allclose(result, x.repeat(2, 2).repeat(2, 3), rtol=0, atol=2**-22)
    grown = [(0, 0), (0, 0), (0, max(0, 16 - size[0])), (0, max(0, 16 - size[1]))]
    width = seen[0].shape[3]
    np.testing.assert_array_equal(seen[0].numpy(), np.pad(x, grown, mode="reflect")[..., :width])


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(0, 70))
def test_reflection_is_the_one_of_numpy(size: int, extra: int) -> None:
    expected = np.pad(np.arange(size), (0, extra), mode="reflect")
    np.testing.assert_array_equal(reflected(np.arange(size + extra), size), expected)


def test_seams_are_no_steeper_than_the_gradient_itself() -> None:
    # A network that adds an offset of its own to every tile, as a change of attention's context does.
    offsets = iter(np.random.default_rng(3).uniform(-0.05, 0.05, 1000))

    def network(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(4, 2).repeat_interleave(4, 3) + float(next(offsets))

    ramp = np.linspace(0.1, 0.9, 200, dtype=np.float32)
    x = np.broadcast_to(ramp, (1, 3, 64, 200)).copy()
    runner = TorchFunctionRunner(network, 4)
    blended = upscale_batch(runner, x, UpscaleOptions(tile=(64, 64), overlap=32))
    hard = upscale_batch(runner, x, UpscaleOptions(tile=(64, 64), overlap=0))
    steps = np.abs(np.diff(blended, axis=3)).max(), np.abs(np.diff(hard, axis=3)).max()
    # A ramp of 8 input pixels spreads a step of at most 0.1 over 32 output pixels; the gradient's own step is
    # 0.8 / 199. Without a ramp the whole step falls between two pixels.
    assert steps[0] <= 0.8 / 199 + 0.1 / 32 + 1e-6
    assert steps[1] > 0.02


def test_tiles_change_what_a_network_with_global_context_gives_and_the_change_is_measured() -> None:
    x = batch(48, 48) * np.linspace(0, 1, 48, dtype=np.float32)
    network = global_network(2)
    runner = TorchFunctionRunner(network, 2)
    upscaler = Upscaler(runner, UpscaleOptions(tile=(24, 24), overlap=8))
    effect = tile_effect(upscaler, x)
    difference = np.abs(upscaler.batch(x).astype(np.float64) - untiled(network, x))
    assert effect.max_abs_difference == pytest.approx(difference.max(), abs=ROUNDING)
    assert effect.psnr_db == pytest.approx(-10 * np.log10((difference**2).mean()), abs=0.01)
    assert effect.max_abs_difference > 0.01
    assert tile_effect(Upscaler(runner), x).psnr_db == np.inf


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_kind_of_pixel_comes_back_exactly(dtype: type, channels: int) -> None:
    image = np.random.default_rng(1).integers(
        0, np.iinfo(dtype).max, (41, 33, channels), dtype, endpoint=True
    )
    runner = NearestRunner(scale=2)
    with runner:
        result = upscale_array(runner, image, UpscaleOptions(tile=(20, 16), overlap=6))
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, image.repeat(2, 0).repeat(2, 1))


def test_opaque_alpha_costs_no_run() -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 9, 4), np.uint8)
    image[..., 3] = 255
    runner = NearestRunner(scale=2)
    with runner:
        result = upscale_array(runner, image)
    assert (result[..., 3] == 255).all()
    assert runner.calls == [(1, 3, 8, 9)]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 4), np.uint8), ((4, 4, 5), np.uint8), ((4, 4, 3), np.float64), ((0, 4, 3), np.uint8)],
)
def test_what_is_no_picture_is_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(HspanError, match=r"expected pixels as \(H, W, C\)"), NearestRunner() as runner:
        upscale_array(runner, np.zeros(shape, dtype))


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(HspanError, match=r"expected \(N, 3, H, W\) float32"), NearestRunner() as runner:
        upscale_batch(runner, np.zeros((1, 4, 5, 5), np.float32))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (13, 50), (70, 33)])
@pytest.mark.parametrize("tile", ["auto", "none", (24, 32)])
def test_pictures_of_any_size_grow_to_the_multiples_that_a_network_takes(
    size: tuple[int, int], tile: TileChoice
) -> None:
    runner = NearestRunner(scale=2)
    runner.size_multiple = runner.min_size = 8
    image = batch(*size)
    with runner:
        result = upscale_batch(runner, image, UpscaleOptions(tile=tile))
    # Two ramps sum to 1 within one rounding.
    np.testing.assert_allclose(result, image.repeat(2, 2).repeat(2, 3), atol=2**-23)
    assert all(side % 8 == 0 for shape in runner.calls for side in shape[2:])


def test_tile_that_is_no_multiple_is_refused() -> None:
    runner = NearestRunner(scale=2)
    runner.size_multiple = 8
    with runner, pytest.raises(HspanError, match=r"--tile 20x24: is .*takes sides that are multiples of 8"):
        upscale_batch(runner, batch(40, 40), UpscaleOptions(tile=(20, 24)))


def test_progress_counts_every_tile() -> None:
    notes: list[tuple[int, int]] = []
    with NearestRunner(scale=2) as runner:
        upscale_batch(
            runner,
            batch(30, 30),
            UpscaleOptions(tile=(16, 16), overlap=2),
            on_tile=lambda *x: notes.append(x),
        )
    assert notes == [(1, 4), (2, 4), (3, 4), (4, 4)]


# The official protocol
# ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(height=st.integers(32, 131), width=st.integers(32, 131), scale=st.sampled_from([2, 3, 4]))
def test_official_protocol_is_the_official_codes_chop(height: int, width: int, scale: int) -> None:
    network = global_network(scale)
    x = batch(height, width)
    for min_size in (120_000, 3_000):
        options = UpscaleOptions(protocol="official", official_min_size=min_size)
        result = upscale_batch(TorchFunctionRunner(network, scale), x, options)
        expected = chop_reference(network, torch.from_numpy(x), scale, min_size=min_size).numpy()
        np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("height", "width"), [(33, 51), (40, 40)])
@pytest.mark.parametrize("protocol", ["tiles", "official"])
def test_self_ensemble_is_the_official_codes(height: int, width: int, protocol: str) -> None:
    network = global_network(2)
    x = batch(height, width)

    def forward(y: torch.Tensor) -> torch.Tensor:
        return chop_reference(network, y, 2) if protocol == "official" else network(y)

    runner = TorchFunctionRunner(network, 2)
    result = upscale_batch(runner, x, UpscaleOptions(protocol=protocol, self_ensemble=True))
    expected = self_ensemble_reference(forward, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING)
    # The plain result is another one, so that the agreement says something.
    assert np.abs(untiled(network, x) - expected).max() > 100 * ROUNDING


def test_self_ensemble_works_within_tiles() -> None:
    network = convolutions(2)
    x = batch(41, 37)
    runner = TorchFunctionRunner(network, 2)
    result = upscale_batch(runner, x, UpscaleOptions(tile=(20, 24), overlap=6, self_ensemble=True))
    expected = self_ensemble_reference(network, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1)])
def test_self_ensemble_takes_a_side_of_one_pixel(height: int, width: int) -> None:
    network = global_network(2)
    x = batch(height, width)
    result = upscale_batch(TorchFunctionRunner(network, 2), x, UpscaleOptions(self_ensemble=True))
    expected = self_ensemble_reference(network, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING)


def test_self_ensemble_cuts_tiles_that_the_network_takes_on_their_side_too() -> None:
    options = UpscaleOptions(self_ensemble=True)
    with BoundedRunner((8, 16), (32, 64)) as runner:
        x = batch(30, 60)
        assert upscale_batch(runner, x, options).shape == (1, 3, 60, 120)
        assert Upscaler(runner, options).plan(ImageSize(30, 60)).tile.height <= 32
        assert Upscaler(runner, options).plan(ImageSize(30, 60)).tile.width <= 32
        # Its least size on both sides is the end: it is not tried again and again.
        assert tile_size.smaller_tile(runner, ImageSize(16, 16), turned=True) is None
    with (
        BoundedRunner((24, 48), (24, 48)) as runner,
        pytest.raises(HspanError, match="leave out --self-ensem"),
    ):
        upscale_batch(runner, batch(24, 48), options)
