"""Pictures written in strips of full width, of which few lie in memory at a time. `picture_rows` is the reading end.

What a file says beside its pixels is taken from a file of one pixel that `encode_image` makes, so that a streamed file
says what a small one says. Rows of PNG and TIFF are compressed here, in pieces, on several threads, because libvips
holds some 700 rows of what it writes, which is gigabytes of a very wide picture. JPEG, whose rows are short, is encoded
by libvips, which has them from a pipe, as a PNG that is not compressed. WebP and BMP stay out: they are encoded whole.

PNG: https://www.w3.org/TR/png-3/; TIFF 6.0 with Deflate (Adobe Photoshop TIFF technical notes, 2002) and BigTIFF.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path
from trt_hspan.media.deep_pictures import PNG_SIGNATURE, png_chunk, png_chunks, vips
from trt_hspan.media.exif import descriptive_tags
from trt_hspan.media.pictures import Metadata, Picture, eight_bit, encode_image, on_white
from trt_hspan.media.pixels import PixelFormat

STREAMED_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Of rows that are compressed at a time; a whole number of rows, at least one.
_PIECE_BYTES: Final = 1 << 20
_MOST_THREADS: Final = 8
_LEVEL: Final = 6  # zlib's own choice
# A classic TIFF file ends at 4 GiB; compression may make noise a little larger.
_CLASSIC_BYTES: Final = (4 << 30) - (64 << 20)


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

    @property
    def row_bytes(self) -> int:
        """Of the pixels of one row."""
        return self.width * self.pixels.channels * np.dtype(self.pixels.dtype).itemsize

    def one_pixel(self) -> bytes:
        """A file of one such pixel that says all that this one is to say."""
        pixel = np.zeros((1, 1, self.pixels.channels), self.pixels.dtype)
        picture = Picture(pixels=pixel, metadata=self.metadata)
        return encode_image(picture, self.path.suffix, where=self.path)


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
            _write_packed(file, _Png(target) if suffix == ".png" else _Tiff(target), target, strips)


class _Packed(NamedTuple):
    """Rows, compressed; `checksum` is Adler-32 of the `size` bytes that went in."""

    data: bytes
    checksum: int
    size: int


class _Layout(Protocol):
    """How a format lays out compressed rows. `pack` is called on several threads, the others in order on one."""

    def begin(self, file: BinaryIO) -> None:
        """What comes before the rows."""

    def pack(self, rows: npt.NDArray[Any]) -> _Packed:
        """Compresses (rows, W, C)."""

    def put(self, file: BinaryIO, packed: _Packed) -> None:
        """Writes what `pack` made of the next rows."""

    def end(self, file: BinaryIO) -> None:
        """What comes after the rows."""


def _write_packed(
    file: BinaryIO, layout: _Layout, target: StripTarget, strips: Iterator[npt.NDArray[Any]]
) -> None:
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    layout.begin(file)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="strip compression")
    waiting: deque[Future[_Packed]] = deque()
    try:
        for rows in _regrouped(strips, _rows_of_piece(target)):
            waiting.append(pool.submit(layout.pack, rows))
            del rows  # or it would keep its strip while the next but one is made
            while len(waiting) > 2 * threads:
                layout.put(file, waiting.popleft().result())
        while waiting:
            layout.put(file, waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
    layout.end(file)


def _rows_of_piece(target: StripTarget) -> int:
    return min(target.height, max(1, _PIECE_BYTES // target.row_bytes))


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


class _Png:
    """One zlib stream; each piece of it is compressed on its own, and ends on a byte."""

    def __init__(self, target: StripTarget, *, level: int = _LEVEL) -> None:
        self._target, self._level = target, level
        self._pixel_bytes = target.pixels.channels * np.dtype(target.pixels.dtype).itemsize
        self._checksum = 1  # Adler-32 of nothing

    def begin(self, file: BinaryIO) -> None:
        """The signature, the header, and what describes the picture."""
        file.write(PNG_SIGNATURE)
        for kind, chunk in png_chunks(self._target.one_pixel()):
            if kind == b"IHDR":
                sides = struct.pack(">II", self._target.width, self._target.height)
                file.write(png_chunk(kind, sides + chunk[16:21]))
            elif kind not in (b"IDAT", b"IEND"):
                file.write(chunk)
        # Deflate with a window of 32 KiB, compressed by default.
        file.write(png_chunk(b"IDAT", b"\x78\x9c"))

    def pack(self, rows: npt.NDArray[Any]) -> _Packed:
        """Each row begins with the filter's number, 1: every byte is less that of the pixel to its left."""
        ordered = np.ascontiguousarray(rows, ">u2" if rows.dtype == np.uint16 else np.uint8)
        samples = ordered.view(np.uint8).reshape(len(rows), -1)
        filtered = np.empty((len(rows), 1 + samples.shape[1]), np.uint8)
        filtered[:, 0] = 1
        filtered[:, 1:] = samples
        filtered[:, 1 + self._pixel_bytes :] -= samples[:, : -self._pixel_bytes]
        packer = zlib.compressobj(self._level, zlib.DEFLATED, -zlib.MAX_WBITS)
        data = packer.compress(filtered.data) + packer.flush(zlib.Z_SYNC_FLUSH)
        return _Packed(data, zlib.adler32(filtered.data), filtered.size)

    def put(self, file: BinaryIO, packed: _Packed) -> None:
        """One chunk."""
        file.write(png_chunk(b"IDAT", packed.data))
        self._checksum = _joined_adler32(self._checksum, packed.checksum, packed.size)

    def end(self, file: BinaryIO) -> None:
        """An empty last block, the checksum, and the end."""
        file.write(png_chunk(b"IDAT", b"\x03\x00" + struct.pack(">I", self._checksum)))
        file.write(png_chunk(b"IEND", b""))


