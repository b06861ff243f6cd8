"""How large a tile may be. Owns the choice: what the network takes, what memory holds, what time allows.

It asks the runner for limits and estimates and Linux for free memory; it runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.machine.memory import available_memory_bytes
from trt_hspan.runtime.memory import require_memory
from trt_hspan.runtime.runner import CHANNELS, Limits
from trt_hspan.sizes import TileChoice
from trt_hspan.upscaling.tiling import TilePlan, tile_plan

# Where no profile sets a limit, time does: attention takes time in proportion to a tile's pixels squared, so the
# whole picture's time is in proportion to the pixels of one tile.
AUTO_TILE_SIDE: Final = 256
# Tiles are tried in steps of this many pixels, and made no smaller when memory runs out.
SIDE_STEP: Final = 8
SMALLEST_SIDE: Final = 16
# What is left of free memory for everything that the runner's lower estimate leaves out.
_MEMORY_SHARE: Final = 0.5
DEFAULT_OVERLAP: Final = 32


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """Inputs that one run takes: (height, width) of the smallest and the largest; None where memory alone limits it."""

    low: tuple[int, int]
    high: tuple[int | None, int | None]

    def bounded(self, height: int, width: int) -> tuple[int, int]:
        """The nearest (height, width) that is taken."""
        return _clamp(height, self.low[0], self.high[0]), _clamp(width, self.low[1], self.high[1])

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a picture that has grown to what is taken at least."""
        return max(height, self.low[0]), max(width, self.low[1])

    def holds_padded(self, height: int, width: int) -> bool:
        """Whether a picture of this size, grown as `padded`, is taken."""
        return self.bounded(height, width) == self.padded(height, width)

    def starts_by(self, size: tuple[int, int]) -> bool:
        """Whether something of at most this size is taken."""
        return self.low[0] <= size[0] and self.low[1] <= size[1]


def plan_for_picture(
    runner: Limits,
    height: int,
    width: int,
    *,
    tile: TileChoice = "auto",
    overlap: int | None = None,
    limit: tuple[int, int] | None = None,
    turned: bool = False,
    what: object = "picture",
) -> TilePlan:
    """The tiles in which a network takes a picture.

    Args:
        runner: what will run.
        height, width: of the picture.
        tile: "auto" takes the picture as a whole where profile, memory and time allow it, else the largest
            tile that they allow; "none" takes it as a whole or not at all; (height, width) is used as it is.
        overlap: pixels shared by neighbors; None takes 32, or a quarter of the tile's shorter side if that
            is less.
        limit: (height, width) that an earlier lack of memory has taught not to exceed; not for "none". An overlap
            that is more than half of what remains is made as small.
        turned: the network must take tiles on their side too, as a self-ensemble gives them.
        what: the picture; errors name it.

    Raises:
        HspanError: "none", and the picture does not fit the network or the memory; or the size given does not
            fit the network; or it takes nothing both upright and `turned`.
        UsageError: the overlap does not suit the tile.
    """
    ranges: Sequence[SizeRange] = size_ranges(runner, turned=turned and tile == "auto")
    if tile == "none":
        fitting = _range_of_whole(ranges, height, width)
        size = (height, width) if fitting is None else fitting.padded(height, width)
        require_size(runner, size, what, turned=turned)
        require_memory(runner, (1, CHANNELS, *size), what, "leave out --tile none, or give a smaller picture")
        return tile_plan(height, width, None, 0, minimum=size)
    if tile != "auto":
        require_size(runner, tile, f"--tile {tile[0]}x{tile[1]}", turned=turned)
        ranges = size_ranges(runner, turned=turned)
    if limit is not None:
        ranges = _below(ranges, limit)
    if tile == "auto":
        side, taken = _auto_tile(runner, ranges, height, width)
    else:
        side, taken = _given_tile(ranges, tile, limit)
    unlimited = side if tile == "auto" else tile
    if limit is not None:
        side = taken.bounded(min(side[0], limit[0]), min(side[1], limit[1]))
    pixels = chosen_overlap(overlap, side, (height, width))
    if pixels <= largest_overlap(unlimited, (height, width)):
        pixels = min(pixels, largest_overlap(side, (height, width)))
    if tile == "auto":
        side = (
            trimmed_tile(height, side[0], pixels, taken.low[0]),
            trimmed_tile(width, side[1], pixels, taken.low[1]),
        )
    return tile_plan(height, width, side, pixels, minimum=taken.low)


