"""Pictures written in strips of full width, of which few lie in memory at a time. `picture_rows` is the reading end.

Rows of PNG and TIFF are compressed here, in pieces, on several threads, because libvips holds some 700 rows of what it
writes, which is gigabytes of a very wide picture. JPEG, whose rows are short, is encoded by libvips, which has them
from a pipe, as a PNG that is not compressed. WebP and BMP stay out: they are encoded whole.
"""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path
from trt_hspan.media.deep_pictures import vips
from trt_hspan.media.jpeg_segments import SAYING, segments
from trt_hspan.media.metadata import Metadata
from trt_hspan.media.packed_rows import FileContent, Layout, Packed, PngLayout, TiffLayout
from trt_hspan.media.pictures import Picture, eight_bit, on_white
from trt_hspan.media.pixels import PixelFormat

STREAMED_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_MOST_THREADS: Final = 8


@dataclass(frozen=True, kw_only=True)
class StripTarget(FileContent):
    """A file that strips go to.

    Attributes:
        path: its name, whose suffix says the format.
        quality: of JPEG; 95 when None.
    """

    path: Path
    quality: int | None = None


def write_strips(target: StripTarget, strips: Iterator[npt.NDArray[Any]]) -> None:
    """Writes a picture that comes in strips of full width, whole or not at all.

    Args:
        target: what is written, and where.
        strips: (rows, W, C), together as high as the picture.

    Raises:
        HspanError: the file cannot be written, or its format cannot hold such a picture. What `strips` raises
            is raised too.
    """
    with atomic_path(target.path) as temporary, temporary.open("wb") as file:
        suffix = target.path.suffix.lower()
        if suffix in (".jpg", ".jpeg"):
            _write_jpeg(file, target, strips)
        else:
            _write_packed(file, _layout(target, suffix), target, strips)


def packed_picture(picture: Picture, suffix: str) -> bytes:
    """The bytes of a PNG or TIFF file of any depth."""
    height, width = picture.pixels.shape[:2]
    content = FileContent(
        height=height, width=width, pixels=PixelFormat.of(picture.pixels), metadata=picture.metadata
    )
    file = io.BytesIO()
    _write_packed(file, _layout(content, suffix.lower()), content, iter([picture.pixels]), threads=1)
    return file.getvalue()


def _layout(content: FileContent, suffix: str) -> Layout:
    return PngLayout(content) if suffix == ".png" else TiffLayout(content)


def _write_packed(
    file: BinaryIO,
    layout: Layout,
    content: FileContent,
    strips: Iterator[npt.NDArray[Any]],
    *,
    threads: int | None = None,
) -> None:
    threads = threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    layout.begin(file)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="strip compression")
    waiting: deque[Future[Packed]] = deque()
    try:
        for rows in _regrouped(strips, content.rows_of_piece):
            waiting.append(pool.submit(layout.pack, rows))
            del rows  # or it would keep its strip while the next but one is made
            while len(waiting) > 2 * threads:
                layout.put(file, waiting.popleft().result())
        while waiting:
            layout.put(file, waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
    layout.end(file)


def _regrouped(strips: Iterator[npt.NDArray[Any]], count: int) -> Iterator[npt.NDArray[Any]]:
    """The same rows, `count` at a time, the last ones fewer."""
    held: npt.NDArray[Any] | None = None  # fewer than `count` rows
    for strip in strips:
        top = 0
        if held is not None:
            top = min(len(strip), count - len(held))
            held = np.concatenate([held, strip[:top]])
            if len(held) == count:
                yield held
                held = None
        while len(strip) - top >= count:
            yield strip[top : top + count]
            top += count
        if top < len(strip):
            held = strip[top:].copy()
        del strip  # before the next one is made
    if held is not None:
        yield held


def _write_jpeg(file: BinaryIO, target: StripTarget, strips: Iterator[npt.NDArray[Any]]) -> None:
    plain = FileContent(
        height=target.height,
        width=target.width,
        pixels=PixelFormat(channels=1 if target.pixels.channels <= 2 else 3, dtype=np.uint8),
        metadata=Metadata(),
    )
    try:
        head = _jpeg_head(target.one_pixel(".jpg"))
    except HspanError as error:
        reason = "JPEG has no room for the picture's profile, EXIF or XMP"
        raise HspanError(target.path, reason, "choose .png or .tif") from error
    read_end, write_end = os.pipe()
    failures: list[BaseException] = []
    thread = threading.Thread(
        target=_encode_jpeg, args=(file, target, head, read_end, failures), name="libvips writer", daemon=True
    )
    thread.start()
    try:
        with open(write_end, "wb") as pipe:  # noqa: PTH123  # a descriptor, not a path
            wanted = takewhile(lambda _: not failures, strips)
            fitting = map(_eight_bits_without_alpha, _regrouped(wanted, target.rows_of_piece))
            _write_packed(pipe, PngLayout(plain, level=0), plain, fitting)
    finally:
        thread.join()
    if not failures:
        return
    if isinstance(failures[0], OSError):
        raise failures[0]
    reason = " ".join(str(failures[0]).split())[:200]
    raise HspanError(
        target.path,
        f"cannot write {target.width}x{target.height} pixels as {target.path.suffix}: {reason}",
        "choose .png or .tif",
    ) from failures[0]


def _encode_jpeg(
    file: BinaryIO, target: StripTarget, head: bytes, read_end: int, failures: list[BaseException]
) -> None:
    """The encoder's thread: libvips pulls rows out of the pipe. What it would say of the picture becomes `head`."""
    begun = False

    def put(data: Any) -> int:
        nonlocal begun
        try:
            block = bytes(data)
            file.write(block if begun else head + block[len(_jpeg_head(block)) :])
            begun = True
        except BaseException as error:  # noqa: BLE001  # libvips is told a number only
            failures.append(error)
            return -1
        return len(data)

    try:
        library = vips(target.path)
        source = library.Source.new_from_descriptor(read_end)
        image = library.Image.pngload_source(source, access="sequential", unlimited=True)
        sink = library.TargetCustom()
        sink.on_write(put)
        image.jpegsave_target(sink, Q=target.quality or 95, subsample_mode="off", keep="none")
    except BaseException as error:  # noqa: BLE001  # told by the thread that started this one
        failures.append(error)
    finally:
        while os.read(read_end, 1 << 20):  # a writer that waits for room in the pipe must not wait for ever
            pass
        os.close(read_end)


def _jpeg_head(data: bytes) -> bytes:
    """The beginning of a JPEG file: its application segments and comments."""
    last = takewhile(lambda found: found[0] in SAYING, segments(data))
    return data[: max((at.stop for _, at in last), default=2)]


def _eight_bits_without_alpha(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    pixels = eight_bit(rows)
    return on_white(pixels) if pixels.shape[2] in (2, 4) else pixels
