"""How large a tile may be: what the network takes, what memory and time allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.machine.memory import available_memory_bytes
from trt_hspan.runtime.memory import require_memory
from trt_hspan.runtime.runner import CHANNELS, Limits
from trt_hspan.sizes import ImageSize, TileChoice
from trt_hspan.upscaling.tiling import ONE_PIXEL, TilePlan, tile_plan

# Where no profile sets a limit, time does: attention takes time in proportion to a tile's pixels squared, so the
# whole picture's time is in proportion to the pixels of one tile. What must be cut is cut smaller on CPUs, whose
# time counts in minutes: docs/cpu.md, "Large pictures".
AUTO_TILE_SIDE: Final = 256
CPU_TILE: Final = 64
# Tiles are tried in steps of this many pixels, and made no smaller when memory runs out.
SIDE_STEP: Final = 8
SMALLEST_SIDE: Final = 16
# What is left of free memory for everything that the runner's lower estimate leaves out.
_MEMORY_SHARE: Final = 0.5
DEFAULT_OVERLAP: Final = 32


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """Inputs that one run takes.

    Attributes:
        low, high: the smallest and the largest, whose sides are None where only memory limits them.
        step: sides are multiples of this, `low` and `high` too.
    """

    low: ImageSize
    high: tuple[int | None, int | None]
    step: int = 1

    def bounded(self, size: ImageSize) -> ImageSize:
        """The nearest size that is taken, of two the larger one."""
        return ImageSize(*map(_clamp, rounded_up(size, self.step), self.low, self.high))

    def within(self, limit: ImageSize) -> ImageSize:
        """The largest size that is taken and no larger than a limit; the smallest one where none is."""
        return self.bounded(rounded_down(limit, self.step))

    def padded(self, picture: ImageSize) -> ImageSize:
        """The size of a picture that has grown to what is taken at least."""
        return ImageSize(*map(max, rounded_up(picture, self.step), self.low))

    def takes_padded(self, picture: ImageSize) -> bool:
        """Whether a picture of this size, grown as `padded`, is taken."""
        return self.bounded(picture) == self.padded(picture)

    def starts_by(self, size: ImageSize) -> bool:
        """Whether something of at most this size is taken."""
        return self.low.within(size) == self.low


ANY_SIZE: Final = SizeRange(low=ONE_PIXEL, high=(None, None))


def plan_for_picture(
    runner: Limits,
    picture: ImageSize,
    *,
    tile: TileChoice = "auto",
    overlap: int | None = None,
    limit: ImageSize | None = None,
    turned: bool = False,
    what: object = "picture",
) -> TilePlan:
    """The tiles in which a network takes a picture; `tile` and `overlap` as in `UpscaleOptions`.

    Args:
        limit: size that an earlier lack of memory forbids to exceed; not for "none". An overlap of more than half of
            what remains is made as small.
        turned: the network must take tiles on their side too, as a self-ensemble gives them.

    Raises:
        HspanError: no tile of the requested size fits the network, or the whole not the memory.
        UsageError: the overlap does not suit the tile.
    """
    ranges: Sequence[SizeRange] = size_ranges(runner, turned=turned and tile == "auto")
    if tile == "none":
        fitting = _range_of_whole(ranges, picture)
        size = picture if fitting is None else fitting.padded(picture)
        require_size(runner, size, what, turned=turned)
        require_memory(runner, (1, CHANNELS, *size), what, "leave out --tile none, or give a smaller picture")
        return tile_plan(picture, None, 0, minimum=size)
    requested = None if tile == "auto" else ImageSize(*tile)
    if requested is not None:
        require_size(runner, requested, f"--tile {requested}", turned=turned)
        ranges = size_ranges(runner, turned=turned)
    if limit is not None:
        ranges = _below(ranges, limit)
    if requested is None:
        chosen, taken = auto_tile(runner, ranges, picture)
    else:
        chosen, taken = _given_tile(ranges, requested, limit)
    unlimited = requested or chosen
    if limit is not None:
        chosen = taken.within(chosen.within(limit))
    pixels = chosen_overlap(overlap, chosen, picture)
    if pixels <= largest_overlap(unlimited, picture):
        pixels = min(pixels, largest_overlap(chosen, picture))
    if requested is None:
        chosen = trimmed_tile(picture, chosen, pixels, taken)
    return tile_plan(picture, chosen, pixels, minimum=taken.low, step=taken.step)


def chosen_overlap(overlap: int | None, tile: ImageSize, picture: ImageSize) -> int:
    """The overlap for a tile size; a side that is not cut does not count."""
    return (
        min(DEFAULT_OVERLAP, min(_cut_sides(tile, picture), default=0) // 4) if overlap is None else overlap
    )


def largest_overlap(tile: ImageSize, picture: ImageSize) -> int:
    """Half of the shortest side that is cut; the picture's longer side where none is."""
    return min((side // 2 for side in _cut_sides(tile, picture)), default=max(picture))


def _cut_sides(tile: ImageSize, picture: ImageSize) -> list[int]:
    return [side for side, size in zip(tile, picture, strict=True) if side < size]


def require_size(runner: Limits, size: ImageSize, what: object, *, turned: bool = False) -> None:
    """Raises HspanError unless a network takes tiles of this size, where `turned` on their side too."""
    least, _ = batch_limits(runner, size, requested=1)
    runner.require_shape((least, CHANNELS, *size), what)
    if turned:
        least, _ = batch_limits(runner, size.turned, requested=1)
        runner.require_shape((least, CHANNELS, *size.turned), f"{what} on its side (--self-ensemble)")


def auto_tile(runner: Limits, ranges: Sequence[SizeRange], picture: ImageSize) -> tuple[ImageSize, SizeRange]:
    """The largest tile that network, free memory and time allow, the whole picture if so; and the range that takes it.

    Candidates are squares of S x S pixels, S descending in steps of 8; where one side of the picture is shorter
    than S, the tile is longer along the other one, up to the same number of pixels.
    """
    available = available_memory_bytes()
    budget = None if available is None else int(available * _MEMORY_SHARE)

    def fits(size: ImageSize) -> bool:
        return budget is None or runner.memory_bytes((1, CHANNELS, *size)) <= budget

    taken = _range_of_whole(ranges, picture)
    if taken is not None:
        whole = taken.padded(picture)
        # A profile was chosen by somebody who knows what the GPU can do.
        in_time = None not in taken.high or picture.pixels <= AUTO_TILE_SIDE**2
        if in_time and fits(whole):
            return whole, taken
    taken = _largest(ranges)
    free_side = AUTO_TILE_SIDE if runner.on_gpu else CPU_TILE
    side = free_side if None in taken.high else max(taken.high[0] or 0, taken.high[1] or 0)
    while True:
        height = min(picture.height, side)
        width = min(picture.width, side * side // height)
        size = taken.bounded(ImageSize(min(picture.height, side * side // width), width))
        if fits(size) or side <= SMALLEST_SIDE:
            return size, taken
        side = max(SMALLEST_SIDE, (side - 1) // SIDE_STEP * SIDE_STEP)


def _given_tile(
    ranges: Sequence[SizeRange], tile: ImageSize, limit: ImageSize | None
) -> tuple[ImageSize, SizeRange]:
    """A requested tile, no larger than the limit, and the range that takes it."""
    if limit is not None:
        tile = rounded_down(tile.within(limit), ranges[0].step)
    candidates = [sizes for sizes in ranges if sizes.bounded(tile) == tile]
    taken = min(candidates, key=_area) if candidates else _largest(ranges)
    return taken.bounded(tile), taken


def trimmed_tile(picture: ImageSize, tile: ImageSize, overlap: int, taken: SizeRange = ANY_SIZE) -> ImageSize:
    """The smallest tile that covers a picture in as many tiles as `tile`; sides are multiples of 8 where possible."""
    sides = zip(picture, tile, taken.low, strict=True)
    return ImageSize(*(_trimmed_side(*each, overlap, taken.step) for each in sides))


def _trimmed_side(size: int, tile: int, low: int, overlap: int, step: int) -> int:
    if size <= tile or overlap > tile // 2:
        return tile
    count = -((size - overlap) // -(tile - overlap))
    needed = -((size + (count - 1) * overlap) // -count)
    rounded = max(-(needed // -SIDE_STEP) * SIDE_STEP, low, 2 * overlap)
    return min(tile, -(rounded // -step) * step)


def smaller_tile(runner: Limits, tile: ImageSize, *, turned: bool = False) -> ImageSize | None:
    """What to try after a tile did not fit in memory: the longer side halved; None when nothing smaller is left."""
    ranges, step = size_ranges(runner, turned=turned), runner.size_multiple
    low = [min(sizes.low[axis] for sizes in ranges) for axis in (0, 1)]
    halves = [
        min(side, -(max(SMALLEST_SIDE, floor, -(side // -(2 * SIDE_STEP)) * SIDE_STEP) // -step) * step)
        for side, floor in zip(tile, low, strict=True)
    ]
    shorter = [ImageSize(halves[0], tile.width), ImageSize(tile.height, halves[1])]
    if tile.width > tile.height:
        shorter.reverse()
    return next((size for size in shorter if size != tile and any(r.starts_by(size) for r in ranges)), None)


def size_ranges(runner: Limits, *, turned: bool = False) -> tuple[SizeRange, ...]:
    """What one run takes: a range for each profile of an engine; where `turned`, of what is taken both ways round."""
    step = runner.size_multiple
    all_ranges = (
        SizeRange(
            low=rounded_up(ImageSize(low[2] or 1, low[3] or 1), step),
            high=tuple(side if side is None else side // step * step for side in high[2:]),  # type: ignore[arg-type]
            step=step,
        )
        for low, high in runner.shape_ranges
    )
    ranges = tuple(
        sizes
        for sizes in all_ranges
        if all(b is None or a <= b for a, b in zip(sizes.low, sizes.high, strict=True))
    )
    if not ranges:
        raise HspanError(
            runner.where,
            f"takes sides that are multiples of {step}, and there is none between its smallest and largest",
            "build the engine for other sizes: --min, --max",
        )
    if not turned:
        return ranges
    both_ways = []
    for sizes in ranges:
        low = max(sizes.low)
        high = min((side for side in sizes.high if side is not None), default=None)
        if high is None or low <= high:
            both_ways.append(SizeRange(low=ImageSize(low, low), high=(high, high), step=sizes.step))
    if not both_ways:
        raise HspanError(
            runner.where,
            "takes no tile both upright and on its side, as --self-ensemble gives them",
            "leave out --self-ensemble, or use a network of square or free sizes",
        )
    return tuple(both_ways)


def batch_limits(runner: Limits, size: ImageSize, *, requested: int) -> tuple[int, int]:
    """How many pictures of a size one run takes, at least and at most; at most `requested` where nothing sets a limit.

    Of several ranges that take the size it is the one for the most pictures.
    """
    limits = [
        (high[0] or requested, -(low[0] or 1))
        for (low, high), sizes in zip(runner.shape_ranges, size_ranges(runner), strict=True)
        if sizes.bounded(size) == size
    ]
    most, least = max(limits, default=(requested, -1))
    return -least, most


def _range_of_whole(ranges: Sequence[SizeRange], picture: ImageSize) -> SizeRange | None:
    """The range that takes a picture with the least padding, the smallest if several do; None if none takes it."""
    fitting = [sizes for sizes in ranges if sizes.takes_padded(picture)]
    return min(fitting, key=lambda sizes: (sizes.padded(picture).pixels, _area(sizes)), default=None)


def _below(ranges: Sequence[SizeRange], limit: ImageSize) -> Sequence[SizeRange]:
    """The ranges that take something within a limit; if none does, the one that starts lowest."""
    fitting = [sizes for sizes in ranges if sizes.starts_by(limit)]
    return fitting or [min(ranges, key=lambda sizes: sizes.low.pixels)]


def _largest(ranges: Sequence[SizeRange]) -> SizeRange:
    return max(ranges, key=_area)


def _area(sizes: SizeRange) -> float:
    return math.prod(math.inf if side is None else side for side in sizes.high)


def rounded_up(size: ImageSize, step: int) -> ImageSize:
    """Both sides raised to a multiple."""
    return ImageSize(*(-(side // -step) * step for side in size))


def rounded_down(size: ImageSize, step: int) -> ImageSize:
    """Both sides lowered to a multiple, the first one at least."""
    return ImageSize(*(max(1, side // step) * step for side in size))


def _clamp(size: int, low: int, high: int | None) -> int:
    return max(low, size if high is None else min(size, high))
