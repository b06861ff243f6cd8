"""Interlaced PNG files, whose pixels come in seven passes (Adam7). Owns their way into files that have rows.

Decoders hold the whole of an interlaced picture, because its first row is complete when the last pass begins. A pass by
itself is a small picture with rows and filters of its own, so each becomes a PNG file that is not interlaced.
https://www.w3.org/TR/png-3/#8InterlaceMethods
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from trt_hspan.media import png_chunks
from trt_hspan.media.images import damaged

# First row and column, and steps between rows and columns.
_ADAM7: Final = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
_HEADER: Final = ">IIBBBBB"  # width, height, depth, color type, compression, filter, interlacing
_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by color type
_PIECE_BYTES: Final = 1 << 20
_LEVEL: Final = 1  # the files are read once


@dataclass(frozen=True, kw_only=True)
class PassFile:
    """One pass as a file.

    Attributes:
        path: a PNG that is not interlaced.
        top, left: where its first pixel lies in the picture.
        row_step, column_step: from one of its pixels to the next, in the picture.
    """

    path: Path
    top: int
    left: int
    row_step: int
    column_step: int


def files_of_passes(source: Path, folder: Path) -> list[PassFile]:
    """Writes each pass that has pixels into a file of its own.

    Args:
        source: an interlaced PNG.
        folder: takes the files; there must be room for about as much as the pixels take.

    Raises:
        HspanError: the file is damaged or truncated.
        OSError: `folder` cannot be written.
    """
    with source.open("rb") as stream:
        try:
            return _split(stream, folder)
        except (ValueError, struct.error, zlib.error) as error:
            raise damaged(source, error) from error


def _split(stream: BinaryIO, folder: Path) -> list[PassFile]:
    header, kept = b"", []
    for kind, length in png_chunks.chunks(stream):
        if kind == b"IHDR":
            header = stream.read(length)
        elif kind in (b"PLTE", b"tRNS"):
            kept.append(png_chunks.chunk(kind, stream.read(length)))
        elif kind == b"IDAT":  # the others come before it
            break
    width, height, depth, color, compression, filtering, _ = struct.unpack(_HEADER, header)
    pixels = _inflated(stream)
    made = []
    for number, (top, left, row_step, column_step) in enumerate(_ADAM7):
        rows, columns = -(-(height - top) // row_step), -(-(width - left) // column_step)
        if rows <= 0 or columns <= 0:
            continue
        path = folder / f"pass{number + 1}.png"
        header = struct.pack(_HEADER, columns, rows, depth, color, compression, filtering, 0)
        with path.open("wb") as file:
            file.write(png_chunks.SIGNATURE + png_chunks.chunk(b"IHDR", header) + b"".join(kept))
            row_bytes = 1 + -(-columns * _SAMPLES[color] * depth // 8)
            _compress(file, pixels, rows * row_bytes)
            file.write(png_chunks.chunk(b"IEND", b""))
        made.append(PassFile(path=path, top=top, left=left, row_step=row_step, column_step=column_step))
    return made


class _Inflated:
    """The filtered rows of all passes, one after the other."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def take(self, most: int) -> bytes:
        """At least one byte and at most so many. Raises: ValueError at the end."""
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                raise ValueError("pixels are missing")
            self._held = piece
        taken, self._held = self._held[:most], self._held[most:]
        return taken


def _inflated(stream: BinaryIO) -> _Inflated:
    def pieces() -> Iterator[bytes]:
        inflater = zlib.decompressobj()
        for kind, length in png_chunks.chunks(stream):
            if kind != b"IDAT":
                continue
            checksum, left = zlib.crc32(kind), length
            while left:
                packed = stream.read(min(left, _PIECE_BYTES))
                if not packed:
                    raise ValueError("a chunk is cut off")
                left -= len(packed)
                checksum = zlib.crc32(packed, checksum)
                while packed:
                    yield inflater.decompress(packed, _PIECE_BYTES)
                    packed = inflater.unconsumed_tail
            if stream.read(4) != struct.pack(">I", checksum):
                raise ValueError("a chunk's checksum is wrong")
        yield inflater.flush()

    return _Inflated(pieces())


def _compress(file: BinaryIO, pixels: _Inflated, size: int) -> None:
    packer = zlib.compressobj(_LEVEL)
    while size:
        piece = pixels.take(min(size, _PIECE_BYTES))
        size -= len(piece)
        packed = packer.compress(piece)
        if packed:
            file.write(png_chunks.chunk(b"IDAT", packed))
    file.write(png_chunks.chunk(b"IDAT", packer.flush()))
