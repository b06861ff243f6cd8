"""Pictures and tensors of any size through a network: tiles, self-ensemble, and what to do when memory runs out.

Owns the order of the steps. Coordinates are in `tiling`, sums in `blending`, sizes in `tile_size`, picture files in
`images`, backends in the runners. A tile attends to itself only, so a result in tiles is not the untiled result:
`tile_effect` measures the difference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, OutOfMemoryError, UsageError
from trt_hspan.runtime.blending import blended_strips
from trt_hspan.runtime.images import require_writable_suffix
from trt_hspan.runtime.pictures import read_picture, write_picture
from trt_hspan.runtime.pixels import PixelFormat, TensorFormat
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner
from trt_hspan.runtime.tile_size import TileChoice, plan_for_picture, smaller_tile
from trt_hspan.runtime.tiling import OFFICIAL_MIN_SIZE, Span, TilePlan, official_plan

Protocol = Literal["tiled", "official"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("tiled", "official")
#: Told after each tile: tiles that are done, tiles in all.
OnTile = Callable[[int, int], None]
#: rows(top, bottom) -> pixels (bottom - top, W, ...); asked for from top to bottom, parts repeatedly.
RowsSource = Callable[[int, int], npt.NDArray[Any]]

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


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions:
    """How pictures go through a network.

    Attributes:
        tile: "auto" takes a picture as a whole where the network's limits, free memory and time allow it, and
            else the largest tile that they allow; "none" as a whole or not at all; (height, width) of tiles.
        overlap: pixels that neighbouring tiles share at least; None takes 32 or less.
        protocol: "official" cuts as the official code's `--chop` does, with hard seams; tile and overlap then
            play no part.
        self_ensemble: the mean over the eight flips and turns of the picture, as the official code's
            `--self_ensemble`: eight times the work.
        official_min_size: for "official": pixels of a quarter from which it is cut again.

    Raises:
        UsageError: a value makes no sense, or the official protocol is combined with a tile size or overlap.
    """

    tile: TileChoice = "auto"
    overlap: int | None = None
    protocol: Protocol = "tiled"
    self_ensemble: bool = False
    official_min_size: int = OFFICIAL_MIN_SIZE

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UsageError(
                "--protocol", f"got {self.protocol!r}, expected one of {', '.join(PROTOCOLS)}", None
            )
        if isinstance(self.tile, str):
            if self.tile not in ("auto", "none"):
                raise UsageError("--tile", f"got {self.tile!r}, expected auto, none or HxW")
        elif len(self.tile) != 2 or min(self.tile) < 1:
            raise UsageError("--tile", f"got {self.tile}, expected a height and a width of at least 1")
        elif self.overlap is not None and self.overlap > min(self.tile) // 2:
            raise UsageError(
                "--overlap",
                f"{self.overlap} pixels are more than half of the tile {self.tile[0]}x{self.tile[1]}",
                "give a smaller overlap or a larger tile",
            )
        if self.overlap is not None and self.overlap < 0:
            raise UsageError("--overlap", f"{self.overlap} pixels make no sense", "give 0 or more")
        if self.protocol == "official" and (self.tile != "auto" or self.overlap is not None):
            raise UsageError(
                "--protocol official", "has its own tiles and margins", "leave out --tile and --overlap"
            )


DEFAULT_OPTIONS: Final = UpscaleOptions()


class Upscaler:
    """Puts pictures through an active runner, one after the other, and remembers what did not fit in memory.

    Args:
        runner: active while the methods are called.
        options: how.
        on_shrink: told one line each time memory ran out and the tiles became smaller.

    Attributes:
        limit: (height, width) of the largest tile that is still tried; None until memory ran out.
    """

    def __init__(
        self,
        runner: Runner,
        options: UpscaleOptions = DEFAULT_OPTIONS,
        *,
        on_shrink: Callable[[str], None] | None = None,
    ) -> None:
        self.runner, self.options = runner, options
        self.limit: tuple[int, int] | None = None
        self._on_shrink = on_shrink
        self._scale = runner.scale

    @property
    def scale(self) -> int:
        """The network's scale; where its file does not say, a run on a few pixels tells."""
        if self._scale is None:
            low = self.runner.min_shape
            n, height, width = low[0] or 1, low[2] or 8, low[3] or 8
            output = self.runner.run(np.zeros((n, CHANNELS, height, width), np.float32))
            self._scale = output.shape[2] // height
        return self._scale

    def plan(self, height: int, width: int, *, what: object = "picture") -> TilePlan:
        """The tiles for a picture. Raises: as `plan_for_picture` and `official_plan`."""
        if self.options.protocol == "official":
            return official_plan(height, width, min_size=self.options.official_min_size)
        return plan_for_picture(
            self.runner,
            height,
            width,
            tile=self.options.tile,
            overlap=self.options.overlap,
            limit=self.limit,
            what=what,
        )

    def strips(
        self,
        rows: RowsSource,
        height: int,
        width: int,
        pixels: PixelFormat | TensorFormat,
        *,
        on_tile: OnTile | None = None,
        what: object = "picture",
    ) -> Iterator[npt.NDArray[Any]]:
        """Reads a picture from top to bottom and gives the result in strips of full width.

        Args:
            rows: gives the picture's rows; no more than one row of tiles is asked for at a time.
            height, width: of the picture.
            pixels: how pixels become tensors and back.
            on_tile: told after each tile.
            what: the picture; errors name it.

        Yields:
            (rows, scale * width, ...) pixels, from top to bottom.

        Raises:
            OutOfMemoryError: a tile did not fit in memory. `shrink` makes the next attempt smaller.
            HspanError: the picture does not fit the network, the backend fails, or a value is NaN.
        """
        plan = self.plan(height, width, what=what)
        scale, done = self.scale, 0
        held: tuple[int, npt.NDArray[Any]] | None = None

        def output_of(row_index: int, column_index: int) -> Float32Array:
            nonlocal held, done
            if held is None or held[0] != row_index:
                held = (row_index, _rows_of_span(rows, plan.rows[row_index], height))
            window = _columns_of_span(held[1], plan.columns[column_index], width)
            output = self._run(pixels.tensor_from_pixels(window), pixels.fills_constant)
            done += 1
            if on_tile is not None:
                on_tile(done, plan.count)
            return output

        with _out_of_memory_told(self.runner, plan):
            yield from blended_strips(plan, scale, output_of, pixels.pixels_from_tensor)

    def shrink(self, height: int, width: int, error: OutOfMemoryError) -> None:
        """Makes tiles smaller after one of a picture of this size did not fit in memory.

        Raises:
            OutOfMemoryError: `error`, when there is nothing smaller to try or no smaller tile is wanted.
        """
        if self.options.protocol == "official" or self.options.tile == "none":
            raise error
        plan = self.plan(height, width)
        size = (plan.tile_height, plan.tile_width)
        smaller = smaller_tile(self.runner, size)
        if smaller is None:
            raise error
        self.limit = smaller
        if self._on_shrink is not None:
            self._on_shrink(
                f"out of memory with tiles of {size[0]}x{size[1]}, going on with {smaller[0]}x{smaller[1]}"
            )

    def whole(
        self,
        image: npt.NDArray[Any],
        pixels: PixelFormat | TensorFormat,
        *,
        on_tile: OnTile | None = None,
        what: object = "picture",
    ) -> npt.NDArray[Any]:
        """A picture that is in memory; smaller tiles are tried when memory runs out. Raises: as `strips`."""
        height, width = image.shape[:2]
        if self.options.self_ensemble and self.options.protocol == "official":
            return self._official_ensemble(image, pixels, on_tile)
        while True:
            try:
                strips = self.strips(
                    lambda top, bottom: image[top:bottom], height, width, pixels, on_tile=on_tile, what=what
                )
                result: npt.NDArray[Any] | None = None
                at = 0
                for strip in strips:
                    if result is None:
                        result = np.empty((height * self.scale, *strip.shape[1:]), strip.dtype)
                    result[at : at + len(strip)] = strip
                    at += len(strip)
                assert result is not None
                return result
            except OutOfMemoryError as error:
                self.shrink(height, width, error)

    def _run(self, batch: Float32Array, fills_constant: bool) -> Float32Array:
        """One tile of all items of a batch: (N, 3, h, w) -> (N, 3, s * h, s * w)."""
        if fills_constant and len(batch) > 1 and np.ptp(batch[1]) == 0:
            colour = self._run(batch[:1], False)
            return np.concatenate([colour, np.full_like(colour, batch[1, 0, 0, 0])])
        run = (
            self._ensemble if self.options.self_ensemble and self.options.protocol == "tiled" else self._infer
        )
        return run(batch)

    def _ensemble(self, batch: Float32Array) -> Float32Array:
        total: Float32Array | None = None
        for index in range(8):
            output = inverse_transform(self._infer(np.ascontiguousarray(transform(batch, index))), index)
            total = output.copy() if total is None else total + output
        assert total is not None
        return total / np.float32(8)

    def _infer(self, batch: Float32Array) -> Float32Array:
        """As many items at a time as the network takes; a network for larger batches gets the last one repeated."""
        low, high = self.runner.min_shape[0] or 1, self.runner.max_shape[0] or len(batch)
        outputs = []
        for start in range(0, len(batch), high):
            part = batch[start : start + high]
            missing = max(0, low - len(part))
            if missing:
                part = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            output = self.runner.run(part)
            outputs.append(output[: len(output) - missing])
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def _official_ensemble(
        self, image: npt.NDArray[Any], pixels: PixelFormat | TensorFormat, on_tile: OnTile | None
    ) -> npt.NDArray[Any]:
        """The official code turns the whole picture and chops each turn: seams differ from turn to turn."""
        batch = pixels.tensor_from_pixels(image)
        plain = TensorFormat()
        total: Float32Array | None = None
        for index in range(8):
            turned = plain.pixels_from_tensor(transform(batch, index))
            height, width = turned.shape[:2]

            def rows(top: int, bottom: int, turned: Float32Array = turned) -> Float32Array:
                return turned[top:bottom]

            def told(done: int, count: int, index: int = index) -> None:
                if on_tile is not None:
                    on_tile(index * count + done, 8 * count)

            strips = list(self.strips(rows, height, width, plain, on_tile=told))
            output = inverse_transform(plain.tensor_from_pixels(np.concatenate(strips)), index)
            total = output.copy() if total is None else total + output
        assert total is not None
        return pixels.pixels_from_tensor(total / np.float32(8))


