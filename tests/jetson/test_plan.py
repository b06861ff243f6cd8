from __future__ import annotations

import dataclasses
import time

import pytest

from trt_hspan.errors import UsageError
from trt_hspan.jetson.boards import BOARDS, Board, board_from_name
from trt_hspan.jetson.network_cost import AttentionSizes, NetworkCost
from trt_hspan.jetson.plan import least_ms, memory_for_tile, plan_for_board
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tiling import Span, TilePlan, tile_plan

COST = NetworkCost(
    scale=2,
    precision="fp16",
    element_bytes=2,
    weights_bytes=64_000_000,
    activation_bytes_per_pixel=3000.0,
    macs_per_pixel=32e6,
    attention=(AttentionSizes(score_channels=96, value_channels=192),) * 10,
    source="made up",
)
NANO = board_from_name("orin-nano-8g")


def _with_memory(board: Board, size: int) -> Board:
    return dataclasses.replace(board, memory_bytes=size, reserved_bytes=0)


def test_memory_is_the_sum_of_what_the_tile_needs() -> None:
    memory = memory_for_tile(COST, NANO, ImageSize(100, 200))
    assert memory.weights == 64_000_000
    assert memory.activations == 3000 * 20_000
    # Query, key and value token by token in FP16; for 16,384 rows lists of 1,728 scores and keys, 576 maxima, 32
    # lengths, a bound and a result.
    rows = 16_384 * (1728 * 8 + 576 * 4 + 32 * 4 + 8 + 32)
    assert memory.workspace == 2 * 20_000 * (96 + 96 + 192) + rows
    assert memory.tensors == 3 * 4 * 20_000 * (1 + 4)
    assert memory.total == sum(dataclasses.astuple(memory))


def test_a_picture_that_fits_is_taken_as_a_whole() -> None:
    plan = plan_for_board(COST, NANO, ImageSize(360, 640))
    assert plan.fits
    assert plan.whole
    assert plan.tiles.tile == (360, 640)


def test_less_memory_means_smaller_tiles_and_more_work() -> None:
    plans = [
        plan_for_board(COST, _with_memory(NANO, mib << 20), ImageSize(720, 1280)) for mib in (4096, 1024, 512)
    ]
    assert all(plan.fits for plan in plans)
    areas = [plan.tiles.tile.pixels for plan in plans]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > areas[-1]
    for plan in plans:
        assert plan.memory.total <= plan.board.memory_bytes


def test_a_board_that_is_too_small_for_any_tile_is_reported() -> None:
    assert not plan_for_board(COST, _with_memory(NANO, 32 << 20), ImageSize(360, 640)).fits


def test_the_floor_is_the_arithmetic_over_the_published_peak() -> None:
    plan = plan_for_board(COST, NANO, ImageSize(100, 100))
    length = 100 * 100
    flops = 2 * 32e6 * length + 10 * 2 * 96 * length**2
    assert plan.floor_by == "arithmetic"
    assert plan.floor_ms == pytest.approx(flops / 10e12 * 1e3)
    assert plan.attention_share == pytest.approx(10 * 2 * 96 * length**2 / flops)


def test_faster_boards_have_lower_floors() -> None:
    floors = {board.name: plan_for_board(COST, board, ImageSize(180, 320)).floor_ms for board in BOARDS}
    assert floors["agx-thor"] < floors["agx-orin-64g"] < floors["orin-nano-8g"] < floors["orin-nano-4g"]


def test_a_board_of_no_known_name_is_refused() -> None:
    with pytest.raises(UsageError, match="orin-nano-8g"):
        board_from_name("raspberry")


def test_a_picture_of_a_million_pixels_a_side_is_planned_at_once() -> None:
    started = time.perf_counter()
    plan = plan_for_board(COST, NANO, ImageSize(999_999, 999_999))
    assert time.perf_counter() - started < 5
    assert plan.fits
    side = plan.tiles.tile.height
    assert side % 8 == 0
    assert memory_for_tile(COST, NANO, ImageSize(side + 8, side + 8)).total > NANO.memory_bytes
    assert plan.floor_ms == pytest.approx(
        plan.tiles.count * least_ms(COST, NANO, tile_plan(ImageSize(side, side), None, 0))
    )


def test_tiles_of_several_sizes_count_as_they_are() -> None:
    tiles = TilePlan(ImageSize(10, 10), (_span(3), _span(4), _span(4)), (_span(5), _span(7)))
    each = [
        least_ms(COST, NANO, TilePlan(ImageSize(h, w), (_span(h),), (_span(w),)))
        for h in (3, 4, 4)
        for w in (5, 7)
    ]
    assert least_ms(COST, NANO, tiles) == pytest.approx(sum(each))


def _span(length: int) -> Span:
    return Span(0, length, 0, 0, length, 0)


def test_a_network_of_one_size_is_planned_for_that_size_only() -> None:
    fixed = dataclasses.replace(COST, fixed_size=ImageSize(48, 64))
    assert plan_for_board(fixed, NANO, ImageSize(48, 64)).whole
    with pytest.raises(UsageError, match="360x640, but the network was exported for 48x64 only"):
        plan_for_board(fixed, NANO, ImageSize(360, 640))
    # It cannot be cut either.
    assert not plan_for_board(fixed, _with_memory(NANO, 70_000_000), ImageSize(48, 64)).fits


@pytest.mark.parametrize("size", [(1, 1), (1, 999_999), (7, 3), (16, 17)])
def test_odd_sizes_are_planned_within_the_memory_when_they_fit(size: tuple[int, int]) -> None:
    for mib in (70, 90, 4096):
        board = _with_memory(NANO, mib << 20)
        plan = plan_for_board(COST, board, ImageSize(*size))
        assert plan.fits == (plan.memory.total <= board.memory_bytes)
        assert plan.tiles.tile.height <= max(size[0], 16)
        assert plan.floor_ms > 0
