"""EXIF and XMP: what of them still holds for an up-scaled, upright picture, and their way into 16-bit TIFF files."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION: Final = 0x0112
_EXIF_FILE, _GPS_FILE = 0x8769, 0x8825
# TIFF tags that say something of the picture; the others describe how one file stores its pixels.
_DESCRIPTIVE_TAGS: Final = frozenset(
    [270, 271, 272, 305, 306, 315, 316, 0x8298, _EXIF_FILE, _GPS_FILE]  # description ... artist, copyright
)
_PIXEL_SIZE_TAGS: Final = (0xA002, 0xA003)  # width and height of the picture, which change
_RESOLUTION_TAGS: Final = (282, 283, 296)  # horizontal, vertical, unit
# An attribute or an element; the prefix is the one that the XMP specification asks for.
_XMP_ORIENTATION: Final = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|\s*>\s*))[2-8]""")
_CLASSIC_TIFFS: Final = {b"II*\0": "<", b"MM\0*": ">"}


def upright_exif(found: Image.Exif, *, of_tiff: bool) -> bytes | None:
    """A block without orientation, pixel size, and what describes a TIFF file's own storage.

    Returns:
        The block, `Exif\\0\\0` first; None when nothing is left.
    """
    from PIL import Image

    kept = Image.Exif()
    for tag, value in found.items():
        if tag in _DESCRIPTIVE_TAGS or (not of_tiff and tag != _ORIENTATION):
            kept[tag] = value
    for pointer in (_EXIF_FILE, _GPS_FILE):
        inner = {tag: value for tag, value in found.get_ifd(pointer).items() if tag not in _PIXEL_SIZE_TAGS}
        kept.pop(pointer, None)
        if inner:
            kept.get_ifd(pointer).update(inner)
            kept[pointer] = 0  # its place is found when the block is written
    return kept.tobytes() if len(kept) else None


def upright_exif_of_block(block: bytes | None, *, of_tiff: bool = False) -> bytes | None:
    """`upright_exif` of a block's bytes, or of a whole TIFF file's; None for one that is damaged."""
    from PIL import Image

    if not block:
        return None
    exif = Image.Exif()
    try:
        exif.load(block if block.startswith(b"Exif\0\0") else b"Exif\0\0" + block)
        return upright_exif(exif, of_tiff=of_tiff)
    except Exception:  # noqa: BLE001  # whatever a damaged block makes the parser raise, there is nothing to keep
        return None


def upright_xmp(packet: bytes | None) -> bytes | None:
    """An XMP packet whose orientation, where it states one, is that of upright pixels."""
    return packet and _XMP_ORIENTATION.sub(rb"\g<1>1", packet)


def descriptive_tags(block: bytes | None) -> dict[int, Any]:
    """What a block says of the picture, by TIFF tags; EXIF and GPS are dictionaries of their own."""
    from PIL import Image

    exif = Image.Exif()
    if block:
        exif.load(block)
    return {
        tag: exif.get_ifd(tag) if tag in (_EXIF_FILE, _GPS_FILE) else value
        for tag, value in exif.items()
        if tag in _DESCRIPTIVE_TAGS
    }


def tiff_with_exif(data: bytes, block: bytes | None, *, keep_resolution: bool = True) -> bytes:
    """A TIFF file with a block's descriptive tags in its first directory, which is written anew at the end.

    libvips writes no EXIF into TIFF, and a resolution where there is none. A BigTIFF stays as it is.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    order = _CLASSIC_TIFFS.get(data[:4])
    if order is None or (not block and keep_resolution):
        return data
    added = ImageFileDirectory_v2(data[:8])
    for tag, value in descriptive_tags(block).items():
        added[tag] = value
    if not len(added) and keep_resolution:
        return data
    first = struct.unpack(f"{order}L", data[4:8])[0]
    data += b"\0" * (len(data) % 2)
    values = added.tobytes(len(data)) if len(added) else b"\0\0"  # of this directory the values stay in use
    values += b"\0" * (len(values) % 2)
    entries = {**_entries(values, 0, order), **_entries(data, first, order)}
    if not keep_resolution:
        entries = {tag: entry for tag, entry in entries.items() if tag not in _RESOLUTION_TAGS}
    directory = b"".join(entries[tag] for tag in sorted(entries))
    return (
        data[:4]
        + struct.pack(f"{order}L", len(data) + len(values))
        + data[8:]
        + values
        + struct.pack(f"{order}H", len(entries))
        + directory
        + b"\0" * 4
    )


def _entries(data: bytes, at: int, order: str) -> dict[int, bytes]:
    """Tag -> the 12 bytes of its entry, of a classic TIFF directory."""
    (count,) = struct.unpack_from(f"{order}H", data, at)
    raw = [data[at + 2 + 12 * index : at + 14 + 12 * index] for index in range(count)]
    return {struct.unpack(f"{order}H", entry[:2])[0]: entry for entry in raw}
