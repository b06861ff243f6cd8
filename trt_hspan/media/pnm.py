"""Binary PGM and PPM files (P5, P6): rows lie in them as they are. Owns their header and nothing of colors.

Netpbm's format: https://netpbm.sourceforge.net/doc/ppm.html. Text files (P2, P3), black and white (P1, P4) and largest
values below 255 are left to Pillow, which reads whole pictures. Values of 9 to 15 bits are brought to 16.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.machine.memory import array_of_own_pages
from trt_hspan.media.images import damaged

# Comments run from # to the end of the line and stand between any two words of the header.
_SPACE: Final = rb"(?:\s|#[^\n\r]*[\n\r])+"
_HEADER: Final = re.compile(
    rb"P([56])%(space)s([0-9]{1,9})%(space)s([0-9]{1,9})%(space)s([0-9]{3,5})\s" % {b"space": _SPACE}
)
_HEADER_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class PnmHeader:
    """Height, width, channels (1 or 3) and largest value of a picture, and the byte at which its pixels begin."""

    height: int
    width: int
    channels: int
    white: int
    start: int

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """uint8, or uint16 for a largest value above 255."""
        return np.uint8 if self.white == 255 else np.uint16

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; 16 bits come with the upper byte first."""
        return self.width * self.channels * np.dtype(self.dtype).itemsize

    def require_complete(self, size: int, where: object) -> None:
        """Raises: HspanError when a file of so many bytes lacks pixels."""
        missing = self.start + self.height * self.row_bytes - size
        if missing > 0:
            raise damaged(where, ValueError(f"{missing} bytes are missing"))


def pnm_header(data: bytes) -> PnmHeader | None:
    """The header at the beginning of a file; None for another format, or one that is left to Pillow."""
    match = _HEADER.match(data[:_HEADER_BYTES])
    if match is None or 0 in (int(match[2]), int(match[3])) or not 255 <= int(match[4]) <= 65535:
        return None
    return PnmHeader(
        height=int(match[3]),
        width=int(match[2]),
        channels=1 if match[1] == b"5" else 3,
        white=int(match[4]),
        start=match.end(),
    )


def pnm_header_of_file(path: Path) -> PnmHeader | None:
    """As `pnm_header`. Raises: HspanError when the file cannot be read."""
    try:
        with path.open("rb") as stream:
            return pnm_header(stream.read(_HEADER_BYTES))
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error


def pixels_from_pnm(data: bytes, header: PnmHeader, where: object) -> npt.NDArray[Any]:
    """(H, W, C) pixels of a whole file. Raises: HspanError when it is truncated."""
    header.require_complete(len(data), where)
    stored = np.dtype(header.dtype).newbyteorder(">")
    count = header.height * header.width * header.channels
    pixels = np.frombuffer(data, stored, count, header.start).astype(header.dtype)
    _stretch(pixels, header.white)
    return pixels.reshape(header.height, header.width, header.channels)


def _stretch(pixels: npt.NDArray[Any], white: int) -> None:
    """Brings values of 0 to `white` to all 16 bits, rounded, in place; larger ones are white."""
    if white not in (255, 65535):
        levels = (np.arange(65536, dtype=np.uint32).clip(0, white) * 65535 + white // 2) // white
        np.take(levels.astype(np.uint16), pixels, out=pixels)


class PnmRows:
    """The rows of a file, in any order.

    Args:
        path: the file.
        header: as `pnm_header_of_file` read it.

    Raises:
        HspanError: the file is truncated.
    """

    def __init__(self, path: Path, header: PnmHeader) -> None:
        self._path, self._header = path, header
        header.require_complete(path.stat().st_size, path)

    def __call__(self, top: int, bottom: int) -> npt.NDArray[Any]:
        """Rows top to bottom. (bottom - top, W, C). Raises: HspanError when the file cannot be read."""
        header = self._header
        rows = array_of_own_pages((bottom - top, header.width, header.channels), header.dtype)
        try:
            with self._path.open("rb") as stream:
                stream.seek(header.start + top * header.row_bytes)
                if stream.readinto(rows.data) != rows.nbytes:
                    raise HspanError(self._path, "became shorter while it was read", "run the command again")
        except OSError as error:
            raise error_from_os_error(self._path, error, action="read") from error
        stored = np.dtype(header.dtype).newbyteorder(">")
        if not stored.isnative:
            rows.byteswap(inplace=True)
        _stretch(rows, header.white)
        return rows
