"""One cut for several networks: attention sees no further than its tile, so other tiles are another result."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trt_hspan.errors import HspanError
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner, ShapeLimit
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.tile_size import plan_for_picture, require_size, size_ranges
from trt_hspan.upscaling.upscaler import Upscaler, grown


@dataclass(frozen=True, kw_only=True)
class SharedTiles:
    """How all networks get one picture."""

    options: UpscaleOptions
    size: ImageSize  # after the picture has grown to what all networks take

    def padded(self, batch: Float32Array) -> Float32Array:
        """(N, 3, H, W) -> (N, 3, *size): grown by reflection at its bottom and right."""
        return grown(batch, self.size, axes=(2, 3))


def shared_tiles(
    runners: Sequence[Runner], picture: ImageSize, options: UpscaleOptions, *, what: str
) -> SharedTiles:
    """The tiles in which all networks take a picture.

    Tile "auto" becomes the smallest tile that any of the networks needs, where all of them take it.

    Raises:
        HspanError: the networks take no tile in common, or not the requested one.
        UsageError: the overlap does not suit the tile.
    """
    if options.protocol == "official":
        for runner in runners:
            Upscaler(runner, options).plan(picture, what=what)
        return SharedTiles(options=options, size=picture)
    together = _Together(runners)
    tile, limit = options.tile, None
    if tile == "auto":
        plans = [Upscaler(runner, options).plan(picture, what=what) for runner in runners]
        if any(plan.count > 1 for plan in plans):
            limit = functools.reduce(ImageSize.within, (plan.tile for plan in plans))
            if any(sizes.bounded(limit) == limit for sizes in size_ranges(together)):
                tile = limit
    plan = plan_for_picture(together, picture, tile=tile, overlap=options.overlap, limit=limit, what=what)
    if options.tile != "none":
        options = dataclasses.replace(options, tile=plan.tile)
    grown = ImageSize(max(picture.height, plan.rows[-1].end), max(picture.width, plan.columns[-1].end))
    return SharedTiles(options=options, size=grown)


class _Together:
    """The limits of several networks, each in batches of its own."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = runners
        self.name = ", ".join(dict.fromkeys(runner.name for runner in runners))
        self.where = ", ".join(runner.where for runner in runners)
        self.on_gpu = all(runner.on_gpu for runner in runners)
        self.size_multiple = math.lcm(*(runner.size_multiple for runner in runners))

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]:
        """Each range of one network with each of the others, as far as they meet."""
        met: list[tuple[tuple[int, ...], tuple[int | None, ...]]] = [((1, 1), (None, None))]
        for runner in self._runners:
            met = [
                (low, high)
                for met_range in met
                for sizes in size_ranges(runner)
                if (low := tuple(map(max, met_range[0], sizes.low)))
                and (high := tuple(map(_lower, met_range[1], sizes.high)))
                and all(b is None or a <= b for a, b in zip(low, high, strict=True))
            ]
        step = self.size_multiple
        met = [
            (low, high)
            for low, high in dict.fromkeys(met)
            if all(b is None or -(a // -step) <= b // step for a, b in zip(low, high, strict=True))
        ]
        if not met:
            raise HspanError(
                self.where, "take no tile of one size, so they cannot be compared", "validate them one by one"
            )
        return tuple(((None, CHANNELS, *low), (None, CHANNELS, *high)) for low, high in met)  # type: ignore[misc]  # of two sides

    def require_shape(self, shape: tuple[int, ...], what: object) -> None:
        for runner in self._runners:
            require_size(runner, ImageSize(*shape[2:]), what)

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        return max(runner.memory_bytes(shape) for runner in self._runners)


def _lower(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)
