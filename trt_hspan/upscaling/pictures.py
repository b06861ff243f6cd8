"""From picture file to picture file, with an active runner: whole in memory, or in strips when it is too large.

A result of more than `STREAM_PIXELS` pixels is streamed where pyvips is installed: rows in, rows of tiles, strips out.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.files import require_name_fits
from trt_hspan.media.formats import require_sides, require_writable_suffix
from trt_hspan.media.metadata import Metadata
from trt_hspan.media.pictures import OpenedPicture, Picture, open_picture, whole_picture
from trt_hspan.media.pixels import PixelFormat, rgb_on_white
from trt_hspan.media.vips import has_vips, one_thread_of_vips
from trt_hspan.media.writing import STREAMED_SUFFIXES, color_losses, write_picture, write_strips
from trt_hspan.runtime.runner import Float32Array, Runner
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import DEFAULT_OPTIONS, UpscaleOptions
from trt_hspan.upscaling.tiling import TilePlan
from trt_hspan.upscaling.upscaler import OnTile, Upscaler, upscale_batch

# Results of more pixels than this are streamed: 67 million RGB pixels are 201 MB.
STREAM_PIXELS: Final = 1 << 26
# Bytes of a strip of finished pixels; tiles of very wide pictures are made less high to keep to it.
_STRIP_BYTES: Final = 96 << 20
_LEAST_ROWS: Final = 32
_GAP: Final = 8  # white pixels between the two halves of a comparison


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How results are written: quality of JPEG (None is 95) and WebP (None is lossless), 1 to 100.

    `compare` writes `NAME_compare.png` beside each picture, bicubic on the left and network on the right; `tile_effect`
    measures what cutting into tiles changes, where the whole picture fits.
    """

    quality: int | None = None
    compare: bool = False
    tile_effect: bool = False


DEFAULT_WRITING: Final = WriteOptions()


@dataclass(frozen=True, kw_only=True)
class TileEffect:
    """The result in tiles against the result as a whole, before clamping and rounding, white being 1.

    Attributes:
        psnr_db: 10 log10(1 / mean squared difference); infinite when there is none.
        max_abs_difference: the largest difference of a value.
    """

    psnr_db: float
    max_abs_difference: float


