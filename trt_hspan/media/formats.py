"""Picture and video formats: suffixes, how files begin, limits, and the errors that they share."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize

# What is read. Not on the list: formats whose Pillow plugins start other programs, as EPS does.
READ_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# What is written, by suffix: Pillow's format and the options that lose the least.
WRITE_FORMATS: Final[dict[str, tuple[str, dict[str, object]]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}
VIDEO_SUFFIXES: Final = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
# How files of READ_FORMATS begin, the format, and the suffix of a result of the same kind.
_STARTS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "PNG", ".png"),
    (b"\xff\xd8\xff", "JPEG", ".jpg"),
    (b"RIFF", "WEBP", ".webp"),
    (b"BM", "BMP", ".bmp"),
    (b"GIF8", "GIF", ".png"),
    *((start, "TIFF", ".tif") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((b"P%d" % kind, "PPM", ".png") for kind in range(1, 7)),
)
# Pixels that a side may have in libjpeg and in libwebp.
_LONGEST_SIDES: Final = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
READ_SUFFIXES: Final = (*WRITE_FORMATS, ".gif", ".ppm", ".pgm", ".pnm")
MAX_PIXELS: Final = 1 << 27  # 134 million: more than any camera's picture, less than would fill the memory
# Pillow's decoders meet damaged files with any of these.
DAMAGE: Final = (
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def require_accepted(size: ImageSize, where: object) -> None:
    """Raises: HspanError for more than `MAX_PIXELS` pixels, which no picture in memory may have."""
    if size.pixels > MAX_PIXELS:
        raise HspanError(
            where,
            f"claims {size} pixels, more than the {MAX_PIXELS / 1e6:.0f} million accepted",
            "cut it into smaller pictures",
        )


def format_from_start(start: bytes) -> str | None:
    """The format of files that begin so, as Pillow names it; None for no picture."""
    return next((name for magic, name, _ in _STARTS if start.startswith(magic)), None)


def suffix_from_start(start: bytes) -> str | None:
    """The suffix of files that begin so, .png for formats that are not written; None for no picture."""
    return next((suffix for magic, _, suffix in _STARTS if start.startswith(magic)), None)


def not_a_picture(where: object) -> HspanError:
    """The one line for bytes that no decoder knows."""
    return HspanError(where, "not a picture that can be read", f"give {', '.join(READ_FORMATS[:-1])} or PPM")


def damaged(where: object, error: BaseException) -> HspanError:
    """The one line that a decoder's complaint deserves."""
    reason = str(error).strip().split("\n", maxsplit=1)[0][:120] or type(error).__name__
    return HspanError(where, f"a damaged or truncated picture ({reason})", "copy or download it again")


def require_writable_suffix(path: str | os.PathLike[str]) -> None:
    """Checks, before any work, that a picture can be written under this name.

    Raises:
        UsageError: a suffix that is not a picture's, or the name of a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise UsageError(target, "is a folder, expected a picture's name", "name a file in it")
    if target.suffix.lower() not in WRITE_FORMATS:
        raise UsageError(
            target, f"cannot tell the format from {target.suffix!r}", f"end it in {', '.join(WRITE_FORMATS)}"
        )


def require_sides(path: str | os.PathLike[str], size: ImageSize) -> None:
    """Raises HspanError, before any work, for a side that is longer than JPEG or WebP allow."""
    suffix = Path(path).suffix.lower()
    most = _LONGEST_SIDES.get(suffix)
    if most is not None and max(size) > most:
        raise HspanError(
            path,
            f"{suffix} cannot hold {size} pixels, its sides have at most {most}",
            "name a .png or .tif file",
        )
