"""The size of tiles: free memory, profiles of an engine, and what a lack of memory makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.runner_doubles import NearestRunner
from support.torch_function_runner import ROUNDING, TorchFunctionRunner, batch, convolutions, untiled

from trt_hspan.errors import HspanError, OutOfMemoryError, UsageError
from trt_hspan.runtime import memory
from trt_hspan.runtime.runner import ShapeLimit
from trt_hspan.sizes import ImageSize, TileChoice
from trt_hspan.upscaling import tile_size
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.tile_size import SizeRange
from trt_hspan.upscaling.upscaler import Upscaler, is_out_of_memory, upscale_batch

# Memory
# ---------------------------------------------------------------------------------------------------------


FAILURES = [
    MemoryError,
    lambda: OutOfMemoryError("gpu", "the device has 0 bytes left"),
    lambda: HspanError("x.plan", "failed on the GPU: cuMemAlloc failed: out of memory"),
    lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=["MemoryError", "ours", "driver", "PyTorch"])
def test_out_of_memory_steps_down_goes_on_and_is_reported(failure: Callable[[], Exception]) -> None:
    network = convolutions(2)
    x = batch(70, 90)
    runner = TorchFunctionRunner(network, 2, most_pixels=40 * 40, failure=failure)
    notes: list[str] = []
    result = upscale_batch(runner, x, on_shrink=notes.append)
    np.testing.assert_allclose(result, untiled(network, x), rtol=0, atol=ROUNDING)
    assert notes[0].startswith("out of memory with tiles of 70x90, going on with ")
    assert runner.shapes[-1][2] * runner.shapes[-1][3] <= 40 * 40


@pytest.mark.parametrize("tile", [(64, 64), "auto"])
def test_an_overlap_that_was_given_shrinks_with_the_tiles_and_is_reported(tile: TileChoice) -> None:
    network = convolutions(2)
    x = batch(100, 130)
    runner = TorchFunctionRunner(network, 2, most_pixels=32 * 32)
    notes: list[str] = []
    result = upscale_batch(runner, x, UpscaleOptions(tile=tile, overlap=32), on_shrink=notes.append)
    np.testing.assert_allclose(result, untiled(network, x), rtol=0, atol=ROUNDING)
    assert notes[-1].endswith((" with 32x32 and an overlap of 16", " with 24x32 and an overlap of 12"))


def test_a_lesson_in_memory_is_kept_for_the_next_picture() -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, most_pixels=40 * 40)
    upscaler = Upscaler(runner, UpscaleOptions())
    upscaler.batch(batch(70, 90))
    first = len(upscaler.shrinks)
    upscaler.batch(batch(70, 90))
    assert first > 0
    assert len(upscaler.shrinks) == first


def test_memory_that_runs_out_in_the_middle_does_not_spoil_the_result() -> None:
    network = convolutions(2)
    runner = TorchFunctionRunner(network, 2)
    calls = 0

    def sometimes(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise MemoryError
        return network(x)

    runner._function = sometimes
    x = batch(70, 90)
    result = upscale_batch(runner, x, UpscaleOptions(tile=(40, 40), overlap=8))
    np.testing.assert_allclose(result, untiled(network, x), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    "options", [UpscaleOptions(tile="none"), UpscaleOptions(protocol="official"), UpscaleOptions()]
)
def test_out_of_memory_with_nothing_smaller_to_try_is_an_error(options: UpscaleOptions) -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, most_pixels=10)
    with pytest.raises(OutOfMemoryError, match=r"function: a tile of .* does not fit in memory"):
        upscale_batch(runner, batch(40, 40), options)


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    assert not is_out_of_memory(HspanError("a.plan", "CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("out of memory"))
    runner = TorchFunctionRunner(
        convolutions(2), 2, most_pixels=1, failure=lambda: HspanError("a.plan", "illegal access")
    )
    with pytest.raises(HspanError, match="illegal access"):
        upscale_batch(runner, batch(40, 40))
    assert len(runner.shapes) == 1


# Size of tiles
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    def set_free(size: int | None) -> None:
        for module in (memory, tile_size):
            monkeypatch.setattr(module, "available_memory_bytes", lambda: size)

    return set_free


def auto_tile(runner: TorchFunctionRunner, picture: ImageSize) -> ImageSize:
    return tile_size.auto_tile(runner, tile_size.size_ranges(runner), picture)[0]


def test_auto_takes_a_small_picture_as_a_whole(free: Callable[[int | None], None]) -> None:
    free(None)
    assert auto_tile(TorchFunctionRunner(convolutions(2), 2), ImageSize(250, 260)) == (250, 260)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_must_be_cut_is_cut_smaller_on_a_cpu(free: Callable[[int | None], None], on_gpu: bool) -> None:
    free(None)
    runner = TorchFunctionRunner(convolutions(2), 2)
    runner.on_gpu = on_gpu
    assert auto_tile(runner, ImageSize(300, 300)) == ((256, 256) if on_gpu else (64, 64))
    # Thin pictures get long tiles of as many pixels.
    assert auto_tile(runner, ImageSize(16, 100_000)) == ((16, 4096) if on_gpu else (16, 256))


def test_auto_keeps_to_half_of_free_memory(free: Callable[[int | None], None]) -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, memory=1000)
    runner.on_gpu = True
    free(2 * 1000 * 100 * 100)
    height, width = auto_tile(runner, ImageSize(240, 240))
    assert height * width <= 100 * 100 < (height + 8) * (width + 8)


def test_auto_keeps_to_the_profile_and_fills_it(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = TorchFunctionRunner(convolutions(2), 2, low=(1, 3, 64, 64), high=(1, 3, 512, 384))
    assert auto_tile(runner, ImageSize(512, 384)) == (512, 384)
    assert auto_tile(runner, ImageSize(2000, 2000)) == (512, 384)
    assert auto_tile(runner, ImageSize(10, 2000)) == (64, 384)
    plan = tile_size.plan_for_picture(runner, ImageSize(600, 10))
    # Two tiles are needed, and they need not be 512 high: 600 + 32 shared, halved, up to the next multiple of 8.
    assert [(span.start, span.length) for span in plan.rows] == [(0, 320), (280, 320)]


def test_a_fixed_size_is_the_size_of_every_tile(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = TorchFunctionRunner(convolutions(2), 2, low=(1, 3, 32, 48), high=(1, 3, 32, 48))
    for size in ((1, 1), (32, 48), (100, 100)):
        result = upscale_batch(runner, batch(*size), UpscaleOptions(overlap=8))
        assert result.shape[2:] == (2 * size[0], 2 * size[1])
    assert {shape[2:] for shape in runner.shapes} == {(32, 48)}


class SeveralProfiles(TorchFunctionRunner):
    """Takes what lies in one of some ranges of (height, width), as an engine with several profiles."""

    def __init__(self, *ranges: tuple[tuple[int, int], tuple[int, int]], **arguments: Any) -> None:
        super().__init__(convolutions(2), 2, **arguments)
        self.ranges = ranges

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]:
        return tuple(((1, 3, *low), (1, 3, *high)) for low, high in self.ranges)

    def require_shape(self, shape: tuple[int, ...], what: object) -> None:
        assert any(
            low[0] <= shape[2] <= high[0] and low[1] <= shape[3] <= high[1] for low, high in self.ranges
        ), shape


def test_tiles_fit_one_of_several_profiles(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = SeveralProfiles(((16, 16), (64, 64)), ((128, 128), (256, 256)))
    sizes: list[tuple[object, tuple[int, int], tuple[int, int]]] = [
        ("auto", (50, 60), (50, 60)),  # as a whole in the small one
        ("auto", (5, 60), (16, 60)),
        ("auto", (100, 70), (128, 128)),  # between both: grows to the large one
        ("auto", (200, 256), (200, 256)),
        ("auto", (600, 600), (224, 224)),  # the large one, trimmed
        ("auto", (600, 20), (224, 128)),
        ((64, 48), (600, 600), (64, 48)),
        ("none", (130, 5), (130, 128)),
    ]
    for tile, picture, expected in sizes:
        plan = tile_size.plan_for_picture(runner, ImageSize(*picture), tile=tile)  # type: ignore[arg-type]
        assert plan.tile == expected, (tile, picture)
    network = untiled(convolutions(2), batch(100, 70))
    result = upscale_batch(runner, batch(100, 70))
    # Grown by reflection, which the network sees at the edge only.
    np.testing.assert_allclose(result[..., :190, :130], network[..., :190, :130], rtol=0, atol=ROUNDING)


def test_out_of_memory_steps_down_into_a_smaller_profile(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = SeveralProfiles(((16, 16), (64, 64)), ((128, 128), (256, 256)), most_pixels=50 * 64)
    result = upscale_batch(runner, batch(250, 250), UpscaleOptions(overlap=8))
    assert result.shape == (1, 3, 500, 500)
    assert [shape[2:] for shape in dict.fromkeys(runner.shapes)] == [
        (250, 250),
        (128, 250),
        (128, 128),
        (64, 64),
        (32, 64),
    ]


def test_smaller_tiles_end_at_the_least_size() -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, low=(1, 3, 24, 16))
    sizes = [ImageSize(256, 200)]
    while (smaller := tile_size.smaller_tile(runner, sizes[-1])) is not None:
        sizes.append(smaller)
    assert sizes[-1] == (24, 16)
    assert sizes == sorted(sizes, key=lambda size: -size.pixels)


@pytest.mark.parametrize("more", [1, 32, 64, 900])
def test_an_overlap_of_more_than_half_of_the_tile_that_is_chosen_is_wrong_usage(more: int) -> None:
    runner, picture = TorchFunctionRunner(convolutions(2), 2), ImageSize(2000, 2000)
    half = min(tile_size.plan_for_picture(runner, picture).tile) // 2
    assert tile_size.plan_for_picture(runner, picture, overlap=half).count > 1
    with pytest.raises(UsageError, match="do not suit a tile side"):
        tile_size.plan_for_picture(runner, picture, overlap=half + more)


# Arithmetic of sizes
# ----------------------------------------------------------------------------------------------


def test_sizes_that_are_taken_are_multiples_between_the_smallest_and_the_largest() -> None:
    sizes = SizeRange(low=ImageSize(8, 12), high=(40, None), step=4)
    assert [sizes.bounded(ImageSize(*size)) for size in ((1, 1), (9, 13), (41, 100), (40, 101))] == [
        *[(8, 12), (12, 16), (40, 100), (40, 104)]
    ]
    assert [sizes.within(ImageSize(*size)) for size in ((7, 15), (11, 16), (50, 51))] == [
        *[(8, 12), (8, 16), (40, 48)]
    ]
    assert [sizes.padded(ImageSize(*size)) for size in ((41, 1), (1, 13))] == [(44, 12), (8, 16)]
    assert [sizes.takes_padded(ImageSize(*size)) for size in ((40, 1), (41, 1))] == [True, False]
    assert [sizes.starts_by(ImageSize(*size)) for size in ((8, 12), (7, 12), (8, 11))] == [True, False, False]
    assert SizeRange(low=ImageSize(3, 5), high=(7, 9)).step == 1
    assert tile_size.rounded_up(ImageSize(7, 8), 4) == (8, 8)
    assert tile_size.rounded_down(ImageSize(3, 11), 4) == (4, 8)


def test_an_overlap_is_a_fourth_of_the_shortest_side_that_is_cut_and_32_at_most() -> None:
    sides = [
        ((64, 200), (100, 100)),
        ((200, 44), (200, 100)),
        ((130, 127), (999, 999)),
        ((128, 128), (999, 999)),
    ]
    assert [tile_size.chosen_overlap(None, ImageSize(*t), ImageSize(*p)) for t, p in sides] == [
        16,
        11,
        31,
        32,
    ]
    assert tile_size.chosen_overlap(None, ImageSize(9, 9), ImageSize(9, 9)) == 0
    assert tile_size.chosen_overlap(5, ImageSize(64, 64), ImageSize(100, 100)) == 5
    assert [tile_size.largest_overlap(ImageSize(*t), ImageSize(*p)) for t, p in sides] == [32, 22, 63, 64]
    assert tile_size.largest_overlap(ImageSize(30, 70), ImageSize(30, 70)) == 70


def tiles_along(size: int, tile: int, overlap: int) -> int:
    return 1 + max(0, -(-(size - tile) // (tile - overlap)))


@pytest.mark.parametrize(("low", "step"), [(1, 1), (40, 1), (24, 12)])
def test_a_trimmed_tile_is_the_smallest_multiple_of_8_for_as_many_tiles(low: int, step: int) -> None:
    taken = SizeRange(low=ImageSize(low, 1), high=(None, None), step=step)
    for size in range(60, 400, 7):
        for overlap in (0, 5, 16, 32):
            count = tiles_along(size, 96, overlap)
            sides = (side for side in range(8, 104, 8) if side > overlap)
            least = next(side for side in sides if tiles_along(size, side, overlap) <= count)
            least = max(least, low, 2 * overlap)
            expected = min(96, -(-least // step) * step) if size > 96 else 96
            trimmed = tile_size.trimmed_tile(ImageSize(size, 9), ImageSize(96, 96), overlap, taken)
            assert trimmed == (expected, 96), (size, overlap)
    # More overlap than half a tile is refused later.
    assert tile_size.trimmed_tile(ImageSize(400, 9), ImageSize(96, 96), 49) == (96, 96)


@pytest.mark.parametrize(
    ("step", "low", "sizes"),
    [
        (
            1,
            (None, None),
            [(256, 200), (128, 200), (128, 104), (64, 104), (64, 56), (32, 56), (32, 32), (16, 32), (16, 16)],
        ),
        (1, (64, 20), [(64, 90), (64, 48), (64, 24), (64, 20)]),
        (12, (12, 12), [(48, 48), (24, 48), (24, 24)]),
    ],
)
def test_the_longer_side_is_halved_until_nothing_smaller_is_left(
    step: int, low: tuple[int | None, int | None], sizes: list[tuple[int, int]]
) -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, low=(1, 3, *low))
    runner.size_multiple = step
    found: list[ImageSize | None] = [ImageSize(*sizes[0])]
    while found[-1] is not None:
        found.append(tile_size.smaller_tile(runner, found[-1]))
    assert found == [*sizes, None]


def ranges_of(*shapes: tuple[tuple[int | None, int | None], tuple[int | None, int | None]]) -> NearestRunner:
    runner = NearestRunner()
    runner.profiles = tuple(((1, 3, *low), (2, 3, *high)) for low, high in shapes)  # type: ignore[assignment]
    return runner


def test_ranges_keep_to_multiples_and_those_without_any_are_left_out() -> None:
    runner = ranges_of(((5, 9), (30, None)), ((13, 13), (15, 15)))
    runner.size_multiple = 4
    only = SizeRange(low=ImageSize(8, 12), high=(28, None), step=4)
    assert tile_size.size_ranges(runner) == (only,)
    runner.profiles = runner.profiles[1:]
    with pytest.raises(HspanError, match="nearest: takes sides that are multiples of 4, and there is none"):
        tile_size.size_ranges(runner)


def test_ranges_of_both_ways_round_are_square() -> None:
    runner = ranges_of(((8, 16), (32, 64)), ((8, 40), (32, None)), ((None, 9), (None, None)))
    ranges = tile_size.size_ranges(runner, turned=True)
    assert [(sizes.low, sizes.high) for sizes in ranges] == [((16, 16), (32, 32)), ((9, 9), (None, None))]
    assert [sizes.low for sizes in tile_size.size_ranges(runner)] == [(8, 16), (8, 40), (1, 9)]
    with pytest.raises(
        HspanError, match=r"no tile both upright and on its side, .*; leave out --self-ensemble"
    ):
        tile_size.size_ranges(ranges_of(((8, 33), (32, 64))), turned=True)
    assert len(tile_size.size_ranges(ranges_of(((8, 32), (32, 64))), turned=True)) == 1


def test_of_several_ranges_that_take_a_size_it_is_the_one_for_the_most_pictures() -> None:
    runner = NearestRunner()
    runner.profiles = (
        ((2, 3, 8, 8), (4, 3, 64, 64)),
        ((1, 3, 8, 8), (4, 3, 32, 32)),
        ((1, 3, 8, 8), (3, 3, 64, 64)),
    )
    assert tile_size.batch_limits(runner, ImageSize(16, 16), requested=9) == (1, 4)
    assert tile_size.batch_limits(runner, ImageSize(64, 64), requested=9) == (2, 4)
    assert tile_size.batch_limits(runner, ImageSize(65, 64), requested=9) == (1, 9)
    assert tile_size.batch_limits(NearestRunner(), ImageSize(65, 64), requested=9) == (1, 9)


def test_a_size_must_fit_both_ways_round_where_tiles_are_turned() -> None:
    runner = ranges_of(((8, 16), (32, 64)))
    tile_size.require_size(runner, ImageSize(16, 40), "a.png")
    tile_size.require_size(runner, ImageSize(16, 32), "a.png", turned=True)
    with pytest.raises(HspanError, match=r"^a\.png on its side \(--self-ensemble\): is 1x3x40x16, but"):
        tile_size.require_size(runner, ImageSize(16, 40), "a.png", turned=True)
    with pytest.raises(HspanError, match=r"^a\.png: is 1x3x40x16, but"):
        tile_size.require_size(runner, ImageSize(40, 16), "a.png", turned=True)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_as_many_pixels_as_a_square_of_256_are_taken_whole(
    free: Callable[[int | None], None], on_gpu: bool
) -> None:
    free(None)
    runner = TorchFunctionRunner(convolutions(2), 2)
    runner.on_gpu = on_gpu
    for picture, is_whole in (
        ((256, 256), True),
        ((128, 512), True),
        ((257, 256), False),
        ((1, 65536), True),
    ):
        assert (auto_tile(runner, ImageSize(*picture)) == picture) is is_whole


def test_a_whole_picture_may_take_half_of_free_memory_and_no_byte_more(
    free: Callable[[int | None], None],
) -> None:
    runner = TorchFunctionRunner(convolutions(2), 2, memory=1000)
    free(2 * 1000 * 100 * 100)
    assert auto_tile(runner, ImageSize(100, 100)) == (100, 100)
    free(2 * 1000 * 100 * 100 - 2)
    assert auto_tile(runner, ImageSize(100, 100)) == (64, 64)
    free(0)
    assert auto_tile(runner, ImageSize(100, 100)) == (16, 16)


def test_of_several_profiles_the_one_with_the_least_padding_takes_a_whole_picture() -> None:
    large, small = ((16, 16), (256, 256)), ((16, 16), (64, 64))
    for shapes in ((large, small), (small, large)):
        ranges = tile_size.size_ranges(ranges_of(*shapes))
        assert tile_size.auto_tile(ranges_of(*shapes), ranges, ImageSize(60, 40))[1].high == (64, 64)
        assert tile_size.auto_tile(ranges_of(*shapes), ranges, ImageSize(65, 40))[1].high == (256, 256)
    near, far = ((32, 32), (64, 64)), ((48, 48), (50, 50))
    for shapes in ((near, far), (far, near)):
        ranges = tile_size.size_ranges(ranges_of(*shapes))
        assert tile_size.auto_tile(ranges_of(*shapes), ranges, ImageSize(20, 40))[0] == (32, 40)


def test_a_tile_that_is_given_keeps_to_a_limit_and_its_profile(free: Callable[[int | None], None]) -> None:
    free(None)
    runner = SeveralProfiles(((16, 16), (64, 64)), ((32, 128), (256, 256)))
    for tile, limit, expected in (
        ((64, 64), None, (64, 64)),
        ((64, 200), None, (64, 200)),
        ((200, 200), (100, 300), (100, 200)),
        ((200, 200), (31, 300), (31, 64)),
        ((200, 200), (10, 300), (16, 64)),
    ):
        plan = tile_size.plan_for_picture(
            runner, ImageSize(600, 600), tile=tile, limit=limit and ImageSize(*limit)
        )
        assert plan.tile == expected, (tile, limit)
