"""How large a tile may be. Owns the choice: what the network takes, what memory holds, what time allows.

It asks the runner for limits and estimates and Linux for free memory; it runs nothing.
"""

from __future__ import annotations

from typing import Final, Literal

from trt_hspan.errors import UsageError
from trt_hspan.runtime.memory import available_memory_bytes, require_memory
from trt_hspan.runtime.runner import CHANNELS, Runner
from trt_hspan.runtime.tiling import TilePlan, tile_plan

#: "auto", "none", or (height, width) in input pixels.
TileChoice = Literal["auto", "none"] | tuple[int, int]

# Where no profile sets a limit, time does: attention takes time in proportion to a tile's pixels squared, so the
# whole picture's time is in proportion to the pixels of one tile.
AUTO_TILE_SIDE: Final = 256
# Tiles are tried in steps of this many pixels, and made no smaller when memory runs out.
SIDE_STEP: Final = 8
SMALLEST_SIDE: Final = 16
# What is left of free memory for everything that the runner's lower estimate leaves out.
_MEMORY_SHARE: Final = 0.5
DEFAULT_OVERLAP: Final = 32


def plan_for_picture(
    runner: Runner,
    height: int,
    width: int,
    *,
    tile: TileChoice = "auto",
    overlap: int | None = None,
    limit: tuple[int, int] | None = None,
    what: object = "picture",
) -> TilePlan:
    """The tiles in which a network takes a picture.

    Args:
        runner: what will run.
        height, width: of the picture.
        tile: "auto" takes the picture as a whole where profile, memory and time allow it, else the largest
            tile that they allow; "none" takes it as a whole or not at all; (height, width) is used as it is.
        overlap: pixels shared by neighbours; None takes 32, or a quarter of the tile's shorter side if that
            is less.
        limit: (height, width) that an earlier lack of memory has taught not to exceed; not for "none".
        what: the picture; errors name it.

    Raises:
        HspanError: "none", and the picture does not fit the network or the memory; or the size given does not
            fit the network.
        UsageError: the overlap does not suit the tile.
    """
    low, _ = _limits(runner)
    if tile == "none":
        size = (max(height, low[0]), max(width, low[1]))
        runner.require_shape((1, CHANNELS, *size), what)
        require_memory(runner, (1, CHANNELS, *size), what, "leave out --tile none, or give a smaller picture")
        return tile_plan(height, width, None, 0, minimum=low)
    side = auto_tile(runner, height, width) if tile == "auto" else tile
    if tile != "auto":
        runner.require_shape((1, CHANNELS, *side), f"--tile {side[0]}x{side[1]}")
    if limit is not None:
        side = (max(low[0], min(side[0], limit[0])), max(low[1], min(side[1], limit[1])))
    pixels = chosen_overlap(overlap, side, (height, width))
    if tile == "auto":
        side = (trimmed_tile(height, side[0], pixels, low[0]), trimmed_tile(width, side[1], pixels, low[1]))
    return tile_plan(height, width, side, pixels, minimum=low)


def chosen_overlap(overlap: int | None, tile: tuple[int, int], picture: tuple[int, int]) -> int:
    """The overlap for a tile size; a side that is not cut does not count.

    Raises:
        UsageError: an overlap was asked for and is negative.
    """
    cut = [side for side, size in zip(tile, picture, strict=True) if side < size]
    if overlap is None:
        return min(DEFAULT_OVERLAP, min(cut, default=0) // 4)
    if overlap < 0:
        raise UsageError("--overlap", f"{overlap} pixels make no sense", "give 0 or more")
    return overlap


def auto_tile(runner: Runner, height: int, width: int) -> tuple[int, int]:
    """The largest tile for a picture that the network, the free memory and time allow; the whole picture if so.

    Candidates are squares of S x S pixels, S descending in steps of 8; where one side of the picture is shorter
    than S, the tile is longer along the other one, up to the same number of pixels.

    Returns:
        (height, width), within what the runner takes; its smallest when nothing fits the memory.
    """
    low, high = _limits(runner)
    available = available_memory_bytes()
    budget = None if available is None else int(available * _MEMORY_SHARE)

    def bounded(size: tuple[int, int]) -> tuple[int, int]:
        return _clamp(size[0], low[0], high[0]), _clamp(size[1], low[1], high[1])

    def fits(size: tuple[int, int]) -> bool:
        return budget is None or runner.memory_bytes((1, CHANNELS, *size)) <= budget

    whole = (max(height, low[0]), max(width, low[1]))
    unlimited = None in high  # a profile was chosen by somebody who knows what the GPU can do
    if bounded(whole) == whole and (not unlimited or height * width <= AUTO_TILE_SIDE**2) and fits(whole):
        return whole
    side = AUTO_TILE_SIDE if unlimited else max(high[0] or 0, high[1] or 0)
    while True:
        tall = min(height, side)
        wide = min(width, side * side // tall)
        tall = min(height, side * side // wide)
        size = bounded((tall, wide))
        if fits(size) or side <= SMALLEST_SIDE:
            return size
        side = max(SMALLEST_SIDE, (side - 1) // SIDE_STEP * SIDE_STEP)


def trimmed_tile(size: int, tile: int, overlap: int, low: int) -> int:
    """The shortest tile side that covers an axis in as many tiles as `tile` does, a multiple of 8 where possible."""
    if size <= tile or overlap > tile // 2:
        return tile
    count = -((size - overlap) // -(tile - overlap))
    needed = -((size + (count - 1) * overlap) // -count)
    rounded = -(needed // -SIDE_STEP) * SIDE_STEP
    return min(tile, max(rounded, low, 2 * overlap))


def smaller_tile(runner: Runner, tile: tuple[int, int]) -> tuple[int, int] | None:
    """What to try after a tile did not fit in memory: the longer side halved; None when nothing smaller is left."""
    low, _ = _limits(runner)
    halves = [
        min(side, max(SMALLEST_SIDE, floor, -(side // -(2 * SIDE_STEP)) * SIDE_STEP))
        for side, floor in zip(tile, low, strict=True)
    ]
    shorter = [(halves[0], tile[1]), (tile[0], halves[1])]
    if tile[1] > tile[0]:
        shorter.reverse()
    return next((size for size in shorter if size != tile), None)


def _limits(runner: Runner) -> tuple[tuple[int, int], tuple[int | None, int | None]]:
    """(height, width) of the smallest and the largest input; None where only memory sets a limit."""
    low, high = runner.min_shape, runner.max_shape
    return (low[2] or 1, low[3] or 1), (high[2], high[3])


def _clamp(size: int, low: int, high: int | None) -> int:
    return max(low, size if high is None else min(size, high))
