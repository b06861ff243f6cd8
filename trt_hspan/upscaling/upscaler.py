"""Pictures and tensors of any size through a network: tiles, self-ensemble, and what to do when memory runs out.

A tile attends to itself only, so a result in tiles is not the untiled result:
`pictures.tile_effect` measures the difference.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.media.pixels import PixelFormat, RowsSource, TensorFormat
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.alpha import TileAlpha
from trt_hspan.upscaling.blending import blended_strips
from trt_hspan.upscaling.options import DEFAULT_OPTIONS, UpscaleOptions
from trt_hspan.upscaling.self_ensemble import TURNS, ensemble_mean
from trt_hspan.upscaling.tile_size import (
    batch_limits,
    largest_overlap,
    plan_for_picture,
    require_size,
    smaller_tile,
)
from trt_hspan.upscaling.tiling import Span, TilePlan, official_plan

#: Called after each tile: tiles so far, tiles in all.
OnTile = Callable[[int, int], None]

# What backends say when memory runs out, in lower case: PyTorch (CPU, CUDA), ONNX Runtime, CUDA, TensorRT, C++.
_MEMORY_PHRASES: Final = (
    "out of memory",
    "not enough memory",
    "failed to allocate memory",
    "cannot allocate memory",
    "can't allocate memory",
    "out_of_memory",
    "outofmemory",
    "bad_alloc",
    "bad allocation",
)


class Upscaler:
    """Puts pictures through an active runner, one after the other, and remembers what did not fit in memory.

    Args:
        on_shrink: called with one line each time the tiles become smaller than requested, and by `note`.

    Attributes:
        limit: the largest tile that is still tried; None until memory ran out.
        shrinks: the lines about memory that ran out.
    """

    def __init__(
        self,
        runner: Runner,
        options: UpscaleOptions = DEFAULT_OPTIONS,
        *,
        on_shrink: Callable[[str], None] | None = None,
    ) -> None:
        self.runner, self.options = runner, options
        self.limit: ImageSize | None = None
        self.shrinks: list[str] = []
        self._on_shrink = on_shrink

    @property
    def scale(self) -> int:
        """The network's scale."""
        return self.runner.scale

    def plan(self, picture: ImageSize, *, what: object = "picture", highest: int | None = None) -> TilePlan:
        """The tiles for a picture, none with more rows than `highest`; the network's least size comes first.

        Raises:
            HspanError, UsageError: as `plan_for_picture` and `official_plan`; or a tile of the latter does not fit the
                network.
        """
        if self.options.protocol == "official":
            sizes = (picture, picture.turned) if self.options.self_ensemble else (picture,)
            least, step = self.options.official_min_size, self.runner.size_multiple
            plans = [official_plan(size, min_size=least, size_multiple=step, what=what) for size in sizes]
            for quarters in plans:
                try:
                    require_size(self.runner, quarters.tile, f"{what}, a tile of --protocol official")
                except HspanError as error:
                    raise HspanError(error.where, error.what, "take another --protocol") from error
            return plans[0]
        limit = self.limit
        if highest is not None:
            rows = ImageSize(highest, picture.width)
            limit = rows if limit is None else ImageSize(highest, limit.width).within(limit)
        return plan_for_picture(
            self.runner,
            picture,
            tile=self.options.tile,
            overlap=self.options.overlap,
            limit=limit,
            turned=self.options.self_ensemble,
            what=what,
        )

    def strips(
        self,
        rows: RowsSource,
        picture: ImageSize,
        pixels: PixelFormat | TensorFormat,
        *,
        on_tile: OnTile | None = None,
        what: object = "picture",
        highest: int | None = None,
    ) -> Iterator[npt.NDArray[Any]]:
        """Reads a picture from top to bottom and yields the result in strips of full width, (rows, scale * W, ...).

        Args:
            rows: gives the picture's rows; no more than one row of tiles is requested at a time.
            highest: rows that a tile may have at most, where strips must stay small.

        Raises:
            OutOfMemoryError: a tile did not fit in memory. `shrink` makes the next attempt smaller.
            HspanError: the picture does not fit the network, the backend fails, or a value is NaN.
        """
        plan = self.plan(picture, what=what, highest=highest)
        scale, finished = self.scale, 0
        alphas: deque[TileAlpha] = deque()  # of tiles whose output is still to come

        def inputs() -> Iterator[Float32Array]:
            for row in plan.rows:
                held = _rows_of_span(rows, row, picture.height)
                for column in plan.columns:
                    tile = _columns_of_span(held, column, picture.width)
                    if pixels.has_alpha:
                        alphas.append(TileAlpha(tile))
                        tile = alphas[-1].filled
                    yield pixels.tensor_from_pixels(tile)

        outputs = self._outputs(inputs(), pixels.has_alpha)

        def output_of(_row: int, _column: int) -> Float32Array:
            nonlocal finished
            output = next(outputs)  # both go row by row
            finished += 1
            if on_tile is not None:
                on_tile(finished, plan.count)
            return alphas.popleft().finished(output) if pixels.has_alpha else output

        official = self.options.protocol == "official"
        step = "use --protocol tiles" if official else "give smaller tiles with --tile"
        with _translate_out_of_memory(self.runner, plan, step):
            yield from blended_strips(plan, scale, output_of, pixels.pixels_from_tensor)

    def shrink(self, picture: ImageSize, error: OutOfMemoryError, *, highest: int | None = None) -> None:
        """Makes tiles smaller after one did not fit in memory; raises `error` where nothing smaller may be tried."""
        if self.options.protocol == "official" or self.options.tile == "none":
            raise error
        plan = self.plan(picture, highest=highest)
        smaller = smaller_tile(self.runner, plan.tile, turned=self.options.self_ensemble)
        if smaller is None:
            raise error
        self.limit = smaller
        overlap, most = self.options.overlap, largest_overlap(smaller, picture)
        less = f" and an overlap of {most}" if overlap is not None and overlap > most else ""
        self.shrinks.append(f"out of memory with tiles of {plan.tile}, going on with {smaller}{less}")
        self.note(self.shrinks[-1])

    def note(self, line: str) -> None:
        """Hands one line to `on_shrink`."""
        if self._on_shrink is not None:
            self._on_shrink(line)

    def whole(
        self,
        image: npt.NDArray[Any],
        pixels: PixelFormat | TensorFormat,
        *,
        on_tile: OnTile | None = None,
        what: object = "picture",
    ) -> npt.NDArray[Any]:
        """A picture that is in memory; smaller tiles are tried when memory runs out. Raises: as `strips`."""
        picture = ImageSize(*image.shape[:2])
        if self.options.self_ensemble and self.options.protocol == "official":
            return self._official_ensemble(image, pixels, on_tile, what)
        while True:
            try:
                strips = self.strips(
                    lambda top, bottom: image[top:bottom], picture, pixels, on_tile=on_tile, what=what
                )
                result: Any = None
                at = 0
                for strip in strips:
                    if result is None:
                        result = np.empty((picture.height * self.scale, *strip.shape[1:]), strip.dtype)
                    result[at : at + len(strip)] = strip
                    at += len(strip)
                return cast(npt.NDArray[Any], result)
            except OutOfMemoryError as error:
                self.shrink(picture, error)

    def batch(
        self, batch: Float32Array, *, on_tile: OnTile | None = None, what: object = "input"
    ) -> Float32Array:
        """(N, 3, H, W) -> (N, 3, scale * H, scale * W) float32, not clamped. Raises: HspanError as `strips`."""
        if batch.ndim != 4 or batch.shape[1] != CHANNELS or 0 in batch.shape or batch.dtype != np.float32:
            raise HspanError(what, f"expected (N, 3, H, W) float32, got {batch.shape} {batch.dtype}")
        tensor = TensorFormat()
        result = self.whole(tensor.pixels_from_tensor(batch), tensor, on_tile=on_tile, what=what)
        return tensor.tensor_from_pixels(cast(Float32Array, result))

    def _outputs(self, tiles: Iterator[Float32Array], has_alpha: bool) -> Iterator[Float32Array]:
        """Tiles of all items of a batch, (N, 3, h, w) -> (N, 3, s * h, s * w), in their order.

        Where the second item is alpha and constant, it is filled in without a run.
        """
        whole: deque[Float32Array] = deque()

        def needed() -> Iterator[Float32Array]:
            for tile in tiles:
                whole.append(tile)
                yield tile[:1] if has_alpha and np.ptp(tile[1]) == 0 else tile

        for output in self._turned_outputs(needed()):
            tile = whole.popleft()
            if len(output) < len(tile):
                output = np.concatenate([output, np.full_like(output, tile[1, 0, 0, 0])])  # noqa: PLW2901
            yield output

    def _turned_outputs(self, tiles: Iterator[Float32Array]) -> Iterator[Float32Array]:
        if not self.options.self_ensemble or self.options.protocol == "official":
            yield from self._run_many(tiles)
            return
        for tile in tiles:
            yield ensemble_mean(tile, lambda turned, _: next(self._run_many(iter([turned]))))

    def _run_many(self, tiles: Iterator[Float32Array]) -> Iterator[Float32Array]:
        """All runs in one `run_many`, so that a device can overlap one tile's transfers with another's work."""
        waiting: deque[tuple[int, int]] = deque()  # of each tile that was handed over: its items, its runs

        def runs() -> Iterator[Float32Array]:
            for tile in tiles:
                parts = self._parts(tile)
                waiting.append((len(tile), len(parts)))
                yield from parts

        results = iter(self.runner.run_many(runs()))
        for first in results:
            items, count = waiting.popleft()
            output = first if count == 1 else np.concatenate([first, *itertools.islice(results, count - 1)])
            yield output[:items]

    def _parts(self, batch: Float32Array) -> list[Float32Array]:
        """As many items at a time as the network takes; a network for larger batches gets the last one repeated."""
        low, high = batch_limits(self.runner, ImageSize(*batch.shape[2:]), requested=len(batch))
        parts = [batch[start : start + high] for start in range(0, len(batch), high)]
        missing = max(0, low - len(parts[-1]))
        if missing:
            parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], missing, axis=0)])
        return parts

    def _official_ensemble(
        self,
        image: npt.NDArray[Any],
        pixels: PixelFormat | TensorFormat,
        on_tile: OnTile | None,
        what: object,
    ) -> npt.NDArray[Any]:
        """The official code turns the whole picture and chops each turn: seams differ from turn to turn."""
        plain = TensorFormat()

        def chopped(batch: Float32Array, index: int) -> Float32Array:
            turned = plain.pixels_from_tensor(batch)
            picture = ImageSize(*turned.shape[:2])

            def on_tile_of_turn(finished: int, count: int) -> None:
                if on_tile is not None:
                    on_tile(index * count + finished, TURNS * count)

            rows = lambda top, end: turned[top:end]  # noqa: E731
            strips = self.strips(rows, picture, plain, on_tile=on_tile_of_turn, what=what)
            return plain.tensor_from_pixels(np.concatenate(list(strips)))

        if not pixels.has_alpha:
            return pixels.pixels_from_tensor(ensemble_mean(pixels.tensor_from_pixels(image), chopped))
        alpha = TileAlpha(image)
        mean = ensemble_mean(pixels.tensor_from_pixels(alpha.filled), chopped)
        return pixels.pixels_from_tensor(alpha.finished(mean))


