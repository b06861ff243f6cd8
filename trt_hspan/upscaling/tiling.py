"""Where a picture is cut into tiles. Owns coordinates only: pixels are in `blending`, inference in the runners.

All arithmetic is on integers, so that another program (the C++ runtime of an edge device, say) reproduces every
plan exactly; docs/tiling.md states the rules, and the tests contain golden plans. Coordinates are pixels of the
picture that goes into the network; outputs are `scale` times as large.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize

#: The least that a network may need.
ONE_PIXEL: Final = ImageSize(1, 1)
# The official code's margin around each quarter, and the pixels from which a quarter is cut again.
OFFICIAL_SHAVE: Final = 10
OFFICIAL_MIN_SIZE: Final = 120_000
# The official code rounds a quarter's height and width up to the next multiple of these, by at least one pixel.
_OFFICIAL_STEPS: Final = (4, 8)


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis.

    The network sees `length` pixels from `start` on; what passes the end of the picture is reflected. The tile's weight
    is 0 before `rise_start`, climbs to 1 over `rise_length` pixels, and falls to 0 over `fall_length` from `fall_start`
    on. A length of 0 is a hard edge.
    """

    start: int
    length: int
    rise_start: int
    rise_length: int
    fall_start: int
    fall_length: int

    @property
    def end(self) -> int:
        """One past the last pixel that the network sees."""
        return self.start + self.length

    @property
    def kept_end(self) -> int:
        """One past the last pixel with a weight above 0."""
        return self.fall_start + self.fall_length


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How one picture is cut: every row span with every column span is a tile; weights sum to 1 at every pixel."""

    picture: ImageSize
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def tile(self) -> ImageSize:
        """Size of the largest tile."""
        height, width = (max(span.length for span in spans) for spans in (self.rows, self.columns))
        return ImageSize(height, width)


def tile_plan(
    picture: ImageSize,
    tile: ImageSize | None,
    overlap: int,
    *,
    minimum: ImageSize = ONE_PIXEL,
    step: int = 1,
) -> TilePlan:
    """Cuts a picture into tiles of one size, evenly spread, none of which leaves the picture.

    Args:
        tile: size of the tiles; None is one tile of the picture's own size.
        overlap: pixels that neighbors share at least; at most half of a side that is cut.
        minimum: size that the network needs at least. A smaller picture grows by reflection at its bottom and right.
        step: what the network takes is multiples of this, as `tile` and `minimum` are; a side that is not cut grows to
            the next one.

    Raises:
        UsageError: the overlap is negative or more than half of the tile's side.

    Example:
        >>> tile_plan(ImageSize(1080, 1920), ImageSize(256, 256), overlap=16).count
        40
    """
    rows, columns = (
        _spans(*sides[:2], overlap, sides[2], step)
        for sides in zip(picture, tile or picture, minimum, strict=True)
    )
    return TilePlan(picture, rows, columns)


def _spans(size: int, tile: int, overlap: int, minimum: int, step: int) -> tuple[Span, ...]:
    tile = max(tile, minimum)
    if size <= tile:
        length = max(-(size // -step) * step, minimum)
        return (Span(0, length, 0, 0, size, 0),)
    if not 0 <= overlap <= tile // 2:
        raise UsageError(
            "--overlap",
            f"{overlap} pixels do not suit a tile side of {tile}, expected 0 to {tile // 2}",
            "give a smaller overlap or a larger tile",
        )
    feather = feather_length(overlap)
    # As many as are needed for `overlap`, spread evenly: the last one ends at the last pixel.
    count = -((size - overlap) // -(tile - overlap))
    starts = [index * (size - tile) // (count - 1) for index in range(count)]
    # The ramp between two tiles lies in the middle of what they share.
    ramps = [(left + right + tile - feather) // 2 for left, right in itertools.pairwise(starts)]
    return tuple(
        Span(
            start=starts[i],
            length=tile,
            rise_start=ramps[i - 1] if i > 0 else 0,
            rise_length=feather if i > 0 else 0,
            fall_start=ramps[i] if i < count - 1 else size,
            fall_length=feather if i < count - 1 else 0,
        )
        for i in range(count)
    )


def feather_length(overlap: int) -> int:
    """Pixels of the ramp between two tiles: what a margin of three eighths of the overlap on each side leaves.

    In the margin a tile's pixels get no weight, because they lack their neighbors' context.
    """
    return overlap - 2 * margin_length(overlap)


def margin_length(overlap: int) -> int:
    """Pixels along a tile's inner edge that get no weight, at least: three eighths of the overlap, rounded down.

    A network whose output pixel depends on input pixels at most this far away gives the same result in tiles
    as untiled.
    """
    return 3 * overlap // 8


def official_plan(
    picture: ImageSize,
    *,
    shave: int = OFFICIAL_SHAVE,
    min_size: int = OFFICIAL_MIN_SIZE,
    size_multiple: int = 1,
    what: object = "picture",
) -> TilePlan:
    """The tiles of the official code's `--chop` (`forward_chop` of HSPAN's src/model/__init__.py).

    A picture is always cut into four quarters, each with `shave` pixels more at its inner edges; height and width
    of a quarter are rounded up to the next multiple of 4 and 8, a multiple becoming the next one. Quarters of
    `min_size` pixels or more are cut again in the same way. Seams are hard and lie in the middle. All quarters of
    one cut have one size, so the leaves form a grid. For a network whose sides are multiples of `size_multiple`, 4 and
    8 become their least common multiples with it.

    Raises:
        HspanError: the picture is so small that its quarters would be larger; the official code fails there too.
        UsageError: `min_size` is so small that the cutting would never end.

    Example:
        >>> plan = official_plan(ImageSize(75, 111))
        >>> plan.count, str(plan.tile)
        (4, '48x72')
    """
    rows, columns = ([_Piece(0, side, 0, side)] for side in picture)
    row_step, column_step = (math.lcm(step, size_multiple) for step in _OFFICIAL_STEPS)
    before = None
    while before is None or before.pixels >= min_size:
        rows = _halved(rows, shave, row_step, picture, what)
        columns = _halved(columns, shave, column_step, picture, what)
        quarter = ImageSize(rows[0].length, columns[0].length)
        if quarter == before:
            raise UsageError(
                "--official-min-size",
                f"{min_size} is too small: quarters of {quarter} pixels do not become smaller",
                f"give at least {quarter.pixels + 1}",
            )
        before = quarter
    return TilePlan(picture, _hard_spans(rows), _hard_spans(columns))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A window of the recursion, and the part of the picture that its output ends up in."""

    start: int
    length: int
    kept_start: int
    kept_end: int


def _halved(pieces: list[_Piece], shave: int, step: int, picture: ImageSize, what: object) -> list[_Piece]:
    whole = pieces[0].length  # all pieces of one cut have one length
    half = whole // 2
    length = half + shave
    length += step - length % step
    if length > whole:
        raise HspanError(
            what,
            f"{picture} pixels are too small to be quartered with margin {shave}, in multiples of {step}",
            "take another --protocol",
        )
    halves = []
    for piece in pieces:
        middle = piece.start + half
        halves.append(_Piece(piece.start, length, piece.kept_start, min(piece.kept_end, middle)))
        start = piece.start + whole - length
        halves.append(_Piece(start, length, max(piece.kept_start, middle), piece.kept_end))
    return [half for half in halves if half.kept_start < half.kept_end]


def _hard_spans(pieces: list[_Piece]) -> tuple[Span, ...]:
    return tuple(Span(p.start, p.length, p.kept_start, 0, p.kept_end, 0) for p in pieces)