def transform(batch: Float32Array, index: int) -> Float32Array:
    """Turn `index` (0 to 7) of a self-ensemble: mirrored left-right if bit 0, top-bottom if bit 1, then transposed
    if bit 2. (N, 3, H, W) -> the same, or (N, 3, W, H); a view."""
    if index & 1:
        batch = batch[:, :, :, ::-1]
    if index & 2:
        batch = batch[:, :, ::-1]
    return batch.transpose(0, 1, 3, 2) if index & 4 else batch


def inverse_transform(batch: Float32Array, index: int) -> Float32Array:
    """Takes `transform` back; a view."""
    if index & 4:
        batch = batch.transpose(0, 1, 3, 2)
    if index & 2:
        batch = batch[:, :, ::-1]
    return batch[:, :, :, ::-1] if index & 1 else batch


def upscale_array(
    runner: Runner,
    image: npt.NDArray[Any],
    options: UpscaleOptions = DEFAULT_OPTIONS,
    *,
    on_tile: OnTile | None = None,
    on_shrink: Callable[[str], None] | None = None,
    what: object = "picture",
) -> npt.NDArray[Any]:
    """Up-scales a picture that is in memory.

    Args:
        runner: active.
        image: (H, W, C) uint8 or uint16; C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        options: tiles, protocol, self-ensemble.
        on_tile: told after each tile: done, in all.
        on_shrink: told one line each time memory ran out and the tiles became smaller.
        what: the picture; errors name it.

    Returns:
        (scale * H, scale * W, C) of the same type.

    Raises:
        HspanError: the picture does not fit the network or the memory, or a value of the output is NaN.
        UsageError: the options do not suit the picture.
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
    """Up-scales tensors: what a network gives, before clamping and rounding.

    Args:
        runner: active.
        batch: (N, 3, H, W) float32, nominally in [0, 1].
        options, on_tile, on_shrink, what: as for `upscale_array`.

    Returns:
        (N, 3, scale * H, scale * W) float32; may hold NaN when the network overflows.

    Raises:
        HspanError: the input does not fit the network or the memory.
        UsageError: the options do not suit its size.
    """
    if batch.ndim != 4 or batch.shape[1] != CHANNELS or 0 in batch.shape or batch.dtype != np.float32:
        raise HspanError(what, f"expected (N, 3, H, W) float32, got {batch.shape} {batch.dtype}")
    tensor = TensorFormat()
    result = Upscaler(runner, options, on_shrink=on_shrink).whole(
        tensor.pixels_from_tensor(batch), tensor, on_tile=on_tile, what=what
    )
    return tensor.tensor_from_pixels(cast(Float32Array, result))


def reflected(indices: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Indices past the end of an axis, thrown back at its ends as often as needed; the end pixel is not repeated.

    With the period p = 2 * (size - 1) and m = i mod p: m if m < size, else p - m; 0 for an axis of one pixel.
    """
    if size == 1:
        return np.zeros_like(indices)
    period = 2 * (size - 1)
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
def _out_of_memory_told(runner: Runner, plan: TilePlan) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, HspanError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            runner.where,
            f"a tile of {plan.tile_width}x{plan.tile_height} pixels does not fit in memory",
            "give smaller tiles with --tile",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Upscaled:
    """What `upscale_file` did. Sizes in pixels; `run_time_seconds` is the network alone, without loading it."""

    backend: str
    input_height: int
    input_width: int
    output_height: int
    output_width: int
    run_time_seconds: float


def upscale_file(
    runner: Runner,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: UpscaleOptions = DEFAULT_OPTIONS,
) -> Upscaled:
    """Reads a picture, puts it through the network, and writes the result, whole or not at all.

    Args:
        runner: not yet active.
        source: as `pictures.read_picture` takes it.
        target: as `pictures.write_picture` takes it.
        options: tiles, protocol, self-ensemble.

    Raises:
        UsageError: the target's suffix is not a picture's, or the options do not suit the picture.
        HspanError: the picture cannot be read, does not fit the network or the memory; the output holds NaN; the
            result cannot be written.
    """
    require_writable_suffix(target)
    picture = read_picture(source)
    height, width = picture.pixels.shape[:2]
    Upscaler(runner, options).plan(height, width, what=source)  # before the network is loaded
    with runner:
        started = time.perf_counter()
        pixels = upscale_array(runner, picture.pixels, options, what=source)
        seconds = time.perf_counter() - started
    write_picture(target, dataclasses.replace(picture, pixels=pixels))
    return Upscaled(
        backend=runner.label,
        input_height=height,
        input_width=width,
        output_height=pixels.shape[0],
        output_width=pixels.shape[1],
        run_time_seconds=seconds,
    )