def chosen_overlap(overlap: int | None, tile: tuple[int, int], picture: tuple[int, int]) -> int:
    """The overlap for a tile size; a side that is not cut does not count.

    Raises:
        UsageError: an overlap was asked for and is negative.
    """
    if overlap is None:
        return min(DEFAULT_OVERLAP, min(_cut_sides(tile, picture), default=0) // 4)
    if overlap < 0:
        raise UsageError("--overlap", f"{overlap} pixels make no sense", "give 0 or more")
    return overlap


def largest_overlap(tile: tuple[int, int], picture: tuple[int, int]) -> int:
    """Half of the shortest side that is cut; the picture's longer side where none is."""
    return min((side // 2 for side in _cut_sides(tile, picture)), default=max(picture))


def _cut_sides(tile: tuple[int, int], picture: tuple[int, int]) -> list[int]:
    return [side for side, size in zip(tile, picture, strict=True) if side < size]


def require_size(runner: Limits, size: tuple[int, int], what: object, *, turned: bool = False) -> None:
    """Checks that a network takes tiles of (height, width), in batches as large as it wants.

    Raises:
        HspanError: it does not, or, where tiles are `turned`, not on their side.
    """
    least, _ = batch_limits(runner, *size, wanted=1)
    runner.require_shape((least, CHANNELS, *size), what)
    if turned:
        least, _ = batch_limits(runner, *size[::-1], wanted=1)
        runner.require_shape((least, CHANNELS, *size[::-1]), f"{what} on its side (--self-ensemble)")


def auto_tile(runner: Limits, height: int, width: int) -> tuple[int, int]:
    """The largest tile for a picture that the network, the free memory and time allow; the whole picture if so.

    Candidates are squares of S x S pixels, S descending in steps of 8; where one side of the picture is shorter
    than S, the tile is longer along the other one, up to the same number of pixels.

    Returns:
        (height, width), within what the runner takes; its smallest when nothing fits the memory.
    """
    return _auto_tile(runner, size_ranges(runner), height, width)[0]


def _auto_tile(
    runner: Limits, ranges: Sequence[SizeRange], height: int, width: int
) -> tuple[tuple[int, int], SizeRange]:
    available = available_memory_bytes()
    budget = None if available is None else int(available * _MEMORY_SHARE)

    def fits(size: tuple[int, int]) -> bool:
        return budget is None or runner.memory_bytes((1, CHANNELS, *size)) <= budget

    taken = _range_of_whole(ranges, height, width)
    if taken is not None:
        whole = taken.padded(height, width)
        # A profile was chosen by somebody who knows what the GPU can do.
        in_time = None not in taken.high or height * width <= AUTO_TILE_SIDE**2
        if in_time and fits(whole):
            return whole, taken
    taken = _largest(ranges)
    side = AUTO_TILE_SIDE if None in taken.high else max(taken.high[0] or 0, taken.high[1] or 0)
    while True:
        tall = min(height, side)
        wide = min(width, side * side // tall)
        tall = min(height, side * side // wide)
        size = taken.bounded(tall, wide)
        if fits(size) or side <= SMALLEST_SIDE:
            return size, taken
        side = max(SMALLEST_SIDE, (side - 1) // SIDE_STEP * SIDE_STEP)


def _given_tile(
    ranges: Sequence[SizeRange], tile: tuple[int, int], limit: tuple[int, int] | None
) -> tuple[tuple[int, int], SizeRange]:
    """A tile that was asked for, no larger than the limit, and the range that takes it."""
    if limit is not None:
        tile = (min(tile[0], limit[0]), min(tile[1], limit[1]))
    holding = [known for known in ranges if known.bounded(*tile) == tile]
    taken = min(holding, key=_area) if holding else _largest(ranges)
    return taken.bounded(*tile), taken


def trimmed_tile(size: int, tile: int, overlap: int, low: int) -> int:
    """The shortest tile side that covers an axis in as many tiles as `tile` does, a multiple of 8 where possible."""
    if size <= tile or overlap > tile // 2:
        return tile
    count = -((size - overlap) // -(tile - overlap))
    needed = -((size + (count - 1) * overlap) // -count)
    rounded = -(needed // -SIDE_STEP) * SIDE_STEP
    return min(tile, max(rounded, low, 2 * overlap))


def smaller_tile(runner: Limits, tile: tuple[int, int], *, turned: bool = False) -> tuple[int, int] | None:
    """What to try after a tile did not fit in memory: the longer side halved; None when nothing smaller is left."""
    ranges = size_ranges(runner, turned=turned)
    low = [min(known.low[axis] for known in ranges) for axis in (0, 1)]
    halves = [
        min(side, max(SMALLEST_SIDE, floor, -(side // -(2 * SIDE_STEP)) * SIDE_STEP))
        for side, floor in zip(tile, low, strict=True)
    ]
    shorter = [(halves[0], tile[1]), (tile[0], halves[1])]
    if tile[1] > tile[0]:
        shorter.reverse()
    return next((size for size in shorter if size != tile and any(r.starts_by(size) for r in ranges)), None)


def size_ranges(runner: Limits, *, turned: bool = False) -> tuple[SizeRange, ...]:
    """What one run takes, in height and width: a range for each profile of an engine.

    Args:
        runner: what will run.
        turned: only sizes that are taken upright and on their side.

    Raises:
        HspanError: there are none.
    """
    ranges = tuple(
        SizeRange(low=(low[2] or 1, low[3] or 1), high=(high[2], high[3]))
        for low, high in runner.shape_ranges
    )
    if not turned:
        return ranges
    both_ways = []
    for known in ranges:
        low = max(known.low)
        high = min((side for side in known.high if side is not None), default=None)
        if high is None or low <= high:
            both_ways.append(SizeRange(low=(low, low), high=(high, high)))
    if not both_ways:
        raise HspanError(
            runner.where,
            "takes no tile both upright and on its side, as --self-ensemble gives them",
            "leave out --self-ensemble, or use a network of square or free sizes",
        )
    return tuple(both_ways)


def batch_limits(runner: Limits, height: int, width: int, *, wanted: int) -> tuple[int, int]:
    """How many pictures of a size one run takes, at least and at most; at most `wanted` where nothing sets a limit.

    Of several ranges that take the size it is the one for the most pictures.
    """
    found = [
        (high[0] or wanted, -(low[0] or 1))
        for (low, high), size in zip(runner.shape_ranges, size_ranges(runner), strict=True)
        if size.bounded(height, width) == (height, width)
    ]
    most, least = max(found, default=(wanted, -1))
    return -least, most


def _range_of_whole(ranges: Sequence[SizeRange], height: int, width: int) -> SizeRange | None:
    """The range that takes a picture with the least padding, the smallest if several do; None if none takes it."""
    fitting = [known for known in ranges if known.holds_padded(height, width)]
    return min(
        fitting, key=lambda known: (math.prod(known.padded(height, width)), _area(known)), default=None
    )


def _below(ranges: Sequence[SizeRange], limit: tuple[int, int]) -> Sequence[SizeRange]:
    """The ranges that take something within a limit; if none does, the one that starts lowest."""
    fitting = [known for known in ranges if known.starts_by(limit)]
    return fitting or [min(ranges, key=lambda known: math.prod(known.low))]


def _largest(ranges: Sequence[SizeRange]) -> SizeRange:
    return max(ranges, key=_area)


def _area(known: SizeRange) -> float:
    return math.prod(math.inf if side is None else side for side in known.high)


def _clamp(size: int, low: int, high: int | None) -> int:
    return max(low, size if high is None else min(size, high))
