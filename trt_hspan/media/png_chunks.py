"""The chunks of a PNG file. Owns their frame and knows none of them: https://www.w3.org/TR/png-3/#5Chunk-layout."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import mmap

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def chunks(file: bytes | mmap.mmap) -> Iterator[tuple[bytes, slice]]:
    """Kinds, and where in the file the chunk's data lies."""
    at = len(SIGNATURE)
    while at + 12 <= len(file):
        (length,) = struct.unpack_from(">I", file, at)
        yield file[at + 4 : at + 8], slice(at + 8, at + 8 + length)
        at += 12 + length
