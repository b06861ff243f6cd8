"""Pictures of 16 bits, read by libvips (pyvips). Owns their way from bytes to pixels, and nothing of 8 bits.

Only the PNG and TIFF decoders are used, by name: libvips knows many more formats, some by way of other programs.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import re
from collections.abc import Callable
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.media.images import damaged, require_accepted
from trt_hspan.media.metadata import Metadata, metadata_of_png, metadata_of_tiff, orientation_of_png
from trt_hspan.media.png_chunks import SIGNATURE

TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What libvips is to take for an error. In a JPEG a stray byte is a warning, in a TIFF an odd tag is one.
_FAIL_ON: Final = {"PNG": "truncated", "JPEG": "truncated", "TIFF": "error"}
# A TIFF of tiles: one that is missing or cannot be unpacked is black below this; odd tags don't count.
_FAIL_ON_TILES: Final = "warning"
_INSTALL: Final = "install it with pip install 'trt-hspan[media]'"


def is_deep(data: bytes) -> bool:
    """Whether the bytes are a PNG of 16 bits, or a TIFF of 16 bits with color or alpha, by their header."""
    if data.startswith(SIGNATURE):
        return len(data) > 25 and data[24] == 16
    return data.startswith(TIFF_STARTS) and _tiff_is_deep(data)


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
        HspanError: pyvips is not installed, or the picture is damaged, truncated, too large or of a color
            space that is not gray or RGB and cannot be turned into it.
    """
    library = vips(where)
    name = "PNG" if data.startswith(SIGNATURE) else "TIFF"
    try:
        load = library.Image.pngload_buffer if name == "PNG" else library.Image.tiffload_buffer
        image = load_strictly(load, data, name)
        require_accepted(image.height, image.width, where)
        read = metadata_of_png if name == "PNG" else metadata_of_tiff
        metadata = read(io.BytesIO(data), where)
        if name == "PNG":
            image = with_orientation_of_png(image, io.BytesIO(data), where)
        image = image.autorot()
        if image.interpretation == "cmyk":
            image = rgb_from_cmyk(image)
            metadata = dataclasses.replace(metadata, icc_profile=None)
        elif image.interpretation not in ("grey16", "rgb16", "b-w", "srgb", "rgb", "multiband"):
            image = image.colourspace("rgb16")
        if image.bands > 4 or image.format != "ushort":
            raise HspanError(where, f"{image.bands} channels of {image.format} are no picture", "give RGB")
        # Not image.numpy(): of a single gray pixel that makes a number.
        pixels = np.frombuffer(image.write_to_memory(), np.uint16)
    except library.Error as error:
        raise unreadable(where, error) from error
    return pixels.reshape(image.height, image.width, image.bands), metadata, name


def load_strictly(load: Callable[..., Any], source: bytes, name: str, **options: Any) -> Any:
    """What libvips loads of a file whose pixels must all be there.

    Args:
        load: one of libvips's loaders.
        source: what it takes.
        name: of the format.
        options: further ones of the loader.

    Raises:
        pyvips.Error: the file is damaged, or its pixels are, when they are read.
    """
    image = load(source, fail_on=_FAIL_ON[name], **options)
    is_of_tiles = name == "TIFF" and image.get_typeof("tile-width")
    return load(source, fail_on=_FAIL_ON_TILES, **options) if is_of_tiles else image


def with_orientation_of_png(image: Any, stream: BinaryIO, where: object) -> Any:
    """What libvips opened of a PNG, with the orientation that it overlooks: after the pixels, or in a text.

    Raises:
        HspanError: the file is damaged.
    """
    found = orientation_of_png(stream, where)
    if found == 1:
        return image
    image = image.copy()
    image.set_type(vips(where).GValue.gint_type, "orientation", found)
    return image


def unreadable(where: object, error: Any) -> HspanError:
    """The one line that a complaint of libvips deserves: a file may be damaged, or of a kind that it does not read.

    Args:
        where: the file.
        error: pyvips.Error, whose message says what was called and whose detail says what was wrong.
    """
    reason = next((line for line in reversed(error.detail.splitlines()) if line.strip()), error.message)
    if not re.search(r"not (supported|configured|implemented)", reason):
        return damaged(where, ValueError(reason))
    reason = reason.partition(": ")[2] or reason  # after the name of a loader
    return HspanError(where, f"libvips cannot read it ({reason})", "save it again as PNG or a plain TIFF")


def rgb_from_cmyk(image: Any) -> Any:
    """Inks of 8 or 16 bits as sRGB, as Pillow makes it.

    Through the embedded profile, perceptually; without one, or with one that is none, what each ink leaves of what
    black leaves.

    Raises:
        pyvips.Error: the file is damaged.
    """
    deep = image.format == "ushort"
    if image.get_typeof("icc-profile-data"):
        try:
            return image.icc_transform("srgb", embedded=True, depth=16 if deep else 8, intent="perceptual")
        except vips().Error:
            pass  # the profile says nothing of the colors
    white = 65535 if deep else 255
    left = image * -1 + white
    left = left[:3] * left[3] / white
    return left.rint().cast(image.format).copy(interpretation="rgb16" if deep else "srgb")


def vips(where: object = "16-bit color") -> Any:
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
