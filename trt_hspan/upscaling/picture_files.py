"""From picture file to picture file, with an active runner. Owns the choice between memory and stream."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.files import require_name_fits, require_regular_file
from trt_hspan.media.deep_pictures import has_vips
from trt_hspan.media.images import require_sides, require_writable_suffix, size_from_image_file
from trt_hspan.media.picture_rows import size_for_streaming
from trt_hspan.media.pictures import Picture, read_picture, rgb_on_white, write_picture
from trt_hspan.media.pixels import PixelFormat
from trt_hspan.runtime.runner import Runner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.streaming import STREAM_PIXELS, require_streamed_suffix, upscale_stream
from trt_hspan.upscaling.tile_effect import TileEffect, tile_effect
from trt_hspan.upscaling.tiling import TilePlan
from trt_hspan.upscaling.upscaler import DEFAULT_OPTIONS, OnTile, UpscaleOptions, Upscaler

_GAP: int = 8  # white pixels between the two halves of a comparison


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How results are written.

    Attributes:
        quality: of JPEG and WebP, 1 to 100; None is 95 for JPEG and lossless WebP.
        compare: write `NAME_compare.png` beside each picture: bicubic on the left, network on the right.
        tile_effect: measure what cutting into tiles changes, where the whole picture fits.
    """

    quality: int | None = None
    compare: bool = False
    tile_effect: bool = False


DEFAULT_WRITING = WriteOptions()


@dataclass(frozen=True, kw_only=True)
class Upscaled:
    """What became of one picture.

    Attributes:
        backend: label of the runner.
        input_height, input_width, output_height, output_width: in pixels.
        run_time_seconds: network and blending; for a streamed picture reading and writing too.
        tiles: number of tiles.
        tile_height, tile_width: pixels of the largest.
        streamed: read and written strip by strip, never whole in memory.
        tile_effect: what the tiles changed; None when nobody asked.
        why_no_tile_effect: why it was asked for and not measured.
        comparison: the side-by-side picture, if one was asked for.
    """

    backend: str
    input_height: int
    input_width: int
    output_height: int
    output_width: int
    run_time_seconds: float
    tiles: int
    tile_height: int
    tile_width: int
    streamed: bool = False
    tile_effect: TileEffect | None = None
    why_no_tile_effect: str | None = None
    comparison: Path | None = None


def upscale_picture_file(
    upscaler: Upscaler,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    writing: WriteOptions = DEFAULT_WRITING,
    *,
    on_tile: OnTile | None = None,
) -> Upscaled:
    """Reads a picture, puts it through the network, and writes the result, whole or not at all.

    A result of more than `streaming.STREAM_PIXELS` pixels is streamed where pyvips is installed.

    Args:
        upscaler: with an active runner.
        source: as `pictures.read_picture` takes it.
        target: as `pictures.write_picture` takes it.
        writing: quality, comparison, measurement.
        on_tile: told after each tile.

    Raises:
        UsageError: the target's suffix is not a picture's, or the options do not suit the picture.
        HspanError: the picture cannot be read, does not fit the network or the memory; the output holds NaN;
            the result cannot be written, or is too large for its format.
    """
    source, target = Path(source), Path(target)
    require_writable_suffix(target)
    require_regular_file(source)
    comparison = comparison_path(target) if writing.compare else None
    if comparison is not None:
        require_name_fits(comparison)
    if comparison is not None and comparison.resolve() == source.resolve():
        raise HspanError(comparison, "is the input, and --compare would replace it", "name another output")
    height, width = size_for_streaming(source) or size_from_image_file(source)
    height, width = height * upscaler.scale, width * upscaler.scale
    require_sides(target, height, width)
    if height * width > STREAM_PIXELS:
        require_streamed_suffix(target, height, width)
        if has_vips():
            return _streamed(upscaler, source, target, writing, on_tile)
    picture = read_picture(source)
    started = time.perf_counter()
    result = upscale_picture(upscaler, picture, on_tile=on_tile, what=source)
    seconds = time.perf_counter() - started
    if comparison is not None:  # first: a result that is in place is taken for finished
        write_picture(comparison, side_by_side(picture, result))
    write_picture(target, result, quality=writing.quality)
    report = _report(upscaler, picture.pixels.shape[:2], seconds, source)
    measured, reason = _measured(upscaler, picture, report.tiles) if writing.tile_effect else (None, None)
    return dataclasses.replace(report, tile_effect=measured, why_no_tile_effect=reason, comparison=comparison)


def comparison_path(target: Path) -> Path:
    """Where the side-by-side picture of a result goes."""
    return target.with_name(f"{target.stem}_compare.png")


def upscale_picture(
    upscaler: Upscaler, picture: Picture, *, on_tile: OnTile | None = None, what: object = "picture"
) -> Picture:
    """A picture in memory, with its metadata. Raises: HspanError as `Upscaler.whole`."""
    kind = PixelFormat.of(picture.pixels, where=f"{upscaler.runner.where} on {what}")
    pixels = upscaler.whole(picture.pixels, kind, on_tile=on_tile, what=what)
    return dataclasses.replace(picture, pixels=pixels)


def upscale_file(
    runner: Runner,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: UpscaleOptions = DEFAULT_OPTIONS,
) -> Upscaled:
    """One picture file by a runner that is not active yet. Raises: as `upscale_picture_file`."""
    require_writable_suffix(target)
    with runner:
        return upscale_picture_file(Upscaler(runner, options), source, target)


def side_by_side(before: Picture, after: Picture) -> npt.NDArray[np.uint8]:
    """(sH, 2 sW + 8, 3) uint8: the picture enlarged by bicubic interpolation, a white gap, and the result."""
    from PIL import Image

    right = rgb_on_white(after)
    height, width = right.shape[:2]
    enlarged = Image.fromarray(rgb_on_white(before)).resize((width, height), Image.Resampling.BICUBIC)
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    return np.concatenate([np.asarray(enlarged), gap, right], axis=1)


def _measured(upscaler: Upscaler, picture: Picture, tiles: int) -> tuple[TileEffect | None, str | None]:
    if tiles == 1:
        return None, "the picture was taken as a whole"
    kind = PixelFormat.of(picture.pixels)
    try:
        return tile_effect(upscaler, kind.tensor_from_pixels(picture.pixels)[:1]), None
    except HspanError as error:
        return None, str(error)


def _streamed(
    upscaler: Upscaler, source: Path, target: Path, writing: WriteOptions, on_tile: OnTile | None
) -> Upscaled:
    for option, asked in (("--compare", writing.compare), ("--tile-effect", writing.tile_effect)):
        if asked:
            raise HspanError(
                source, f"is too large for {option}, which needs the whole picture in memory", "leave it out"
            )
    started = time.perf_counter()
    plan = upscale_stream(upscaler, source, target, quality=writing.quality, on_tile=on_tile)
    seconds = time.perf_counter() - started
    return dataclasses.replace(_report_of(upscaler, plan, seconds), streamed=True)


def _report(upscaler: Upscaler, size: tuple[int, ...], seconds: float, source: Path) -> Upscaled:
    return _report_of(upscaler, upscaler.plan(ImageSize(*size), what=source), seconds)


def _report_of(upscaler: Upscaler, plan: TilePlan, seconds: float) -> Upscaled:
    return Upscaled(
        backend=upscaler.runner.label,
        input_height=plan.picture.height,
        input_width=plan.picture.width,
        output_height=plan.picture.height * upscaler.scale,
        output_width=plan.picture.width * upscaler.scale,
        run_time_seconds=seconds,
        tiles=plan.count,
        tile_height=plan.tile.height,
        tile_width=plan.tile.width,
    )
