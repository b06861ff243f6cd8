"""PNG and TIFF files whose rows are compressed in pieces, on any thread. Owns how these formats lay them out.

What a file says beside its pixels is taken from a file of one pixel that `encode_image` makes, so that a file of every
size and depth says it in the same way.

PNG: https://www.w3.org/TR/png-3/; TIFF 6.0 with Deflate (Adobe Photoshop TIFF technical notes, 2002) and BigTIFF.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trt_hspan.media import png_chunks
from trt_hspan.media.exif import descriptive_tags
from trt_hspan.media.metadata import Metadata
from trt_hspan.media.pictures import Picture, encode_image
from trt_hspan.media.pixels import PixelFormat

# Of rows that are compressed at a time; a whole number of rows, at least one.
_PIECE_BYTES: Final = 1 << 20
_LEVEL: Final = 6  # zlib's own choice
# A classic TIFF file ends at 4 GiB; compression may make noise a little larger.
_CLASSIC_BYTES: Final = (4 << 30) - (64 << 20)


@dataclass(frozen=True, kw_only=True)
class FileContent:
    """What a file is to hold.

    Attributes:
        height, width: of the whole picture.
        pixels: their format.
        metadata: what the file is to say beside them.
    """

    height: int
    width: int
    pixels: PixelFormat
    metadata: Metadata

    @property
    def row_bytes(self) -> int:
        """Of the pixels of one row."""
        return self.width * self.pixel_bytes

    @property
    def pixel_bytes(self) -> int:
        """Of one pixel."""
        return self.pixels.channels * np.dtype(self.pixels.dtype).itemsize

    @property
    def rows_of_piece(self) -> int:
        """Rows that are compressed at a time."""
        return min(self.height, max(1, _PIECE_BYTES // self.row_bytes))

    def one_pixel(self, suffix: str) -> bytes:
        """A file of one pixel of 8 bits that says all that this one is to say.

        Raises:
            HspanError: the format has no room for it.
        """
        pixel = np.zeros((1, 1, self.pixels.channels), np.uint8)
        return encode_image(Picture(pixels=pixel, metadata=self.metadata), suffix)


class Packed(NamedTuple):
    """Rows, compressed; `checksum` is Adler-32 of the `size` bytes that went in."""

    data: bytes
    checksum: int
    size: int


class Layout(Protocol):
    """How a format lays out compressed rows. `pack` is called on several threads, the others in order on one."""

    def begin(self, file: BinaryIO) -> None:
        """What comes before the rows."""

    def pack(self, rows: npt.NDArray[Any]) -> Packed:
        """Compresses (rows, W, C)."""

    def put(self, file: BinaryIO, packed: Packed) -> None:
        """Writes what `pack` made of the next rows."""

    def end(self, file: BinaryIO) -> None:
        """What comes after the rows."""


class PngLayout:
    """One zlib stream; each piece of it is compressed on its own, and ends on a byte."""

    def __init__(self, content: FileContent, *, level: int = _LEVEL) -> None:
        self._content, self._level = content, level
        self._pixel_bytes = content.pixel_bytes
        self._checksum = 1  # Adler-32 of nothing

    def begin(self, file: BinaryIO) -> None:
        """The signature, the header, and what describes the picture."""
        small = io.BytesIO(self._content.one_pixel(".png"))
        depth = 8 * np.dtype(self._content.pixels.dtype).itemsize
        file.write(png_chunks.SIGNATURE)
        for kind, length in png_chunks.chunks(small):
            data = small.read(length)
            if kind == b"IHDR":  # sides, depth, and the rest: colors as in the small file
                sides = struct.pack(">IIB", self._content.width, self._content.height, depth)
                file.write(png_chunks.chunk(kind, sides + data[9:]))
            elif kind not in (b"IDAT", b"IEND"):
                file.write(png_chunks.chunk(kind, data))
        # Deflate with a window of 32 KiB, compressed by default.
        file.write(png_chunks.chunk(b"IDAT", b"\x78\x9c"))

    def pack(self, rows: npt.NDArray[Any]) -> Packed:
        """Each row begins with the filter's number, 1: every byte is less that of the pixel to its left."""
        ordered = np.ascontiguousarray(rows, ">u2" if rows.dtype == np.uint16 else np.uint8)
        samples = ordered.view(np.uint8).reshape(len(rows), -1)
        filtered = np.empty((len(rows), 1 + samples.shape[1]), np.uint8)
        filtered[:, 0] = 1
        filtered[:, 1:] = samples
        filtered[:, 1 + self._pixel_bytes :] -= samples[:, : -self._pixel_bytes]
        packer = zlib.compressobj(self._level, zlib.DEFLATED, -zlib.MAX_WBITS)
        data = packer.compress(filtered.data) + packer.flush(zlib.Z_SYNC_FLUSH)
        return Packed(data, zlib.adler32(filtered.data), filtered.size)

    def put(self, file: BinaryIO, packed: Packed) -> None:
        """One chunk."""
        file.write(png_chunks.chunk(b"IDAT", packed.data))
        self._checksum = _joined_adler32(self._checksum, packed.checksum, packed.size)

    def end(self, file: BinaryIO) -> None:
        """An empty last block, the checksum, and the end."""
        file.write(png_chunks.chunk(b"IDAT", b"\x03\x00" + struct.pack(">I", self._checksum)))
        file.write(png_chunks.chunk(b"IEND", b""))