def _joined_adler32(first: int, second: int, second_size: int) -> int:
    """Adler-32 of two runs of bytes, of their checksums and of the second one's size (RFC 1950, section 8.2)."""
    prime = 65521
    low = ((first & 0xFFFF) + (second & 0xFFFF) - 1) % prime
    high = ((first >> 16) + (second >> 16) + second_size * ((first & 0xFFFF) - 1)) % prime
    return high << 16 | low


# What says how a file stores its pixels and is another for each file. The rest of a directory is kept.
_WIDTH, _HEIGHT, _COMPRESSION, _OFFSETS, _ROWS_PER_STRIP, _BYTE_COUNTS, _PREDICTOR = (
    *(256, 257, 259, 273, 278, 279, 317),
)
_LONG, _LONG8 = 4, 16


class _Tiff:
    """A header, the directory, whose size is known before, and strips of as many rows as a piece has.

    Pillow writes the directory, EXIF and GPS within it.
    """

    def __init__(self, target: StripTarget) -> None:
        self._target = target
        self._rows = _rows_of_piece(target)
        self._count = -(-target.height // self._rows)
        self._is_big = target.height * target.row_bytes > _CLASSIC_BYTES
        # Little-endian; then the version, and where the directory lies.
        self._header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if self._is_big else b"II*\0\x08\0\0\0"
        self._sizes: list[int] = []

    def begin(self, file: BinaryIO) -> None:
        """A directory that takes the room of the true one."""
        file.write(self._header)
        file.write(self._directory([0] * self._count))

    def pack(self, rows: npt.NDArray[Any]) -> _Packed:
        """Every sample is less that of the pixel to its left: predictor 2."""
        samples = rows.astype(rows.dtype.newbyteorder("<"))
        samples[:, 1:] -= rows[:, :-1]
        return _Packed(zlib.compress(samples.data, _LEVEL), 0, samples.nbytes)

    def put(self, file: BinaryIO, packed: _Packed) -> None:
        """One strip."""
        file.write(packed.data)
        self._sizes.append(len(packed.data))

    def end(self, file: BinaryIO) -> None:
        """The directory, in its place."""
        file.seek(len(self._header))
        file.write(self._directory(self._sizes))

    def _directory(self, sizes: list[int]) -> bytes:
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        small = self._target.one_pixel()
        stored = ImageFileDirectory_v2(small[:8])
        stream = io.BytesIO(small)
        stream.seek(stored.next)
        stored.load(stream)
        directory = ImageFileDirectory_v2(self._header)
        for tag in stored:
            directory.tagtype[tag] = stored.tagtype[tag]
            directory[tag] = stored[tag]
        for tag, value in descriptive_tags(self._target.metadata.exif).items():
            directory[tag] = value  # EXIF and GPS as such, no longer as places in the small file
        directory.tagtype[_OFFSETS] = _LONG8 if self._is_big else _LONG
        directory.tagtype[_BYTE_COUNTS] = directory.tagtype[_ROWS_PER_STRIP] = _LONG
        directory.tagtype[_WIDTH] = directory.tagtype[_HEIGHT] = _LONG
        directory[_WIDTH], directory[_HEIGHT] = self._target.width, self._target.height
        directory[_COMPRESSION], directory[_PREDICTOR] = 8, 2
        directory[_ROWS_PER_STRIP] = self._rows
        directory[_BYTE_COUNTS] = tuple(sizes)
        # Pillow counts them from the end of the directory.
        directory[_OFFSETS] = tuple(sum(sizes[:index]) for index in range(len(sizes)))
        return directory.tobytes(len(self._header))


def _write_jpeg(file: BinaryIO, target: StripTarget, strips: Iterator[npt.NDArray[Any]]) -> None:
    plain = replace(
        target,
        path=target.path.with_suffix(".png"),
        pixels=PixelFormat(channels=1 if target.pixels.channels <= 2 else 3, dtype=np.uint8),
        metadata=Metadata(),
    )
    read_end, write_end = os.pipe()
    failures: list[BaseException] = []
    thread = threading.Thread(
        target=_encode_jpeg, args=(file, target, read_end, failures), name="libvips writer", daemon=True
    )
    thread.start()
    try:
        with open(write_end, "wb") as pipe:  # noqa: PTH123  # a descriptor, not a path
            wanted = takewhile(lambda _: not failures, strips)
            fitting = map(_eight_bits_without_alpha, _regrouped(wanted, _rows_of_piece(target)))
            _write_packed(pipe, _Png(plain, level=0), plain, fitting)
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


def _encode_jpeg(file: BinaryIO, target: StripTarget, read_end: int, failures: list[BaseException]) -> None:
    """The encoder's thread: libvips pulls rows out of the pipe."""
    ours = _jpeg_head(target.one_pixel())
    begun = False

    def put(data: Any) -> int:
        nonlocal begun
        try:
            block = bytes(data)
            file.write(block if begun else ours + block[len(_jpeg_head(block)) :])
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
    at = 2
    while data[at] == 0xFF and (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[:at]


def _eight_bits_without_alpha(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    pixels = eight_bit(rows)
    return on_white(pixels) if pixels.shape[2] in (2, 4) else pixels