def upscale_array(
    runner: Runner,
    image: npt.NDArray[Any],
    options: UpscaleOptions = DEFAULT_OPTIONS,
    *,
    on_tile: OnTile | None = None,
    on_shrink: Callable[[str], None] | None = None,
    what: object = "picture",
) -> npt.NDArray[Any]:
    """Upscales a picture that is in memory.

    Args:
        runner: active.
        image: (H, W, C) uint8 or uint16; C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).
        on_tile, on_shrink, what: as for `Upscaler` and `Upscaler.strips`.

    Returns:
        (scale * H, scale * W, C) of the same type.

    Raises:
        HspanError, UsageError: as `Upscaler.strips`.

    Example:
        >>> from trt_hspan.runtime.torch_runner import TorchRunner
        >>> with TorchRunner("hspan-tiny-x2") as runner:
        ...     upscale_array(runner, np.full((12, 20, 3), 128, np.uint8)).shape
        (24, 40, 3)
    """
    pixels = PixelFormat.of(image, where=f"{runner.where} on {what}")
    return Upscaler(runner, options, on_shrink=on_shrink).whole(image, pixels, on_tile=on_tile, what=what)


def upscale_batch(
    runner: Runner,
    batch: Float32Array,
    options: UpscaleOptions = DEFAULT_OPTIONS,
    *,
    on_tile: OnTile | None = None,
    on_shrink: Callable[[str], None] | None = None,
    what: object = "input",
) -> Float32Array:
    """Upscales tensors, (N, 3, H, W) float32, nominally in [0, 1]: what a network gives, before clamping and rounding.

    The rest is as for `upscale_array`; the result may contain NaN when the network overflows.
    """
    return Upscaler(runner, options, on_shrink=on_shrink).batch(batch, on_tile=on_tile, what=what)