def _joined_adler32(first: int, second: int, second_size: int) -> int:
    """Adler-32 of two runs of bytes, of their checksums and of the second one's size (RFC 1950, section 8.2)."""
    prime = 65521
    low = ((first & 0xFFFF) + (second & 0xFFFF) - 1) % prime
    high = ((first >> 16) + (second >> 16) + second_size * ((first & 0xFFFF) - 1)) % prime
    return high << 16 | low


# What says how a file stores its pixels and is another for each file. The rest of a directory is kept.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_OFFSETS, _ROWS_PER_STRIP, _BYTE_COUNTS, _PREDICTOR = 273, 278, 279, 317
_LONG, _LONG8 = 4, 16


class TiffLayout:
    """A header, the directory, whose size is known before, and strips of as many rows as a piece has.

    Pillow writes the directory, EXIF and GPS within it.
    """

    def __init__(self, content: FileContent) -> None:
        self._content = content
        self._rows = content.rows_of_piece
        self._count = -(-content.height // self._rows)
        self._is_big = content.height * content.row_bytes > _CLASSIC_BYTES
        # Little-endian; then the version, and where the directory lies.
        self._header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if self._is_big else b"II*\0\x08\0\0\0"
        self._sizes: list[int] = []

    def begin(self, file: BinaryIO) -> None:
        """A directory that takes the room of the true one."""
        file.write(self._header)
        file.write(self._directory([0] * self._count))

    def pack(self, rows: npt.NDArray[Any]) -> Packed:
        """Every sample is less that of the pixel to its left: predictor 2."""
        samples = rows.astype(rows.dtype.newbyteorder("<"))
        samples[:, 1:] -= rows[:, :-1]
        return Packed(zlib.compress(samples.data, _LEVEL), 0, samples.nbytes)

    def put(self, file: BinaryIO, packed: Packed) -> None:
        """One strip."""
        file.write(packed.data)
        self._sizes.append(len(packed.data))

    def end(self, file: BinaryIO) -> None:
        """The directory, in its place."""
        file.seek(len(self._header))
        file.write(self._directory(self._sizes))

    def _directory(self, sizes: list[int]) -> bytes:
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        small = self._content.one_pixel(".tif")
        stored = ImageFileDirectory_v2(small[:8])
        stream = io.BytesIO(small)
        stream.seek(stored.next)
        stored.load(stream)
        directory = ImageFileDirectory_v2(self._header)
        for tag in stored:
            directory.tagtype[tag] = stored.tagtype[tag]
            directory[tag] = stored[tag]
        for tag, value in descriptive_tags(self._content.metadata.exif).items():
            directory[tag] = value  # EXIF and GPS as such, no longer as places in the small file
        directory.tagtype[_OFFSETS] = _LONG8 if self._is_big else _LONG
        directory.tagtype[_BYTE_COUNTS] = directory.tagtype[_ROWS_PER_STRIP] = _LONG
        directory.tagtype[_WIDTH] = directory.tagtype[_HEIGHT] = _LONG
        directory[_WIDTH], directory[_HEIGHT] = self._content.width, self._content.height
        directory[_BITS] = (
            8 * np.dtype(self._content.pixels.dtype).itemsize,
        ) * self._content.pixels.channels
        directory[_COMPRESSION], directory[_PREDICTOR] = 8, 2
        directory[_ROWS_PER_STRIP] = self._rows
        directory[_BYTE_COUNTS] = tuple(sizes)
        # Pillow counts them from the end of the directory.
        directory[_OFFSETS] = tuple(itertools.accumulate(sizes[:-1], initial=0))
        return directory.tobytes(len(self._header))
