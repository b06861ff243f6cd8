"""16-bit colour pictures, by libvips (pyvips). Owns their way between bytes and pixels, and nothing of 8 bits.

Only the PNG and TIFF decoders are used, by name: libvips knows many more formats, some by way of other programs.
"""

from __future__ import annotations

import dataclasses
import logging
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.media.exif import tiff_with_exif, upright_exif_of_block, upright_xmp
from trt_hspan.media.images import damaged, require_accepted

if TYPE_CHECKING:
    from trt_hspan.media.pictures import Metadata

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_TIFFS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COLOUR_SPACES: Final = {1: "grey16", 2: "grey16", 3: "rgb16", 4: "rgb16"}
_INSTALL: Final = "install it with pip install 'trt-hspan[media]'"


def is_deep(data: bytes) -> bool:
    """Whether the bytes are a PNG of 16 bits, or a TIFF of 16 bits with colour or alpha, by their header."""
    if data.startswith(PNG_SIGNATURE):
        return len(data) > 25 and data[24] == 16
    return data.startswith(_TIFFS) and _tiff_is_deep(data)


def _tiff_is_deep(data: bytes) -> bool:
    try:
        image = vips().Image.tiffload_buffer(data)
        return bool(image.format == "ushort")
    except HspanError:  # no pyvips: Pillow tells what it can read
        return False
    except vips().Error:
        return False


def decode_deep(data: bytes, where: object) -> tuple[npt.NDArray[np.uint16], Metadata, str]:
    """A picture of 16 bits: (H, W, C) uint16 upright, what else the file says, and its format's name.

    Raises:
        HspanError: pyvips is not installed, or the picture is damaged, truncated, too large or of a colour
            space that is not grey or RGB and cannot be turned into it.
    """
    library = vips(where)
    name = "PNG" if data.startswith(PNG_SIGNATURE) else "TIFF"
    try:
        load = library.Image.pngload_buffer if name == "PNG" else library.Image.tiffload_buffer
        image = load(data, fail_on="truncated")
        require_accepted(image.height, image.width, where)
        metadata = metadata_from_vips(image)
        if name == "PNG":
            metadata = dataclasses.replace(metadata, dpi=_png_dpi(data))
        else:  # libvips reads no EXIF there
            metadata = dataclasses.replace(metadata, exif=upright_exif_of_block(data, of_tiff=True))
        image = image.autorot()
        if image.interpretation == "cmyk":
            image = rgb_from_cmyk(image)
            metadata = dataclasses.replace(metadata, icc_profile=None)
        elif image.interpretation not in ("grey16", "rgb16", "b-w", "srgb", "rgb", "multiband"):
            image = image.colourspace("rgb16")
        if image.bands > 4 or image.format != "ushort":
            raise HspanError(where, f"{image.bands} channels of {image.format} are no picture", "give RGB")
        # Not image.numpy(): of a single grey pixel that makes a number.
        pixels = np.frombuffer(image.write_to_memory(), np.uint16)
    except library.Error as error:
        raise damaged(where, error) from error
    return pixels.reshape(image.height, image.width, image.bands), metadata, name


def encode_deep(pixels: npt.NDArray[np.uint16], metadata: Metadata, name: str, where: object) -> bytes:
    """The bytes of a 16-bit PNG or TIFF.

    Raises:
        HspanError: pyvips is not installed, or libvips cannot write such a picture.
    """
    library = vips(where)
    height, width, channels = pixels.shape
    try:
        image = library.Image.new_from_memory(
            np.ascontiguousarray(pixels).tobytes(), width, height, channels, "ushort"
        ).copy(interpretation=_COLOUR_SPACES[channels])
        image = with_metadata(image, metadata, grey=channels <= 2)
        if name == "PNG":
            data = bytes(image.pngsave_buffer(bitdepth=16))
            return _png_with_exif(data, metadata.exif, keep_resolution=metadata.dpi is not None)
        data = bytes(image.tiffsave_buffer(compression="deflate", predictor="horizontal"))
        return tiff_with_exif(data, metadata.exif, keep_resolution=metadata.dpi is not None)
    except library.Error as error:
        raise HspanError(where, f"libvips cannot write it: {error}", None) from error


