"""The segments of a JPEG file that come before its pixels (ITU-T T.81, annex B)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import mmap

_START_OF_SCAN: Final = 0xDA
#: Application segments and comments: what says something and is no part of the pixels.
SAYING: Final = frozenset((*range(0xE0, 0xF0), 0xFE))


def segments(file: bytes | mmap.mmap) -> Iterator[tuple[int, slice]]:
    """Markers, and where in the file their segments lie, up to the first scan."""
    at = 2
    while at + 4 <= len(file) and file[at] == 0xFF:
        marker = file[at + 1]
        if marker == _START_OF_SCAN:
            return
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(file[at + 2 : at + 4], "big")
        yield marker, slice(at, end)
        at = end
