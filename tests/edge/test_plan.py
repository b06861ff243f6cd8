from __future__ import annotations

import dataclasses

import pytest

from trt_hspan.edge.boards import BOARDS, Board, board_from_name
from trt_hspan.edge.network_cost import AttentionSizes, NetworkCost
from trt_hspan.edge.plan import memory_for_tile, plan_for_board
from trt_hspan.errors import UsageError

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
    memory = memory_for_tile(COST, NANO, 100, 200)
    assert memory.weights == 64_000_000
    assert memory.activations == 3000 * 20_000
    # Query, key and value token by token in FP16, and lists of 1,024 scores and keys for 16,384 rows.
    assert memory.workspace == 2 * 20_000 * (96 + 96 + 192) + 16_384 * 1024 * 8
    assert memory.tensors == 3 * 4 * 20_000 * (1 + 4)
    assert memory.total == sum(dataclasses.astuple(memory))


def test_a_picture_that_fits_is_taken_as_a_whole() -> None:
    plan = plan_for_board(COST, NANO, 360, 640)
    assert plan.fits
    assert plan.whole
    assert (plan.tiles.tile_height, plan.tiles.tile_width) == (360, 640)


def test_less_memory_means_smaller_tiles_and_more_work() -> None:
    plans = [plan_for_board(COST, _with_memory(NANO, mib << 20), 720, 1280) for mib in (4096, 1024, 512)]
    assert all(plan.fits for plan in plans)
    areas = [plan.tiles.tile_height * plan.tiles.tile_width for plan in plans]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > areas[-1]
    for plan in plans:
        assert plan.memory.total <= plan.board.memory_bytes


def test_a_board_that_is_too_small_for_any_tile_is_told() -> None:
    assert not plan_for_board(COST, _with_memory(NANO, 32 << 20), 360, 640).fits


def test_the_floor_is_the_arithmetic_over_the_published_peak() -> None:
    plan = plan_for_board(COST, NANO, 100, 100)
    length = 100 * 100
    flops = 2 * 32e6 * length + 10 * 2 * 96 * length**2
    assert plan.floor_by == "arithmetic"
    assert plan.floor_ms == pytest.approx(flops / 10e12 * 1e3)
    assert plan.attention_share == pytest.approx(10 * 2 * 96 * length**2 / flops)


def test_faster_boards_have_lower_floors() -> None:
    floors = {board.name: plan_for_board(COST, board, 180, 320).floor_ms for board in BOARDS}
    assert floors["agx-thor"] < floors["agx-orin-64g"] < floors["orin-nano-8g"] < floors["orin-nano-4g"]


def test_names_and_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="orin-nano-8g"):
        board_from_name("raspberry")
    with pytest.raises(UsageError, match="is no size"):
        plan_for_board(COST, NANO, 0, 5)
