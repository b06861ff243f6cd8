"""Tiles put together: each pixel is the weighted mean of the tiles that it lies in, strip by strip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.blending import blended_strips, falling_weights, rising_weights
from trt_hspan.upscaling.tiling import Span, TilePlan, official_plan, tile_plan

GOLDEN_RAMPS = json.loads((Path(__file__).parent / "golden" / "tile_plans.json").read_text())["ramps"]


@pytest.mark.parametrize("case", GOLDEN_RAMPS, ids=lambda case: str(case["length"]))
def test_golden_weights(case: dict) -> None:
    assert rising_weights(case["length"]).tolist() == case["rising"]
    assert falling_weights(case["length"]).tolist() == case["falling"]


def profile_reference(span: Span, size: int, scale: int) -> np.ndarray:
    """(size,) weights of a tile along an axis of the output, in double precision."""
    position = (np.arange(size) + 0.5) / scale
    ramps = [
        (position - span.rise_start) / span.rise_length
        if span.rise_length
        else np.where(position > span.rise_start, 1.0, 0.0),
        (span.kept_end - position) / span.fall_length
        if span.fall_length
        else np.where(position < span.fall_start, 1.0, 0.0),
    ]
    return np.clip(np.minimum(*ramps), 0, 1)


def blended_reference(plan: TilePlan, scale: int, tiles: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    height, width = (side * scale for side in plan.picture)
    total = np.zeros((*tiles[0, 0].shape[:2], height, width))
    for (row_index, column_index), tile in tiles.items():
        row, column = plan.rows[row_index], plan.columns[column_index]
        top, left = row.start * scale, column.start * scale
        part = tile[:, :, : height - top, : width - left]
        weights = np.outer(profile_reference(row, height, scale), profile_reference(column, width, scale))
        window = ..., slice(top, top + part.shape[2]), slice(left, left + part.shape[3])
        total[window] += part * weights[window]
    return total


PLANS = {
    "whole": tile_plan(ImageSize(5, 7), None, 0),
    "grown": tile_plan(ImageSize(5, 7), ImageSize(8, 8), 2, minimum=ImageSize(8, 8)),
    "rows": tile_plan(ImageSize(23, 7), ImageSize(10, 9), 4),
    "columns": tile_plan(ImageSize(7, 31), ImageSize(9, 12), 6),
    "both": tile_plan(ImageSize(23, 31), ImageSize(10, 12), 5),
    "hard": tile_plan(ImageSize(23, 31), ImageSize(10, 12), 0),
    "official": official_plan(ImageSize(61, 75)),
}


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("name", PLANS)
def test_strips_are_the_weighted_means_of_the_tiles(name: str, scale: int) -> None:
    plan, random = PLANS[name], np.random.default_rng(0)
    tiles: dict[tuple[int, int], np.ndarray] = {}

    def output_of(row: int, column: int) -> np.ndarray:
        sides = (plan.rows[row].length * scale, plan.columns[column].length * scale)
        tiles[row, column] = random.random((2, 3, *sides), dtype=np.float32)
        return tiles[row, column]

    kept: list[np.ndarray] = []
    for strip in blended_strips(plan, scale, output_of, lambda values: values.transpose(2, 3, 0, 1)):
        assert strip.flags.writeable
        kept.append(strip)
    # Each strip ends where the next row's tiles begin to count.
    assert [len(strip) for strip in kept] == [(row.fall_start - row.rise_start) * scale for row in plan.rows]
    assert list(tiles) == [
        (row, column) for row in range(len(plan.rows)) for column in range(len(plan.columns))
    ]
    expected = blended_reference(plan, scale, tiles).transpose(2, 3, 0, 1)
    # Weights, products and sums of numbers below 1, each rounded to float32, along two axes.
    np.testing.assert_allclose(np.concatenate(kept), expected, rtol=0, atol=8 * 2**-24)


def test_pixels_may_be_of_any_type_and_shape() -> None:
    def gray(values: np.ndarray) -> np.ndarray:
        return np.rint(values[0, 0] * 65535).astype(np.uint16)

    plan = PLANS["both"]
    strips = list(blended_strips(plan, 2, lambda row, column: np.ones((1, 3, 20, 24), np.float32), gray))
    assert {strip.dtype for strip in strips} == {np.dtype(np.uint16)}
    assert np.concatenate(strips).shape == (46, 62)
    assert np.concatenate(strips).min() == 65535
