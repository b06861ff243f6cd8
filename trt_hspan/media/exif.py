"""EXIF and XMP: what of them still holds for an upscaled, upright picture, and their way into TIFF files."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any, Final

from trt_hspan.media.images import DAMAGE

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION: Final = 0x0112
_EXIF_FILE, _GPS_FILE = 0x8769, 0x8825
_INTEROPERABILITY_FILE: Final = 0xA005  # within EXIF's
# TIFF tags that say something of the picture; the others describe how one file stores its pixels.
_DESCRIPTIVE_TAGS: Final = frozenset(
    (
        *(270, 271, 272, 305, 306, 315, 316, 0x8298),  # description ... artist, copyright
        *range(0x9C9B, 0x9CA0),  # title ... subject, of Windows
        *(_EXIF_FILE, _GPS_FILE),
    )
)
_PIXEL_SIZE_TAGS: Final = (0xA002, 0xA003)  # width and height of the picture, which change
# An attribute or an element; the prefix is the one that the XMP specification asks for.
_XMP_ORIENTATION: Final = re.compile(
    rb"""tiff:Orientation\s*=\s*(["'])[2-8]\1|<tiff:Orientation>\s*[2-8]\s*</tiff:Orientation>"""
)
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
            text = _writable(value)
            if _can_be_written(tag, text):
                kept[tag] = text
    for pointer in (_EXIF_FILE, _GPS_FILE):
        inner = {
            tag: value for tag, value in _directory(found, pointer).items() if tag not in _PIXEL_SIZE_TAGS
        }
        kept.pop(pointer, None)
        if inner:
            kept.get_ifd(pointer).update(inner)
            kept[pointer] = 0  # its place is found when the block is written
    return kept.tobytes() if len(kept) else None


def _directory(exif: Image.Exif, pointer: int) -> dict[int, Any]:
    """EXIF or GPS, as Pillow can write it; a directory within it by its contents and not by its place."""
    found = {tag: _writable(value) for tag, value in exif.get_ifd(pointer).items()}
    if pointer == _EXIF_FILE:
        for tag, value in found.items():
            if isinstance(value, bytes):  # of undefined type in EXIF; Pillow writes `bytes` as numbers
                found[tag] = (bytearray(value),)
        if found.pop(_INTEROPERABILITY_FILE, None) is not None:
            inner = exif.get_ifd(_INTEROPERABILITY_FILE)
            if inner:
                found[_INTEROPERABILITY_FILE] = inner
    return {tag: value for tag, value in found.items() if _can_be_written(tag, value, pointer)}


class _Text(str):
    """A text that is written as the bytes that it was: Pillow reads Latin-1, whatever it is, and would write ASCII."""

    __slots__ = ()

    def encode(self, encoding: str = "latin-1", errors: str = "replace") -> bytes:
        return super().encode("latin-1", "replace")


def _writable(value: Any) -> Any:
    return _Text(value) if isinstance(value, str) else value


def _can_be_written(tag: int, value: Any, directory: int | None = None) -> bool:
    """Whether Pillow can: there are programs that give a tag a type that is not its own."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    alone = ImageFileDirectory_v2(group=directory)
    try:
        alone[tag] = value
        alone.tobytes()
    except (AttributeError, *DAMAGE):
        return False
    return True


def upright_xmp(packet: bytes) -> bytes:
    """An XMP packet that states no orientation but the upright one."""
    return _XMP_ORIENTATION.sub(b"", packet)


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


def tiff_with_exif(data: bytes, block: bytes | None) -> bytes:
    """A TIFF file with a block's descriptive tags in its first directory, which is written anew at the end.

    libtiff, through which Pillow writes, refuses directories. A BigTIFF stays as it is.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    order = _CLASSIC_TIFFS.get(data[:4])
    if order is None or not block:
        return data
    added = ImageFileDirectory_v2(data[:8])
    for tag, value in descriptive_tags(block).items():
        added[tag] = value
    if not len(added):
        return data
    first = struct.unpack(f"{order}L", data[4:8])[0]
    data += b"\0" * (len(data) % 2)
    values = added.tobytes(len(data))  # of this directory the values stay in use
    values += b"\0" * (len(values) % 2)
    entries = {**_entries(values, 0, order), **_entries(data, first, order)}
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
