"""Pictures that never lie in memory whole: rows in, rows out. Owns the writing end; `picture_rows` has the reading one.

libvips encodes PNG, JPEG and TIFF strip by strip, with profile and metadata; Pillow holds whole pictures, and tifffile
knows one format. Finished strips travel through a pipe, as a PNG without compression, to the thread in which libvips
writes the file. WebP and BMP stay out: they are encoded whole.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.files import atomic_path
from trt_hspan.media.deep_pictures import vips, with_metadata
from trt_hspan.media.images import size_from_image_file
from trt_hspan.media.picture_rows import PictureRows, RowsOfPicture, rows_of_file, size_for_streaming
from trt_hspan.media.pictures import Metadata, read_picture
from trt_hspan.media.pixels import PixelFormat
from trt_hspan.upscaling.tiling import TilePlan
from trt_hspan.upscaling.upscaler import OnTile, Upscaler

# Results of more pixels than this are streamed: 67 million RGB pixels are 201 MB.
STREAM_PIXELS: Final = 1 << 26
# Bytes of a strip of finished pixels; tiles of very wide pictures are made less high to keep to it.
_STRIP_BYTES: Final = 96 << 20
_LEAST_ROWS: Final = 16
STREAMED_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_COLOUR_TYPES: Final = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's, by channels
_CHUNK_BYTES: Final = 4 << 20
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


@dataclass(frozen=True, kw_only=True)
class StripTarget:
    """Where strips go.

    Attributes:
        path: the file; its suffix says the format.
        height, width: of the whole picture.
        pixels: their format.
        metadata: what the file is to say beside them.
        quality: of JPEG; 95 when None.
    """

    path: Path
    height: int
    width: int
    pixels: PixelFormat
    metadata: Metadata
    quality: int | None = None


def write_strips(target: StripTarget, strips: Iterator[npt.NDArray[Any]]) -> None:
    """Writes a picture that comes in strips of full width, whole or not at all.

    Raises:
        HspanError: the file cannot be written, or its format cannot hold such a picture. What `strips` raises
            is raised too.
    """
    with atomic_path(target.path) as temporary:
        read_end, write_end = os.pipe()
        failures: list[BaseException] = []
        thread = threading.Thread(
            target=_save, args=(target, temporary, read_end, failures), name="libvips writer", daemon=True
        )
        thread.start()
        try:
            with open(write_end, "wb", buffering=0) as pipe:  # noqa: PTH123  # a descriptor, not a path
                _send_png(pipe, target, strips, failures)
        finally:
            thread.join()
        if failures:
            reason = " ".join(str(failures[0]).split())[:200]
            raise HspanError(
                target.path,
                f"cannot write {target.width}x{target.height} pixels as {target.path.suffix}: {reason}",
                "choose .png or .tif, and see that the disk has room",
            ) from failures[0]


def _save(target: StripTarget, temporary: Path, read_end: int, failures: list[BaseException]) -> None:
    """The writer's thread: libvips pulls rows out of the pipe."""
    try:
        library = vips(target.path)
        source = library.Source.new_from_descriptor(read_end)
        image = library.Image.pngload_source(source, access="sequential", unlimited=True)
        image = with_metadata(image, target.metadata, grey=target.pixels.channels <= 2)
        suffix = target.path.suffix.lower()
        name = os.fsencode(temporary)  # not always UTF-8
        if suffix == ".png":
            image.pngsave(name, compression=6, bitdepth=8 * np.dtype(target.pixels.dtype).itemsize)
        elif suffix in (".tif", ".tiff"):
            image.tiffsave(
                name, compression="deflate", predictor="horizontal", bigtiff=_needs_bigtiff(target)
            )
        else:
            if image.hasalpha():
                image = image.flatten(background=[target.pixels.white])
            image.jpegsave(name, Q=target.quality or 95, subsample_mode="off")
    except BaseException as error:  # noqa: BLE001  # told by the thread that started this one
        failures.append(error)
    finally:
        while os.read(read_end, 1 << 20):  # a writer that waits for room in the pipe must not wait for ever
            pass
        os.close(read_end)


def _needs_bigtiff(target: StripTarget) -> bool:
    size = target.height * target.width * target.pixels.channels * np.dtype(target.pixels.dtype).itemsize
    return size > 4 << 30


def _send_png(
    pipe: Any, target: StripTarget, strips: Iterator[npt.NDArray[Any]], failures: list[BaseException]
) -> None:
    """A PNG of level 0: a signature, sizes, and rows that a zlib stream wraps without compressing them.

    Ends early when the reader has failed.
    """

    def send(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[pipe.write(view) :]

    def chunk(kind: bytes, data: bytes) -> None:
        send(struct.pack(">I", len(data)) + kind)
        send(data)
        send(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))

    kind = target.pixels
    depth = 8 * np.dtype(kind.dtype).itemsize
    send(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(
        ">IIBBBBB", target.width, target.height, depth, _COLOUR_TYPES[kind.channels], 0, 0, 0
    )
    chunk(b"IHDR", header)
    packer = zlib.compressobj(0)
    row_bytes = target.width * kind.channels * depth // 8
    step = max(1, _CHUNK_BYTES // row_bytes)
    for strip in strips:
        for top in range(0, len(strip), step):
            if failures:
                return
            part = strip[top : top + step]
            rows = np.zeros((len(part), 1 + row_bytes), np.uint8)  # each row begins with filter type 0
            ordered = part if depth == 8 else part.astype(">u2")
            rows[:, 1:] = np.ascontiguousarray(ordered).reshape(len(part), -1).view(np.uint8)
            data = packer.compress(rows.data)
            if data:
                chunk(b"IDAT", data)
        del strip, part  # before the next one is made
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def upscale_stream(
    upscaler: Upscaler,
    source: Path,
    target: Path,
    *,
    quality: int | None = None,
    on_tile: OnTile | None = None,
) -> TilePlan:
    """Up-scales a picture file; the result is never whole in memory, and the picture is not if its rows can be read.

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
        while True:
            rows = _rows(source)
            kind, scale = rows.pixels, upscaler.scale
            row_bytes = rows.width * kind.channels * np.dtype(kind.dtype).itemsize * scale**2
            highest = max(_LEAST_ROWS, _STRIP_BYTES // row_bytes)
            strips = upscaler.strips(
                rows, rows.height, rows.width, kind, on_tile=on_tile, what=source, highest=highest
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
                upscaler.shrink(rows.height, rows.width, error, highest=highest)
            else:
                return upscaler.plan(rows.height, rows.width, highest=highest)


def require_streamed_suffix(target: Path, height: int, width: int) -> None:
    """Checks that a result of this size can be written strip by strip.

    Raises:
        HspanError: the suffix is that of a format that is encoded whole.
    """
    if target.suffix.lower() not in STREAMED_SUFFIXES:
        raise HspanError(
            target,
            f"{width}x{height} pixels are too many for {target.suffix}, which is encoded whole in memory (at most "
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
            f"{width}x{height} pixels are too many for its format, which is decoded whole in memory (at most "
            f"{STREAM_PIXELS / 1e6:.0f} million)",
            "convert it to PNG, TIFF or JPEG, which are read strip by strip",
        )
    return RowsOfPicture(read_picture(source), source)
