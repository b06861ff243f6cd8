"""Pictures that never lie in memory whole: rows in, strips out, and in between rows of tiles.

`picture_rows` reads, and `picture_strips` writes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.media.deep_pictures import vips
from trt_hspan.media.images import size_from_image_file
from trt_hspan.media.picture_rows import PictureRows, RowsOfPicture, rows_of_file, size_for_streaming
from trt_hspan.media.picture_strips import STREAMED_SUFFIXES, StripTarget, write_strips
from trt_hspan.media.pictures import read_picture
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tiling import TilePlan
from trt_hspan.upscaling.upscaler import OnTile, Upscaler

# Results of more pixels than this are streamed: 67 million RGB pixels are 201 MB.
STREAM_PIXELS: Final = 1 << 26
# Bytes of a strip of finished pixels; tiles of very wide pictures are made less high to keep to it.
_STRIP_BYTES: Final = 96 << 20
_LEAST_ROWS: Final = 32
# libvips's number of threads before the first stream began, then a 1 for each stream.
_THREADS_BEFORE: Final[list[int]] = []
_THREADS_LOCK: Final = threading.Lock()


@contextmanager
def _one_thread_of_libvips(where: object) -> Iterator[None]:
    """libvips holds rows in proportion to its threads, on 32 of them more than 1,000 rows in each buffer; decoders
    and encoders work on one."""
    library = vips(where)
    with _THREADS_LOCK:
        if not _THREADS_BEFORE:
            _THREADS_BEFORE.append(library.concurrency_get())
        _THREADS_BEFORE.append(1)
        library.concurrency_set(1)
    try:
        yield
    finally:
        with _THREADS_LOCK:
            _THREADS_BEFORE.pop()
            if len(_THREADS_BEFORE) == 1:  # no other stream is left
                library.concurrency_set(_THREADS_BEFORE.pop())


def upscale_stream(
    upscaler: Upscaler,
    source: Path,
    target: Path,
    *,
    quality: int | None = None,
    on_tile: OnTile | None = None,
) -> TilePlan:
    """Upscales a picture file; the result is never whole in memory, and the picture is not if its rows can be read.

    When memory runs out, it begins again with smaller tiles.

    Args:
        upscaler: with an active runner.
        source: PNG, JPEG, TIFF or binary PPM, of any size; another picture is decoded whole.
        target: ends in .png, .jpg, .jpeg, .tif or .tiff.
        quality: as `encode_image` takes it.
        on_tile: told after each tile.

    Returns:
        The tiles that the picture was cut into.

    Raises:
        HspanError: as `read_picture`, `write_picture` and `Upscaler.strips`; a picture of more than `STREAM_PIXELS`
            pixels that would be decoded whole; self-ensemble by the official protocol turns whole pictures and
            cannot stream.
    """
    if upscaler.options.self_ensemble and upscaler.options.protocol == "official":
        raise HspanError(
            source,
            "is too large for self-ensemble by the official protocol, which turns whole pictures",
            "leave out --protocol official or --self-ensemble",
        )
    with _one_thread_of_libvips(source):
        told = False
        while True:
            rows = _rows(source)
            kind, scale = rows.pixels, upscaler.scale
            row_bytes = rows.width * kind.channels * np.dtype(kind.dtype).itemsize * scale**2
            highest = max(_LEAST_ROWS, _STRIP_BYTES // row_bytes)
            wanted = upscaler.options.tile
            if not told and isinstance(wanted, tuple) and wanted[0] > highest:
                told = True
                upscaler.tell(
                    f"{source}: of tiles of {wanted[0]}x{wanted[1]} at most {highest} rows are taken, because "
                    f"strips of {rows.width * scale} pixels' width would be large"
                )
            strips = upscaler.strips(
                rows, ImageSize(rows.height, rows.width), kind, on_tile=on_tile, what=source, highest=highest
            )
            written = StripTarget(
                path=target,
                height=rows.height * scale,
                width=rows.width * scale,
                pixels=kind,
                metadata=rows.metadata,
                quality=quality,
            )
            try:
                write_strips(written, strips)
            except OutOfMemoryError as error:
                upscaler.shrink(ImageSize(rows.height, rows.width), error, highest=highest)
            else:
                return upscaler.plan(ImageSize(rows.height, rows.width), highest=highest)


def require_streamed_suffix(target: Path, height: int, width: int) -> None:
    """Checks that a result of this size can be written strip by strip.

    Raises:
        HspanError: the suffix is that of a format that is encoded whole.
    """
    if target.suffix.lower() not in STREAMED_SUFFIXES:
        raise HspanError(
            target,
            f"{height}x{width} pixels are too many for {target.suffix}, which is encoded whole in memory (at most "
            f"{STREAM_PIXELS / 1e6:.0f} million)",
            "name a .png, .tif or .jpg file, which are written strip by strip",
        )


def _rows(source: Path) -> PictureRows:
    if size_for_streaming(source) is not None:
        return rows_of_file(source)
    height, width = size_from_image_file(source)
    if height * width > STREAM_PIXELS:
        raise HspanError(
            source,
            f"{height}x{width} pixels are too many for its format, which is decoded whole in memory (at most "
            f"{STREAM_PIXELS / 1e6:.0f} million)",
            "convert it to PNG, TIFF or JPEG, which are read strip by strip",
        )
    return RowsOfPicture(read_picture(source), source)
