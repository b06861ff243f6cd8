"""Puts the tiles' outputs together, strip by strip. Owns weights and sums; where tiles lie is in `tiling`.

Along each axis a tile's weight climbs over its ramp of L output pixels as (2k + 1) / 2L for k = 0 ... L - 1, while
its neighbor's falls as (2(L - k) - 1) / 2L: the two sum to 1. A pixel's weight is the product of both axes'.
No more is held in memory than one strip of finished pixels and, in float32, the ramps that wait for a neighbor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_hspan.machine.memory import array_of_own_pages
from trt_hspan.upscaling.tiling import Span, TilePlan

Float32Array = npt.NDArray[np.float32]
#: A tile's (row index, column index) in its plan -> the network's output for it, (N, 3, s * h, s * w).
TileOutput = Callable[[int, int], Float32Array]
#: (N, 3, h, w) of finished values -> pixels (h, w, ...) of any type.
PixelsFromTensor = Callable[[Float32Array], npt.NDArray[Any]]


def rising_weights(length: int) -> Float32Array:
    """Weights of a ramp of `length` output pixels, first to last: (2k + 1) / 2L, divided in float32."""
    return np.arange(1, 2 * length, 2, dtype=np.float32) / np.float32(2 * length)


def falling_weights(length: int) -> Float32Array:
    """Weights of the tile that ends there: `rising_weights` backwards; the two sum to 1 within one rounding."""
    return rising_weights(length)[::-1].copy()


def blended_strips(
    plan: TilePlan, scale: int, output_of: TileOutput, pixels_from_tensor: PixelsFromTensor
) -> Iterator[npt.NDArray[Any]]:
    """Runs the tiles from top to bottom and yields strips of full width, (rows, scale * width, ...) pixels.

    `output_of` is called once for each tile, row by row.
    """
    carried: Any = None  # the previous row's falling ramp, (N, 3, rows, scale * width)
    for row_index, row in enumerate(plan.rows):
        body = row.rise_start + row.rise_length
        strip: Any = None
        falling: Any = None
        for left, values in _columns_of_row(plan, scale, row_index, output_of):
            right = left + values.shape[3]
            rise = (body - row.rise_start) * scale
            fall = (row.fall_start - row.rise_start) * scale
            top, middle, bottom = values[:, :, :rise], values[:, :, rise:fall], values[:, :, fall:]
            if rise:
                ramp = rising_weights(rise)[:, None]
                middle = np.concatenate([carried[..., left:right] + top * ramp, middle], axis=2)
            pixels = pixels_from_tensor(middle)
            if strip is None:
                strip = array_of_own_pages(
                    (fall, plan.picture.width * scale, *pixels.shape[2:]), pixels.dtype
                )
            strip[:, left:right] = pixels
            if bottom.shape[2]:
                if falling is None:
                    falling = array_of_own_pages((*bottom.shape[:3], plan.picture.width * scale), np.float32)
                falling[..., left:right] = bottom * falling_weights(bottom.shape[2])[:, None]
        carried = falling
        yield strip
        del strip  # before the next one is made


def _columns_of_row(
    plan: TilePlan, scale: int, row_index: int, output_of: TileOutput
) -> Iterator[tuple[int, Float32Array]]:
    """The values of one row of tiles, blended along the row: (left edge, (N, 3, rows, columns)) from left to right."""
    top, _, _, bottom = _edges(plan.rows[row_index], scale)
    carried: Any = None  # the falling ramp of the tile before
    for column_index, column in enumerate(plan.columns):
        rise, body, fall, end = _edges(column, scale)
        output = output_of(row_index, column_index)[:, :, top:bottom]
        values = output[..., body:fall]
        if body > rise:
            ramp = carried + output[..., rise:body] * rising_weights(body - rise)
            values = np.concatenate([ramp, values], axis=3)
        carried = output[..., fall:end] * falling_weights(end - fall)
        yield column.rise_start * scale, values


def _edges(span: Span, scale: int) -> tuple[int, int, int, int]:
    """Where rise, body and fall begin and the fall ends, in output pixels of the tile."""
    points = (span.rise_start, span.rise_start + span.rise_length, span.fall_start, span.kept_end)
    begin, body, fall, end = ((point - span.start) * scale for point in points)
    return begin, body, fall, end
