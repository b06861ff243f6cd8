"""The chunks of a PNG file. Owns their frame and knows none of them: https://www.w3.org/TR/png-3/#5Chunk-layout."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kinds and lengths of a file's chunks; at each the stream stands where its data begins, and may be read."""
    at = len(SIGNATURE)
    while True:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        at += 12 + length
