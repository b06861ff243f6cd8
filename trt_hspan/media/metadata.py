"""What picture files say beside their pixels. Owns what is kept of it, and its way out of files of every size.

Pillow reads it, of files in memory from the whole picture. Of a file whose pixels are not to be read it gets a file of
one pixel that says the same; a TIFF's directory it reads where it lies.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from trt_hspan.errors import HspanError
from trt_hspan.media import png_chunks
from trt_hspan.media.exif import upright_exif, upright_xmp
from trt_hspan.media.images import DAMAGE, damaged, opened
from trt_hspan.media.jpeg_segments import SAYING, segments

if TYPE_CHECKING:
    from PIL import Image

XMP_TAG: Final = 700
XMP_KEY: Final = "XML:com.adobe.xmp"
_ORIENTATION_TAG, _PROFILE_TAG = 274, 34675
_X_RESOLUTION_TAG, _Y_RESOLUTION_TAG, _RESOLUTION_UNIT_TAG = 282, 283, 296
_INCH, _CENTIMETRE = 2, 3
# Chunks that say something which is kept.
_PNG_KINDS: Final = (b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"pHYs")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a file says beside its pixels.

    Attributes:
        icc_profile: the colors' profile.
        exif: an EXIF block, `Exif\\0\\0` first; its orientation is that of the pixels: upright.
        xmp: an XMP packet.
        text: PNG's keywords and their texts.
        dpi: pixels per inch, horizontal and vertical.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    text: tuple[tuple[str, str], ...] = ()
    dpi: tuple[float, float] | None = None


def fits_profile(profile: bytes, *, gray: bool) -> bool:
    """Whether an ICC profile is one for such pixels: a CMYK profile on RGB would turn every color."""
    return profile[16:20] == (b"GRAY" if gray else b"RGB ")


def metadata_of_image(image: Image.Image) -> Metadata:
    """What Pillow has read of a picture, loaded and not turned yet."""
    name = image.format or "PNG"
    dpi = image.info.get("dpi")
    if name == "TIFF" and _X_RESOLUTION_TAG not in getattr(image, "tag_v2", {}):
        dpi = None  # Pillow says 1
    with contextlib.suppress(*DAMAGE):
        image.getexif()  # of a block that is none it says so once, and that there is none afterwards
    return Metadata(
        icc_profile=image.info.get("icc_profile") or None,
        exif=upright_exif(image.getexif(), of_tiff=name == "TIFF"),
        xmp=_upright_xmp(image),
        text=tuple((k, str(v)) for k, v in getattr(image, "text", {}).items() if k != XMP_KEY),
        dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
    )


def metadata_of_file(path: Path) -> Metadata:
    """What a PNG, JPEG or TIFF file says, of which no pixels are read; nothing of another format.

    Raises:
        HspanError: the file is damaged.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            if start[:2] in (b"II", b"MM"):
                return metadata_of_tiff(stream, path)
            if start == png_chunks.SIGNATURE:
                return metadata_of_png(stream, path)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _metadata_of_small(_small_jpeg(data), path) if start[:2] == b"\xff\xd8" else Metadata()
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def metadata_of_png(stream: BinaryIO, where: object) -> Metadata:
    """What a PNG of any depth says. Raises: HspanError when it is damaged."""
    return _metadata_of_small(_small_png(stream), where)


def orientation_of_png(stream: BinaryIO, where: object) -> int:
    """EXIF's orientation, 1 to 8, wherever a PNG has it: before or after the pixels, or as a text.

    Raises:
        HspanError: the file is damaged.
    """
    with opened(io.BytesIO(_small_png(stream)), where) as image:
        try:
            image.load()
            found = image.getexif().get(_ORIENTATION_TAG, 1)
        except (OSError, *DAMAGE):  # no EXIF
            return 1
    return found if found in range(1, 9) else 1


def metadata_of_tiff(stream: BinaryIO, where: object) -> Metadata:
    """What the first directory of a TIFF or BigTIFF says. Raises: HspanError when it is damaged."""
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd tags
        try:
            stream.seek(0)
            header = stream.read(16)
            if header[:4] == b"MM\0+":
                raise HspanError(
                    where, "a big-endian BigTIFF, which Pillow cannot read", "save it again, little-endian"
                )
            tags: Any = Image.Exif()
            tags.bigtiff = header[2:4] in (b"+\0", b"\0+")
            tags.endian = "<" if header[:2] == b"II" else ">"
            head = header if tags.bigtiff else header[:8]
            tags.load_from_fp(stream, ImageFileDirectory_v2(head).next)
            return Metadata(
                icc_profile=tags.get(_PROFILE_TAG) or None,
                exif=upright_exif(tags, of_tiff=True),
                xmp=_upright_packet(tags.get(XMP_TAG)),
                dpi=_tiff_dpi(tags),
            )
        except (OSError, *DAMAGE) as error:
            raise damaged(where, error) from error


def _tiff_dpi(tags: Image.Exif) -> tuple[float, float] | None:
    horizontal, vertical = tags.get(_X_RESOLUTION_TAG), tags.get(_Y_RESOLUTION_TAG)
    per_inch = {_INCH: 1.0, _CENTIMETRE: 2.54}.get(tags.get(_RESOLUTION_UNIT_TAG, _INCH))
    if not horizontal or not vertical or per_inch is None:
        return None
    return float(horizontal) * per_inch, float(vertical) * per_inch


def _metadata_of_small(data: bytes, where: object) -> Metadata:
    with opened(io.BytesIO(data), where) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd tags
        try:
            image.load()
            return metadata_of_image(image)
        except (OSError, *DAMAGE) as error:
            raise damaged(where, error) from error


def _small_png(stream: BinaryIO) -> bytes:
    """One gray pixel, and all that says something which is kept."""
    header = b"\0\0\0\1\0\0\0\1\x08\0\0\0\0"  # one pixel, 8-bit gray
    small = [png_chunks.SIGNATURE, png_chunks.chunk(b"IHDR", header)]
    small += [
        png_chunks.chunk(kind, stream.read(length))
        for kind, length in png_chunks.chunks(stream)
        if kind in _PNG_KINDS
    ]
    small.append(png_chunks.chunk(b"IDAT", zlib.compress(b"\0\0")))
    return b"".join([*small, png_chunks.chunk(b"IEND", b"")])


def _small_jpeg(data: bytes | mmap.mmap) -> bytes:
    """One gray pixel, and all that comes before the pixels and is no part of them."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "JPEG")
    pixel = stream.getvalue()
    said = [data[at] for marker, at in segments(data) if marker in SAYING]
    # An index of further pictures would be followed.
    said = [segment for segment in said if segment[4:8] != b"MPF\0"]
    begin = max(at.stop for marker, at in segments(pixel) if marker in SAYING)
    return b"".join([data[:2], *said, pixel[begin:]])


def _upright_xmp(image: Image.Image) -> bytes | None:
    """The XMP packet; of a TIFF it may be known as a tag alone."""
    packet = image.info.get("xmp") or image.info.get(XMP_KEY)
    if not packet and image.format == "TIFF":
        packet = image.getexif().get(XMP_TAG)
    return _upright_packet(packet)


def _upright_packet(packet: str | bytes | None) -> bytes | None:
    if not packet:
        return None
    return upright_xmp(packet.encode() if isinstance(packet, str) else bytes(packet))
