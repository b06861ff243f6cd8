"""Picture and video formats: how files begin, suffixes, limits, and the errors that they share."""

from __future__ import annotations

import os
import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.sizes import ImageSize

# What Pillow reads. Not on the list: formats whose Pillow plugins start other programs, as EPS does.
READ_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
#: What libvips alone reads, where its build can, by the name of its loader.
VIPS_LOADERS: Final = {"AVIF": "heifload", "HEIC": "heifload", "JXL": "jxlload"}
# What is written, by suffix: Pillow's format and the options that lose the least.
WRITE_FORMATS: Final[dict[str, tuple[str, dict[str, object]]]] = {
    ".png": ("PNG", {}),
    **dict.fromkeys((".jpg", ".jpeg", ".jfif"), ("JPEG", {"quality": 95, "subsampling": 0})),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".bmp": ("BMP", {}),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF", {"compression": "tiff_deflate"})),
}
#: What videos are written as; FFmpeg reads many more.
VIDEO_SUFFIXES: Final = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
# How pictures begin, the format, and the suffix of a result of the same kind.
_STARTS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "PNG", ".png"),
    (b"\xff\xd8\xff", "JPEG", ".jpg"),
    *((start, "GIF", ".png") for start in (b"GIF87a", b"GIF89a")),
    *((start, "TIFF", ".tif") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (b"\xff\x0a", "JXL", ".png"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL", ".png"),
)
# Two letters begin many a text too: more of a PNM's header, and a BMP's with one of the lengths of its description.
_LONGER_STARTS: Final = (
    (re.compile(rb"P[1-6](?:\s|#[^\n\r]*[\n\r])+(?:[0-9]|\Z)"), "PPM", ".png"),
    (re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "BMP", ".bmp"),
)
# Of files that begin with a box "ftyp": brands of pictures, and of sound alone or raw pictures. All others are videos.
_BRANDS: Final = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
)
_OTHER_BRANDS: Final = (b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B ", b"aax ", b"crx ")
_VIDEO_STARTS: Final = (
    *(b"\x1aE\xdf\xa3", b"FLV\1", b"0&\xb2u\x8ef\xcf\x11"),  # Matroska and WebM, Flash, Windows Media
    *(b"\0\0\1\xba", b"\0\0\1\xb3", b"\0\0\1\xb0"),  # MPEG: program streams, 1 and 2, 4
    *(b"\0\0\0\1" + unit for unit in (b"\x67", b"\x27", b"\x09", b"\x40\1", b"\x46\1")),  # H.264, H.265
    *(b"\0\0\0\x08" + box for box in (b"wide", b"free", b"skip")),  # QuickTime
    *(b"YUV4MPEG2 ", b"DKIF", b"nut/multimedia container", b"\x06\x0e+4\2\5\1\1"),  # the last is MXF
)
# Ogg begins alike for sound alone: Theora and VP8 in it.
_OGG_VIDEOS: Final = (b"\x80theora", b"OVP80")
# QuickTime may come without "ftyp".
_VIDEO_BOXES: Final = (b"ftyp", b"moov", b"mdat")
# MPEG transport streams: a byte at the start of each packet, which a disc puts a time stamp before, and a broadcast
# a checksum behind.
_TS_SYNC: Final = 0x47
_TS_PACKETS: Final = ((0, 188), (4, 192), (0, 204))
_START_BYTES: Final = 1024
# Pixels that a side may have in libjpeg and in libwebp.
_LONGEST_SIDES: Final = {"JPEG": 65500, "WEBP": 16383}
#: Names of pictures, where contents cannot be looked at, or say nothing.
READ_SUFFIXES: Final = (
    *WRITE_FORMATS,
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jxl"),
)
Kind = Literal["picture", "video"]
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


def format_and_suffix(start: bytes) -> tuple[str, str] | None:
    """Of files that begin so: the format as Pillow names it, and the suffix of results in it, .png where it is not
    written. None for no picture."""
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP", ".webp"
    if start[4:8] == b"ftyp":
        brand, length = start[8:12], min(int.from_bytes(start[:4], "big"), len(start))
        if brand not in _BRANDS:
            return None
        compatible = [start[at : at + 4] for at in range(16, length, 4)]
        return ("AVIF" if b"avif" in compatible else _BRANDS[brand]), ".png"
    known = next(((name, suffix) for magic, name, suffix in _STARTS if start.startswith(magic)), None)
    longer = ((name, suffix) for pattern, name, suffix in _LONGER_STARTS if pattern.match(start))
    return known or next(longer, None)


def kind_of_file(path: Path) -> Kind | None:
    """Whether a file is a picture or a video, by how it begins; by its name where that says nothing.

    None for everything else. A pipe or device, and what cannot be read, is what its name says.
    """
    if path.is_dir():
        return None
    start = b""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                start = stream.read(_START_BYTES)
    if format_and_suffix(start) is not None:
        return "picture"
    if _is_video(start):
        return "video"
    if start[4:8] == b"ftyp" or start.startswith(b"RIFF"):
        return None  # sound
    return kind_of_name(path)


def kind_of_name(path: Path) -> Kind | None:
    """What a file is to be, by its suffix."""
    suffix = path.suffix.lower()
    return "picture" if suffix in READ_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def _is_video(start: bytes) -> bool:
    if start[4:8] in _VIDEO_BOXES:
        return start[8:12] not in _OTHER_BRANDS
    if start.startswith(b"RIFF"):
        return start[8:12] == b"AVI "
    if start.startswith(_VIDEO_STARTS) or (
        start.startswith(b"OggS") and any(name in start for name in _OGG_VIDEOS)
    ):
        return True
    return any(
        len(start) > first + 2 * packet
        and all(start[first + index * packet] == _TS_SYNC for index in range(3))
        for first, packet in _TS_PACKETS
    )


def not_a_picture(where: object) -> HspanError:
    """The one line for bytes that no decoder knows."""
    return HspanError(where, "not a picture that can be read", f"give {', '.join(READ_FORMATS[:-1])} or PPM")


def damaged(where: object, error: BaseException) -> HspanError:
    """The one line that a decoder's complaint deserves."""
    reason = str(error).strip().split("\n", maxsplit=1)[0][:120]
    why = f" ({reason})" if reason else ""
    return HspanError(where, f"a damaged or truncated picture{why}", "copy or download it again")


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
    most = _LONGEST_SIDES.get(WRITE_FORMATS[suffix][0])
    if most is not None and max(size) > most:
        raise HspanError(
            path,
            f"{suffix} cannot hold {size} pixels, its sides have at most {most}",
            "name a .png or .tif file",
        )
