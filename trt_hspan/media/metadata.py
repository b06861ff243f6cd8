"""What picture files say beside their pixels: color profile, EXIF, XMP, texts, resolution, orientation.

Pillow reads it. Of a PNG it gets a file of one pixel that says the same, because a PNG may say things after its pixels.

PNG: https://www.w3.org/TR/png-3/#5Chunk-layout; JPEG: ITU-T T.81, annex B; TIFF 6.0, section 2.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from trt_hspan.errors import HspanError
from trt_hspan.media.colors import PNG_COLOR_LENGTHS, PngColors, profile_of_tiff
from trt_hspan.media.formats import DAMAGE, damaged

if TYPE_CHECKING:
    from PIL import Image

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
XMP_KEY: Final = "XML:com.adobe.xmp"
XMP_TAG, PROFILE_TAG = 700, 34675
X_RESOLUTION_TAG, Y_RESOLUTION_TAG, RESOLUTION_UNIT_TAG = 282, 283, 296
_BITS_TAG, _COMPRESSION_TAG, _COLORS_TAG, _PLANES_TAG, _TILE_TAG, _EXTRA_TAG = 258, 259, 262, 284, 322, 338
_PAGE_TAG, _COPIES_AND_MASKS = 254, (1, 4, 5)  # NewSubfileType, without bit 1: a page of several
_YCBCR, _LAB, _JPEG, _SEPARATE_PLANES = 6, 8, 7, 2  # values of these tags
_PILLOW_COMPRESSIONS: Final = (34925, 50000, 50001)  # LZMA, Zstandard, WebP
_INCH, _CENTIMETER = 2, 3
# Chunks that say something which is kept.
_PNG_KINDS: Final = (b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"pHYs")
_PNG_PALETTE: Final = 3  # a color type
# Comments run from # to the end of the line and stand between any two words of the header.
_SPACE: Final = rb"(?:\s|#[^\n\r]*[\n\r])+"
_PPM_HEADER: Final = re.compile(
    rb"P([56])%(space)s([0-9]{1,9})%(space)s([0-9]{1,9})%(space)s([0-9]{1,5})\s" % {b"space": _SPACE}
)
#: Bytes of a file that `read_header` needs of a PPM.
PPM_HEADER_BYTES: Final = 4096
_START_OF_SCAN: Final = 0xDA
_MP_ENTRIES: Final = 0xB002  # of a JPEG's index of further pictures: CIPA DC-007
#: Application segments and comments of a JPEG.
JPEG_DESCRIPTIONS: Final = frozenset((*range(0xE0, 0xF0), 0xFE))
_ORIENTATION: Final = 0x0112
_EXIF_FILE, _GPS_FILE = 0x8769, 0x8825
_INTEROPERABILITY_FILE: Final = 0xA005  # within EXIF's
# TIFF tags that say something of the picture; the others describe how one file stores its pixels.
_DESCRIPTIVE_TAGS: Final = frozenset(
    (
        *(270, 271, 272, 305, 306, 315, 316, 0x8298),  # description ... artist, copyright
        *(318, 319),  # white point, primary chromaticities
        *range(0x9C9B, 0x9CA0),  # title ... subject, of Windows
        *(_EXIF_FILE, _GPS_FILE),
    )
)
# Primaries and transfer in a HEIF's box of colors: ISO/IEC 23008-12, section 6.5.5.
_NCLX: Final = re.compile(rb"colrnclx\0(.)\0(.)", re.DOTALL)
_SRGB_OR_NOTHING: Final = (b"\1\x0d", b"\2\2")
#: Said of animations and of files of several pages.
FIRST_ONLY: Final = "contains several pictures: the first is taken"
#: Said of CMYK.
UNUSED_PROFILE: Final = "its color profile is not heeded: damaged, or not one of CMYK pixels"
_PIXEL_SIZE_TAGS: Final = (0xA002, 0xA003)  # width and height of the picture, which change
# An attribute or an element; the prefix is that of the XMP specification.
_XMP_ORIENTATION: Final = re.compile(
    rb"""tiff:Orientation\s*=\s*(["'])[2-8]\1|<tiff:Orientation>\s*[2-8]\s*</tiff:Orientation>"""
)


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a file says beside its pixels.

    Attributes:
        icc_profile: the colors' profile, as it stands in the file; without bytes where it cannot be unpacked.
        exif: an EXIF block, `Exif\\0\\0` first; its orientation is that of the pixels: upright.
        xmp: an XMP packet.
        text: PNG's keywords and their texts.
        dpi: pixels per inch, horizontal and vertical.
        png_colors: what a file says of its colors beside a profile, as PNG says it.
        lost: what is left out or not heeded, one line each.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    text: tuple[tuple[str, str], ...] = ()
    dpi: tuple[float, float] | None = None
    png_colors: PngColors = ()
    lost: tuple[str, ...] = ()


class PpmHeader(NamedTuple):
    """Height, width, channels (1 or 3) and largest value of a binary PGM or PPM, and where its pixels begin."""

    height: int
    width: int
    channels: int
    white: int
    start: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a PNG, JPEG, TIFF or binary PPM says before its pixels are decoded.

    Attributes:
        metadata: what is kept.
        orientation: EXIF's, 1 to 8, of the stored pixels.
        has_gray_palette: a PNG whose palette has equal channels.
        is_deep_color: 16 bits of which Pillow would keep 8.
        is_tiled: a TIFF of tiles.
        unknown_channels: of a TIFF, after the colors, which it does not call alpha.
        needs_pillow: a TIFF that libvips does not read, or reads with wrong colors.
        ppm: of a binary PPM.
    """

    metadata: Metadata
    orientation: int = 1
    has_gray_palette: bool = False
    is_deep_color: bool = False
    is_tiled: bool = False
    unknown_channels: int = 0
    needs_pillow: bool = False
    ppm: PpmHeader | None = None


def read_header(source: Path | bytes, start: bytes, kind: str, where: object) -> Header | None:
    """Reads what a file says, without its pixels; None for a format that is neither PNG, JPEG, TIFF nor binary PPM.

    Args:
        start: the first `PPM_HEADER_BYTES` bytes of the source.
        kind: its format, as Pillow names it.

    Raises HspanError: the file is damaged, or a big-endian BigTIFF.
    """
    if kind == "PPM":
        return _ppm_header(start)
    read = {"PNG": _png_header, "JPEG": _jpeg_header, "TIFF": _tiff_header}.get(kind)
    if read is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd tags
        try:
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
                return read(stream, where)
        except (OSError, *DAMAGE) as error:
            raise damaged(where, error) from error


def fits_profile(profile: bytes, *, gray: bool) -> bool:
    """Whether an ICC profile is whole and one for such pixels: a CMYK profile on RGB would turn every color."""
    return _is_profile_of(b"GRAY" if gray else b"RGB ", profile)


def _is_profile_of(space: bytes, profile: bytes) -> bool:
    is_whole = profile[36:40] == b"acsp" and int.from_bytes(profile[:4], "big") <= len(profile)
    return is_whole and profile[16:20] == space


def inks(metadata: Metadata) -> tuple[Any, Metadata]:
    """What turns CMYK into sRGB by its profile, None without one that can be used; and what is said of the sRGB."""
    from PIL import ImageCms

    transform, profile = None, metadata.icc_profile
    if profile is not None and _is_profile_of(b"CMYK", profile):
        with contextlib.suppress(ImageCms.PyCMSError, OSError, *DAMAGE):
            read = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            transform = ImageCms.buildTransform(read, ImageCms.createProfile("sRGB"), "CMYK", "RGB")
    lost = () if profile is None or transform is not None else (UNUSED_PROFILE,)
    return transform, replace(metadata, icc_profile=None, lost=(*metadata.lost, *lost))


def metadata_of_image(image: Image.Image) -> Metadata:
    """What Pillow has read of a picture that is not turned yet, and no TIFF."""
    dpi = image.info.get("dpi")
    orientation_of_image(image)  # so that a block that is not EXIF fails here
    return Metadata(
        icc_profile=image.info["icc_profile"] or b"" if "icc_profile" in image.info else None,
        exif=upright_exif(image.getexif(), of_tiff=False),
        xmp=_upright_packet(image.info.get("xmp") or image.info.get(XMP_KEY)),
        text=tuple((k, str(v)) for k, v in getattr(image, "text", {}).items() if k != XMP_KEY),
        dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
    )


def colors_of_heif(start: bytes) -> PngColors:
    """The numbers of ITU-T H.273 in an AVIF or HEIC that begins so, as PNG says them; none where they are sRGB's."""
    match = _NCLX.search(start)
    if match is None or match[1] + match[2] in _SRGB_OR_NOTHING:
        return ()
    return ((b"cICP", match[1] + match[2] + b"\0\1"),)


def _ppm_header(start: bytes) -> Header | None:
    """https://netpbm.sourceforge.net/doc/ppm.html."""
    match = _PPM_HEADER.match(start)
    if match is None:
        return None
    width, height, white = int(match[2]), int(match[3]), int(match[4])
    if 0 in (width, height) or not 1 <= white <= 65535:
        return None
    ppm = PpmHeader(height, width, 1 if match[1] == b"5" else 3, white, match.end())
    return Header(metadata=Metadata(), is_deep_color=white > 255, ppm=ppm)


def _jpeg_header(stream: BinaryIO, _where: object) -> Header:
    from PIL.JpegImagePlugin import JpegImageFile

    # Not Image.open: that follows an index of further pictures, and has a limit of size.
    image: Any = JpegImageFile(stream)
    pictures = []
    with contextlib.suppress(*DAMAGE):  # an index that cannot be read names none
        pictures = (image._getmp() or {}).get(_MP_ENTRIES, [])
    kinds = [str(entry["Attribute"]["MPType"]) for entry in pictures]
    has_more = sum("Thumbnail" not in kind for kind in kinds) > 1
    metadata = replace(metadata_of_image(image), lost=(FIRST_ONLY,) if has_more else ())
    return Header(metadata=metadata, orientation=orientation_of_image(image))


def _png_header(stream: BinaryIO, _where: object) -> Header:
    from PIL.PngImagePlugin import PngImageFile

    start = stream.read(26)
    small, has_gray_palette, colors = _small_png(stream)
    before_pixels = takewhile(lambda chunk: chunk[0] != b"IDAT", png_chunks(stream))
    lost = (FIRST_ONLY,) if any(kind == b"acTL" for kind, _ in before_pixels) else ()
    with PngImageFile(io.BytesIO(small)) as image:
        image.load()
        return Header(
            metadata=replace(metadata_of_image(image), png_colors=colors, lost=lost),
            orientation=orientation_of_image(image),
            has_gray_palette=has_gray_palette,
            is_deep_color=start[24:25] == b"\x10" and start[25:26] != b"\0",
        )


def _tiff_header(stream: BinaryIO, where: object) -> Header:
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    header = stream.read(16)
    if header[:4] == b"MM\0+":
        raise HspanError(
            where, "a big-endian BigTIFF, which Pillow cannot read", "save it again, little-endian"
        )
    tags: Any = Image.Exif()
    tags.bigtiff = header[2:4] in (b"+\0", b"\0+")
    tags.endian = "<" if header[:2] == b"II" else ">"
    head = header if tags.bigtiff else header[:8]
    first = ImageFileDirectory_v2(head).next
    tags.load_from_fp(stream, first)
    directory = _tiff_directory(stream, head, first)
    bits, extra = directory.get(_BITS_TAG, (1,)), directory.get(_EXTRA_TAG, ())
    colors, compression = directory.get(_COLORS_TAG), directory.get(_COMPRESSION_TAG)
    described, lost = profile_of_tiff(dict(directory), bits=max(bits), colors=colors)
    profile = tags.get(PROFILE_TAG) or described
    return Header(
        metadata=Metadata(
            icc_profile=profile if isinstance(profile, bytes | None) else b"",  # of a type not its own
            lost=(*lost, FIRST_ONLY) if _has_more_pages(stream, head, directory) else lost,
            exif=upright_exif(tags, of_tiff=True),
            xmp=_upright_packet(tags.get(XMP_TAG)),
            dpi=_tiff_dpi(tags),
        ),
        orientation=_orientation(tags),
        is_deep_color=max(bits) == 16 and len(bits) > 1,
        is_tiled=_TILE_TAG in directory,
        unknown_channels=0 if any(extra) else len(extra),
        needs_pillow=bits == (12,)
        or colors == _LAB
        or (colors == _YCBCR and compression != _JPEG)
        or compression in _PILLOW_COMPRESSIONS
        or (_TILE_TAG in directory and directory.get(_PLANES_TAG) == _SEPARATE_PLANES),
    )


def _tiff_directory(stream: BinaryIO, head: bytes, at: int) -> Any:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    directory = ImageFileDirectory_v2(head)
    stream.seek(at)
    directory.load(stream)
    return directory


def _has_more_pages(stream: BinaryIO, head: bytes, directory: Any) -> bool:
    """Whether a page beside this one is more than a smaller copy, as of a pyramid, or a mask.

    This one is such a copy itself in raw photographs.
    """
    if directory.get(_PAGE_TAG) in _COPIES_AND_MASKS:
        return True
    seen: set[int] = set()
    while directory.next and directory.next not in seen:
        seen.add(directory.next)
        try:
            directory = _tiff_directory(stream, head, directory.next)
        except (OSError, *DAMAGE):
            return True
        if directory.get(_PAGE_TAG) not in _COPIES_AND_MASKS:
            return True
    return False


def orientation_of_image(image: Image.Image) -> int:
    """EXIF's orientation of the stored pixels, 1 to 8, as Pillow has read it; 1 where there is none."""
    with contextlib.suppress(*DAMAGE):
        image.getexif()  # a block that is not EXIF fails once; afterwards there is none
    return _orientation(image.getexif())


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _tiff_dpi(tags: Image.Exif) -> tuple[float, float] | None:
    horizontal, vertical = tags.get(X_RESOLUTION_TAG), tags.get(Y_RESOLUTION_TAG)
    per_inch = {_INCH: 1.0, _CENTIMETER: 2.54}.get(tags.get(RESOLUTION_UNIT_TAG, _INCH))
    if not horizontal or not vertical or per_inch is None:
        return None
    return float(horizontal) * per_inch, float(vertical) * per_inch


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kinds and lengths of a file's chunks; at each the stream stands where its data begins, and may be read."""
    at = len(PNG_SIGNATURE)
    while True:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        at += 12 + length


def _small_png(stream: BinaryIO) -> tuple[bytes, bool, PngColors]:
    """One gray pixel and all that says something which is kept; whether the palette is one of grays; and the colors."""
    header = b"\0\0\0\1\0\0\0\1\x08\0\0\0\0"  # one pixel, 8-bit gray
    small = [PNG_SIGNATURE, png_chunk(b"IHDR", header)]
    is_palette = has_gray_palette = False
    said: dict[bytes, bytes] = {}
    is_before_pixels = True
    for kind, length in png_chunks(stream):
        if kind in _PNG_KINDS:
            small.append(png_chunk(kind, stream.read(length)))
        elif PNG_COLOR_LENGTHS.get(kind) == length and is_before_pixels:
            said.setdefault(kind, stream.read(length))
        elif kind == b"IDAT":
            is_before_pixels = False
        elif kind == b"IHDR":
            is_palette = stream.read(length)[9:10] == bytes([_PNG_PALETTE])
        elif kind == b"PLTE" and is_palette:
            colors = stream.read(length)
            has_gray_palette = colors[::3] == colors[1::3] == colors[2::3]
    small += [png_chunk(b"IDAT", zlib.compress(b"\0\0")), png_chunk(b"IEND", b"")]
    if said.get(b"gAMA") == bytes(4):
        del said[b"gAMA"]
    return b"".join(small), has_gray_palette, tuple(said.items())


def jpeg_segments(file: bytes) -> Iterator[tuple[int, slice]]:
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


def metadata_of_blocks(icc_profile: bytes | None, exif: bytes | None, xmp: bytes | None) -> Metadata:
    """What libvips has read of a picture that its loader has turned upright."""
    from PIL import Image

    block = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd tags
        block.load(exif or b"")
        kept = upright_exif(block, of_tiff=False)
    return Metadata(icc_profile=icc_profile or None, exif=kept, xmp=_upright_packet(xmp))


def _upright_packet(packet: str | bytes | None) -> bytes | None:
    """An XMP packet that states no orientation but the upright one."""
    if not packet:
        return None
    return _XMP_ORIENTATION.sub(b"", packet.encode() if isinstance(packet, str) else bytes(packet))


def upright_exif(exif: Image.Exif, *, of_tiff: bool) -> bytes | None:
    r"""The block, `Exif\0\0` first, without orientation, pixel size and a TIFF's own storage; None when empty."""
    from PIL import Image

    kept = Image.Exif()
    for tag, value in exif.items():
        if tag in _DESCRIPTIVE_TAGS or (not of_tiff and tag != _ORIENTATION):
            text = _writable(value)
            if _can_be_written(tag, text):
                kept[tag] = text
    for pointer in (_EXIF_FILE, _GPS_FILE):
        inner = {
            tag: value for tag, value in _directory(exif, pointer).items() if tag not in _PIXEL_SIZE_TAGS
        }
        kept.pop(pointer, None)
        if inner:
            kept.get_ifd(pointer).update(inner)
            kept[pointer] = 0  # its place is found when the block is written
    return kept.tobytes() if len(kept) else None


def _directory(exif: Image.Exif, pointer: int) -> dict[int, Any]:
    """EXIF or GPS, as Pillow can write it; a directory within it by its contents and not by its place."""
    entries = {tag: _writable(value) for tag, value in exif.get_ifd(pointer).items()}
    if pointer == _EXIF_FILE:
        for tag, value in entries.items():
            if isinstance(value, bytes):  # of undefined type in EXIF; Pillow writes `bytes` as numbers
                entries[tag] = (bytearray(value),)
        if entries.pop(_INTEROPERABILITY_FILE, None) is not None:
            inner = exif.get_ifd(_INTEROPERABILITY_FILE)
            if inner:
                entries[_INTEROPERABILITY_FILE] = inner
    return {tag: value for tag, value in entries.items() if _can_be_written(tag, value, pointer)}


class _Text(str):
    """Writes the bytes that were read: Pillow reads any text as Latin-1, and would write ASCII."""

    __slots__ = ()

    def encode(self, encoding: str = "latin-1", errors: str = "replace") -> bytes:
        return super().encode("latin-1", "replace")


def _writable(value: Any) -> Any:
    return _Text(value) if isinstance(value, str) else value


def _can_be_written(tag: int, value: Any, directory: int | None = None) -> bool:
    """Whether Pillow can: some programs write a tag with a wrong type."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    alone = ImageFileDirectory_v2(group=directory)
    try:
        alone[tag] = value
        alone.tobytes()
    except (AttributeError, *DAMAGE):
        return False
    return True


def descriptive_tags(block: bytes | None) -> dict[int, Any]:
    """What a block says of the picture, by TIFF tags; EXIF and GPS are dictionaries of their own."""
    from PIL import Image

    exif = Image.Exif()
    if block:
        exif.load(block)
    return {
        tag: _directory(exif, tag) if tag in (_EXIF_FILE, _GPS_FILE) else _writable(value)
        for tag, value in exif.items()
        if tag in _DESCRIPTIVE_TAGS
    }