def grown(pixels: npt.NDArray[Any], size: ImageSize, *, axes: tuple[int, int] = (0, 1)) -> npt.NDArray[Any]:
    """Pixels whose `axes` are height and width, reflected at the bottom and right up to a size, or cut to it."""
    for axis, side in zip(axes, size, strict=True):
        pixels = pixels.take(reflected(np.arange(side), pixels.shape[axis]), axis)
    return pixels


def reflected(indices: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Indices past the end of an axis, thrown back at its ends as often as needed; the end pixel is not repeated.

    With the period p = 2 * (size - 1), 1 for an axis of one pixel, and m = i mod p: m if m < size, else p - m.
    """
    period = max(1, 2 * (size - 1))
    folded = indices % period
    return np.where(folded < size, folded, period - folded)


def _rows_of_span(rows: RowsSource, span: Span, height: int) -> npt.NDArray[Any]:
    stored = rows(span.start, min(span.end, height))
    if span.end <= height:
        return stored
    # Only a picture smaller than the network's least size is reflected, and it is one span from row 0.
    return stored[reflected(np.arange(span.length), height)]


def _columns_of_span(held: npt.NDArray[Any], span: Span, width: int) -> npt.NDArray[Any]:
    if span.end <= width:
        return held[:, span.start : span.end]
    return held[:, reflected(np.arange(span.start, span.end), width)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what caused it, says that memory ran out."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (MemoryError, OutOfMemoryError)):
            return True
        if isinstance(seen, (RuntimeError, HspanError)) and any(
            phrase in str(seen).lower() for phrase in _MEMORY_PHRASES
        ):
            return True
        seen = seen.__cause__
    return False


@contextlib.contextmanager
def _translate_out_of_memory(runner: Runner, plan: TilePlan, next_step: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, HspanError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            runner.where,
            f"a tile of {plan.tile} pixels does not fit in memory",
            next_step,
        ) from error