@dataclass(frozen=True, kw_only=True)
class Upscaled:
    """What became of one picture.

    Attributes:
        run_time_seconds: network and blending; for a streamed picture reading and writing too.
        tile_height, tile_width: pixels of the largest tile.
        streamed: read and written strip by strip, never whole in memory.
        tile_effect, why_no_tile_effect: what the tiles changed, if that was requested, or why it was not measured.
        comparison: the side-by-side picture, if one was requested.
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
    """Reads a picture, puts it through an active network, and writes the result, whole or not at all.

    Raises:
        UsageError: the target's suffix is not a picture's, or the options do not suit the picture.
        HspanError: the picture cannot be read, does not fit the network or the memory; the output contains NaN;
            the result cannot be written, or is too large for its format.
    """
    source, target = Path(source), Path(target)
    require_writable_suffix(target)
    comparison = comparison_path(target) if writing.compare else None
    if comparison is not None:
        require_name_fits(comparison)
        if comparison.resolve() == source.resolve():
            raise HspanError(
                comparison, "is the input, and --compare would replace it", "name another output"
            )
    opened = open_picture(source)
    size = opened.size.scaled(upscaler.scale)
    require_sides(target, size)
    started = time.perf_counter()
    if size.pixels > STREAM_PIXELS:
        _require_streamed_suffix(target, size)
        if has_vips():
            _require_no_whole(source, writing)
            plan = upscale_stream(upscaler, opened, target, quality=writing.quality, on_tile=on_tile)
            return _report(upscaler, plan, time.perf_counter() - started, streamed=True)
    picture = whole_picture(opened)
    _note_losses(upscaler, source, picture.metadata, target, channels=picture.pixels.shape[2])
    started = time.perf_counter()
    result = upscale_picture(upscaler, picture, on_tile=on_tile, what=source)
    seconds = time.perf_counter() - started
    plan = upscaler.plan(opened.size, what=source)
    if comparison is not None:  # first: a result that is in place is taken for finished
        halves = side_by_side(picture, result)
        write_picture(comparison, halves)
    write_picture(target, result, quality=writing.quality)
    report = _report(upscaler, plan, seconds)
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
    """One picture file by a runner that is not active yet. Raises: as `upscale_picture_file`.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from trt_hspan.media.pictures import read_picture
        >>> from trt_hspan.media.writing import write_picture
        >>> from trt_hspan.runtime.torch_runner import TorchRunner
        >>> runner = TorchRunner("hspan-tiny-x2")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_picture(f"{folder}/cat.png", np.zeros((12, 20, 3), np.uint8))
        ...     report = upscale_file(runner, f"{folder}/cat.png", f"{folder}/cat_x2.png")
        ...     read_picture(f"{folder}/cat_x2.png").pixels.shape
        (24, 40, 3)
        >>> report.output_height, report.output_width, report.tiles
        (24, 40, 1)
    """
    require_writable_suffix(target)
    with runner:
        return upscale_picture_file(Upscaler(runner, options), source, target)


def upscale_stream(
    upscaler: Upscaler,
    opened: OpenedPicture,
    target: Path,
    *,
    quality: int | None = None,
    on_tile: OnTile | None = None,
) -> TilePlan:
    """Upscales a picture whose result is never whole in memory; the picture is not either, if its rows stream.

    When memory runs out, it begins again with smaller tiles. Returns the tiles that the picture was cut into.

    Raises HspanError: as `read_picture`, `write_picture` and `Upscaler.strips`; or the picture cannot stream.
    """
    size, scale, where = opened.size, upscaler.scale, opened.where
    if upscaler.options.self_ensemble and upscaler.options.protocol == "official":
        raise HspanError(
            where,
            "is too large for self-ensemble by the official protocol, which turns whole pictures",
            "leave out --protocol official or --self-ensemble",
        )
    if size.pixels > STREAM_PIXELS and not opened.streams:
        raise HspanError(
            where,
            f"{size} pixels are too many for its format, which is decoded whole in memory (at most "
            f"{STREAM_PIXELS / 1e6:.0f} million)",
            "convert it to PNG, TIFF or JPEG, which are read strip by strip",
        )
    with one_thread_of_vips(where):
        pixels = opened.pixel_format
        _note_losses(upscaler, where, opened.metadata, target, channels=pixels.channels)
        row_bytes = size.width * pixels.channels * np.dtype(pixels.dtype).itemsize * scale**2
        highest = max(_LEAST_ROWS, _STRIP_BYTES // row_bytes)
        tile = upscaler.options.tile
        if isinstance(tile, tuple) and tile[0] > highest:
            upscaler.note(
                f"{where}: of tiles of {tile[0]}x{tile[1]} at most {highest} rows are taken, because "
                f"strips of {size.width * scale} pixels' width would be large"
            )
        while True:
            strips = upscaler.strips(
                opened.rows(), size, pixels, on_tile=on_tile, what=where, highest=highest
            )
            try:
                write_strips(target, size.scaled(scale), strips, metadata=opened.metadata, quality=quality)
            except OutOfMemoryError as error:
                upscaler.shrink(size, error, highest=highest)
            else:
                return upscaler.plan(size, highest=highest)


def _note_losses(
    upscaler: Upscaler, where: object, metadata: Metadata, target: Path, *, channels: int
) -> None:
    for line in color_losses(metadata, target, gray=channels <= 2):
        upscaler.note(f"{where}: {line}")


def side_by_side(before: Picture, after: Picture) -> npt.NDArray[np.uint8]:
    """(sH, 2 sW + 8, 3) uint8: the picture enlarged by bicubic interpolation, a white gap, and the result."""
    from PIL import Image

    right = rgb_on_white(after.pixels)
    height, width = right.shape[:2]
    left = Image.fromarray(rgb_on_white(before.pixels)).resize((width, height), Image.Resampling.BICUBIC)
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    return np.concatenate([np.asarray(left), gap, right], axis=1)


def tile_effect(upscaler: Upscaler, batch: Float32Array) -> TileEffect:
    """Runs a batch in tiles and as a whole. The attention of a tile sees that tile only, so the two differ."""
    ensemble = upscaler.options.self_ensemble
    whole = upscale_batch(upscaler.runner, batch, UpscaleOptions(tile="none", self_ensemble=ensemble))
    tiled = Upscaler(upscaler.runner, upscaler.options)
    tiled.limit = upscaler.limit
    difference = np.abs(tiled.batch(batch).astype(np.float64) - whole)
    mean = float(np.mean(difference**2))
    return TileEffect(
        psnr_db=-10 * math.log10(mean) if mean > 0 else math.inf, max_abs_difference=float(difference.max())
    )


def _require_streamed_suffix(target: Path, size: ImageSize) -> None:
    if target.suffix.lower() not in STREAMED_SUFFIXES:
        raise HspanError(
            target,
            f"{size} pixels are too many for {target.suffix}, which is encoded whole in memory (at most "
            f"{STREAM_PIXELS / 1e6:.0f} million)",
            "name a .png, .tif or .jpg file, which are written strip by strip",
        )


def _require_no_whole(source: Path, writing: WriteOptions) -> None:
    """Refuses what needs a whole picture in memory."""
    for option, requested in (("--compare", writing.compare), ("--tile-effect", writing.tile_effect)):
        if requested:
            raise HspanError(
                source, f"is too large for {option}, which needs the whole picture in memory", "leave it out"
            )


def _measured(upscaler: Upscaler, picture: Picture, tiles: int) -> tuple[TileEffect | None, str | None]:
    if tiles == 1:
        return None, "the picture was taken as a whole"
    batch = PixelFormat.of(picture.pixels).tensor_from_pixels(picture.pixels)[:1]
    try:
        return tile_effect(upscaler, batch), None
    except HspanError as error:
        return None, str(error)


def _report(upscaler: Upscaler, plan: TilePlan, seconds: float, *, streamed: bool = False) -> Upscaled:
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
        streamed=streamed,
    )