def _png_with_exif(data: bytes, block: bytes | None, *, keep_resolution: bool) -> bytes:
    """A PNG file with this EXIF block: libvips adds a resolution to it, and one to the file where there was none."""
    left_out = {b"eXIf"} if keep_resolution else {b"eXIf", b"pHYs"}
    kept = [data[: len(PNG_SIGNATURE)]]
    for kind, chunk in png_chunks(data):
        if kind not in left_out:
            kept.append(chunk)
        if kind == b"IHDR" and block:
            kept.append(png_chunk(b"eXIf", block.removeprefix(b"Exif\0\0")))
    return b"".join(kept)


def _png_dpi(data: bytes) -> tuple[float, float] | None:
    """The resolution that a PNG states in pixels per metre. libvips does not tell whether it found one."""
    for kind, chunk in png_chunks(data):
        if kind == b"pHYs" and len(chunk) == 21:
            horizontal, vertical, unit = struct.unpack_from(">IIB", chunk, 8)
            return (horizontal * 0.0254, vertical * 0.0254) if unit == 1 else None
    return None


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kinds and chunks of a file, each chunk with its length and checksum."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at : at + 12 + length]
        at += 12 + length


def rgb_from_cmyk(image: Any) -> Any:
    """Inks of 8 or 16 bits as sRGB, as Pillow makes it.

    Through the embedded profile, perceptually; without one, or with one that is none, what each ink leaves of what
    black leaves.

    Raises:
        pyvips.Error: the file is damaged.
    """
    deep = image.format == "ushort"
    if "icc-profile-data" in image.get_fields():
        try:
            return image.icc_transform("srgb", embedded=True, depth=16 if deep else 8, intent="perceptual")
        except vips().Error:
            pass  # the profile says nothing of the colours
    white = 65535 if deep else 255
    left = image * -1 + white
    left = left[:3] * left[3] / white
    return left.rint().cast(image.format).copy(interpretation="rgb16" if deep else "srgb")


def metadata_from_vips(image: Any) -> Metadata:
    """What libvips read beside the pixels; the orientation is taken as applied."""
    from trt_hspan.media.pictures import Metadata

    fields = set(image.get_fields())

    def blob(name: str) -> bytes | None:
        return bytes(image.get(name)) if name in fields else None

    text = []
    for name in sorted(fields):
        parts = name.split("-", 3)
        if name.startswith("png-comment-") and len(parts) == 4 and parts[3] != "XML:com.adobe.xmp":
            text.append((parts[3], str(image.get(name))))
    return Metadata(
        icc_profile=blob("icc-profile-data"),
        exif=upright_exif_of_block(blob("exif-data")),
        xmp=upright_xmp(blob("xmp-data")) if "orientation" in fields else blob("xmp-data"),
        text=tuple(text),
        dpi=(image.xres * 25.4, image.yres * 25.4)
        if image.xres > 0
        and ("resolution-unit" in fields or image.xres != 1.0)  # 1.0 where the file says none
        else None,
    )


def with_metadata(image: Any, metadata: Metadata, *, grey: bool) -> Any:
    """A libvips image that takes profile, EXIF, XMP, text and resolution into its file."""
    from trt_hspan.media.pictures import fits_profile

    library = vips()
    image = image.copy()
    blobs = {"exif-data": metadata.exif, "xmp-data": metadata.xmp}
    if metadata.icc_profile and fits_profile(metadata.icc_profile, grey=grey):
        blobs["icc-profile-data"] = metadata.icc_profile
    for name, blob in blobs.items():
        if blob:
            image.set_type(library.GValue.blob_type, name, blob)
    for index, (key, value) in enumerate(metadata.text):
        image.set_type(library.GValue.gstr_type, f"png-comment-{index}-{key}", value)
    if metadata.dpi:
        image = image.copy(xres=metadata.dpi[0] / 25.4, yres=metadata.dpi[1] / 25.4)
        image.set_type(library.GValue.gstr_type, "resolution-unit", "in")
    return image


def vips(where: object = "16-bit colour") -> Any:
    """The pyvips module. Raises: HspanError when it is not installed or cannot load libvips.

    libvips logs a warning for each row of a damaged file; the error that is raised says it once. Only debugging shows
    the warnings.
    """
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise HspanError(where, f"needs pyvips, which cannot be loaded ({error})", _INSTALL) from error
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("pyvips").setLevel(logging.ERROR)
    return pyvips


def has_vips() -> bool:
    """Whether pyvips can be used here."""
    try:
        vips()
    except HspanError:
        return False
    return True
