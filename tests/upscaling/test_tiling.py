"""Where tiles lie: rules as properties, and golden plans that other programs must reproduce."""

from __future__ import annotations

import itertools
import json
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.blending import falling_weights, rising_weights
from trt_hspan.upscaling.tiling import (
    Span,
    TilePlan,
    feather_length,
    margin_length,
    official_plan,
    tile_plan,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tile_plans.json").read_text())


def weight_sums(spans: tuple[Span, ...], size: int, scale: int) -> np.ndarray:
    sums = np.zeros(max(size, spans[0].end) * scale)
    for span in spans:
        rise, body, fall, end = (
            side * scale
            for side in (span.rise_start, span.rise_start + span.rise_length, span.fall_start, span.kept_end)
        )
        sums[rise:body] += rising_weights(body - rise)
        sums[body:fall] += 1
        sums[fall:end] += falling_weights(end - fall)
    return sums[: size * scale]


@st.composite
def tilings(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Picture side, tile side, overlap, least side."""
    tile = draw(st.integers(1, 80))
    return (
        draw(st.integers(1, 400)),
        tile,
        draw(st.integers(0, tile // 2)),
        draw(st.sampled_from([1, min(8, tile)])),
    )


@settings(max_examples=400, deadline=None)
@given(tilings(), st.sampled_from([1, 2, 3, 4]))
def test_every_output_pixel_is_covered_and_weights_sum_to_1(
    tiling: tuple[int, int, int, int], scale: int
) -> None:
    size, tile, overlap, least = tiling
    spans = tile_plan(ImageSize(size, 1), ImageSize(tile, 1), overlap, minimum=ImageSize(least, 1)).rows
    # Two float32 numbers (2k + 1) / 2L and its complement: each is rounded once, and so is their sum.
    np.testing.assert_allclose(weight_sums(spans, size, scale), 1, rtol=0, atol=3 * 2**-24)


@settings(max_examples=400, deadline=None)
@given(tilings())
def test_tiles_are_of_one_size_inside_the_picture_and_share_the_requested_overlap(
    tiling: tuple[int, int, int, int],
) -> None:
    size, tile, overlap, least = tiling
    spans = tile_plan(ImageSize(1, size), ImageSize(1, tile), overlap, minimum=ImageSize(1, least)).columns
    if size <= tile:
        assert [(span.start, span.length) for span in spans] == [(0, max(size, least))]
        return
    assert {span.length for span in spans} == {tile}
    assert (spans[0].start, spans[-1].end) == (0, size)
    for left, right in itertools.pairwise(spans):
        assert left.start < right.start <= left.end - overlap
        # The ramp keeps the margin on both sides.
        assert right.rise_start - right.start >= margin_length(overlap)
        assert left.end - left.kept_end >= margin_length(overlap)
    # No fewer tiles would do.
    assert (len(spans) - 1) * (tile - overlap) + overlap < size


def test_an_odd_picture_down_to_one_pixel_is_one_tile() -> None:
    assert tile_plan(ImageSize(1, 1), ImageSize(64, 64), 16) == TilePlan(
        ImageSize(1, 1), (Span(0, 1, 0, 0, 1, 0),), (Span(0, 1, 0, 0, 1, 0),)
    )
    plan = tile_plan(ImageSize(1, 1), ImageSize(64, 64), 16, minimum=ImageSize(16, 24))
    assert (plan.tile, plan.count) == ((16, 24), 1)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [((16, 16), 9, "0 to 8"), ((16, 16), -1, "0 to 8"), ((0, 16), 0, "height is 0")],
)
def test_tiles_that_make_no_sense_are_wrong_usage(tile: tuple[int, int], overlap: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tile_plan(ImageSize(100, 100), ImageSize(*tile), overlap)


@pytest.mark.parametrize("case", GOLDEN["tiled"], ids=lambda case: f"{case['height']}x{case['width']}")
def test_golden_plan(case: dict) -> None:
    plan = tile_plan(
        ImageSize(case["height"], case["width"]),
        ImageSize(*case["tile"]) if case["tile"] else None,
        case["overlap"],
        minimum=ImageSize(*case["minimum"]),
    )
    assert [list(astuple(span)) for span in plan.rows] == case["rows"]
    assert [list(astuple(span)) for span in plan.columns] == case["columns"]


@pytest.mark.parametrize("case", GOLDEN["official"], ids=lambda case: f"{case['height']}x{case['width']}")
def test_golden_official_plan(case: dict) -> None:
    plan = official_plan(ImageSize(case["height"], case["width"]), min_size=case["min_size"])
    assert [list(astuple(span)) for span in plan.rows] == case["rows"]
    assert [list(astuple(span)) for span in plan.columns] == case["columns"]


@settings(max_examples=150, deadline=None)
@given(st.integers(24, 3000), st.integers(32, 3000))
def test_official_plan_covers_every_pixel_once(height: int, width: int) -> None:
    plan = official_plan(ImageSize(height, width), min_size=9000)
    for spans, size in ((plan.rows, height), (plan.columns, width)):
        assert [span.rise_start for span in spans] == [0, *(span.fall_start for span in spans[:-1])]
        assert spans[-1].fall_start == size
        assert all(span.start <= span.rise_start < span.fall_start <= span.end <= size for span in spans)
    assert plan.tile.pixels < 9000


def test_the_official_code_always_cuts_into_quarters() -> None:
    assert official_plan(ImageSize(24, 24)).count == 4
    # Quarters of a 640x640 picture have 332 rows and 336 columns, 111,552 pixels, fewer than 120,000.
    plan = official_plan(ImageSize(640, 640))
    assert (plan.count, plan.tile) == (4, (332, 336))
    assert official_plan(ImageSize(700, 700)).count == 16


@pytest.mark.parametrize(("height", "width"), [(1, 1), (23, 40), (24, 23), (24, 28)])
def test_pictures_that_the_official_code_fails_on_are_reported(height: int, width: int) -> None:
    with pytest.raises(HspanError, match=r"a\.png: .*too small to be quartered.*take another --protocol"):
        official_plan(ImageSize(height, width), what="a.png")


def test_a_recursion_that_would_not_end_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="500 is too small: quarters of 28x32 pixels do not become smaller"):
        official_plan(ImageSize(300, 300), min_size=500)


def test_quarters_are_multiples_of_what_the_network_takes_and_of_the_official_steps() -> None:
    """Of 4 and 8 with 3 these are 12 and 24; half of 60 with a margin of 10 is 40."""
    assert official_plan(ImageSize(60, 60), size_multiple=3).tile == (48, 48)
    assert official_plan(ImageSize(60, 60)).tile == (44, 48)
    assert official_plan(ImageSize(60, 60), shave=4).tile == (36, 40)
    with pytest.raises(HspanError, match="margin 10, in multiples of 40; take another --protocol"):
        official_plan(ImageSize(60, 60), size_multiple=5)


def test_as_many_pixels_as_are_cut_again_are_cut_again() -> None:
    least = 332 * 336
    assert official_plan(ImageSize(640, 640), min_size=least + 1).count == 4
    assert official_plan(ImageSize(640, 640), min_size=least).count == 16
    with pytest.raises(UsageError, match=r"give at least 897$"):
        official_plan(ImageSize(300, 300), min_size=896)
    assert official_plan(ImageSize(300, 300), min_size=897).tile == (28, 32)


@pytest.mark.parametrize("side", [8, 9, 15, 16])
def test_a_side_that_is_not_cut_grows_to_the_next_multiple(side: int) -> None:
    plan = tile_plan(ImageSize(side, 40), ImageSize(16, 16), 4, step=8)
    assert plan.tile == (8 if side == 8 else 16, 16)
    assert plan.rows == (Span(0, plan.tile.height, 0, 0, side, 0),)
    assert plan.columns[0].end == 16


def test_the_margin_is_three_eighths_of_the_overlap() -> None:
    assert [margin_length(overlap) for overlap in (0, 2, 3, 5, 6, 8, 32)] == [0, 0, 1, 1, 2, 3, 12]
    assert [feather_length(overlap) for overlap in (0, 1, 3, 8, 32)] == [0, 1, 1, 2, 8]
