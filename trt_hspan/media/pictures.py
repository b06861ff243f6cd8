"""Picture files read as they are meant to be seen: the one way in, whatever is done with the pixels afterwards.

A picture keeps gray gray, alpha alpha and 16 bits 16 bits. PNG, JPEG, TIFF and binary PPM are read by libvips where
pyvips is installed (`vips`), the others by Pillow, which has 8 bits of colors and 16 of gray.
"""

from __future__ import annotations

import io
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error, require_regular_file
from trt_hspan.media.formats import (
    DAMAGE,
    READ_FORMATS,
    VIPS_LOADERS,
    damaged,
    format_and_suffix,
    not_a_picture,
    require_accepted,
)
from trt_hspan.media.metadata import (
    FIRST_ONLY,
    PPM_HEADER_BYTES,
    Header,
    Metadata,
    colors_of_heif,
    inks,
    metadata_of_image,
    orientation_of_image,
    read_header,
)
from trt_hspan.media.pixels import PixelFormat, RowsSource, Uint8Array, rgb_on_white
from trt_hspan.media.vips import VipsPicture, has_vips, vips
from trt_hspan.sizes import ImageSize

if TYPE_CHECKING:
    from PIL import Image

_BITS_TAG: Final = 258  # of TIFF


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as it is meant to be seen.

    Attributes:
        pixels: (H, W, C) uint8 or uint16; C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).
        metadata: what the file said beside them.
        format: of the file that it came from, as Pillow names it: "PNG", "JPEG" ...
    """

    pixels: npt.NDArray[Any]
    metadata: Metadata = field(default_factory=Metadata)
    format: str = "PNG"


def open_picture(source: str | os.PathLike[str] | bytes, *, where: object = None) -> OpenedPicture:
    """Reads a picture's header and decides what its colors become; nothing else in the package does.

    Turned upright by its EXIF orientation. Palettes become RGB, or gray, with alpha where they have it; black and white
    becomes gray; CMYK becomes sRGB through its profile, without one by plain complement. Of an animation or
    several pages the first is taken.

    Args:
        source: a name, or the bytes of a file, recognized by content: PNG, JPEG, WebP, BMP, TIFF, GIF, PPM, PBM, or,
            where libvips has a loader that can, AVIF, HEIC or JPEG XL.
        where: what an error is about; the name, or "picture".

    Raises:
        HspanError: missing, empty, not a picture, damaged, in a mode without a fixed range (float, 32-bit integer),
            16-bit color where pyvips is not installed; more than `formats.MAX_PIXELS` pixels that cannot be streamed.

    Example:
        >>> from trt_hspan.data import DEMO_PHOTOGRAPH
        >>> str(open_picture(DEMO_PHOTOGRAPH).size)
        '300x444'
    """
    if isinstance(source, bytes):
        where = "picture" if where is None else where
        start = source[:PPM_HEADER_BYTES]
    else:
        source = Path(source)
        where = source if where is None else where
        start = _bytes_of_file(source, PPM_HEADER_BYTES)
    if not start:
        raise HspanError(where, "is empty (0 bytes), expected a picture", "copy or download it again")
    known = format_and_suffix(start)
    if known is None:
        raise not_a_picture(where)
    kind, _ = known
    if kind in VIPS_LOADERS:
        return VipsPicture(source, kind, Header(metadata=Metadata(png_colors=colors_of_heif(start))), where)
    header = read_header(source, start, kind, where)
    if header is not None and has_vips() and not header.needs_pillow:
        return VipsPicture(source, kind, header, where)
    if header is not None and header.is_deep_color:
        vips(where)  # which cannot be loaded
    return _PillowPicture(source if isinstance(source, bytes) else _bytes_of_file(source), header, where)


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Reads a picture file. Raises: HspanError as `open_picture`, or of more than `formats.MAX_PIXELS` pixels.

    Example:
        >>> from trt_hspan.data import DEMO_PHOTOGRAPH
        >>> read_picture(DEMO_PHOTOGRAPH).pixels.shape
        (300, 444, 3)
    """
    return whole_picture(open_picture(path))


def decode_image(data: bytes, *, where: object = "picture") -> Picture:
    """A picture from the bytes of a file. Raises: HspanError as `read_picture`."""
    return whole_picture(open_picture(data, where=where))


def read_image(path: str | os.PathLike[str]) -> Uint8Array:
    """A picture file in the 8-bit RGB that measurements are made on: `rgb_on_white` of `read_picture`, (H, W, 3)."""
    return rgb_on_white(open_picture(path).pixels())


def size_from_image_file(path: str | os.PathLike[str]) -> ImageSize:
    """Size in pixels of what `read_image` would give; a truncated file may pass."""
    opened = open_picture(path)
    require_accepted(opened.size, path)
    return opened.size


def whole_picture(opened: OpenedPicture) -> Picture:
    """An opened picture in memory. Raises: HspanError as `OpenedPicture.pixels`."""
    return Picture(pixels=opened.pixels(), metadata=opened.metadata, format=opened.format)


def _bytes_of_file(path: Path, count: int = -1) -> bytes:
    """The first bytes of a file, or all."""
    if path.is_dir():
        raise HspanError(path, "is a folder, expected a picture", "name a picture in it")
    require_regular_file(path)
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error


class _PillowPicture:
    """A picture that Pillow decodes, whole, when its pixels are needed. Arguments and errors as `open_picture`."""

    streams: Final = False

    def __init__(self, data: bytes, header: Header | None, where: object) -> None:
        self._data, self._header, self.where = data, header, where
        with _open_with_pillow(data, where) as image:
            self.format = image.format or "PNG"
            is_turned = orientation_of_image(image) >= 5  # by a quarter
            stored = ImageSize(height=image.height, width=image.width)
            self.size = stored.turned if is_turned else stored

    @property
    def pixel_format(self) -> PixelFormat:
        return PixelFormat.of(self.pixels(), where=self.where)

    @property
    def metadata(self) -> Metadata:
        return self._decoded[1]

    def pixels(self) -> npt.NDArray[Any]:
        return self._decoded[0]

    def rows(self) -> RowsSource:
        pixels = self.pixels()
        return lambda top, bottom: pixels[top:bottom]

    @cached_property
    def _decoded(self) -> tuple[npt.NDArray[Any], Metadata]:
        from PIL import ImageOps

        with _open_with_pillow(self._data, self.where) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd tags; what matters is raised
            try:
                image.load()
                bits = getattr(image, "tag_v2", {}).get(_BITS_TAG)
                self._scale_color_key(image)
                metadata = metadata_of_image(image) if self._header is None else self._header.metadata
                upright = ImageOps.exif_transpose(image)
                if upright.mode == "CMYK":
                    transform, metadata = inks(metadata)
                    upright = upright.convert("RGB") if transform is None else transform.apply(upright)
                pixels = np.array(_plain_mode(upright, self.where))
            except (OSError, *DAMAGE) as error:
                raise damaged(self.where, error) from error
            with suppress(OSError, *DAMAGE):
                if self._header is None and getattr(image, "is_animated", False):
                    metadata = replace(metadata, lost=(FIRST_ONLY,))
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        if pixels.dtype not in (np.uint8, np.uint16):
            pixels = pixels.astype(np.uint16)
        if self.format == "TIFF" and bits == (12,):  # of gray, whose white is 4095 to Pillow
            pixels = (pixels << 4 | pixels >> 8).astype(np.uint16)
        return pixels[..., None] if pixels.ndim == 2 else pixels, metadata

    def _scale_color_key(self, image: Image.Image) -> None:
        """Brings the transparent gray of a PNG of 2 or 4 bits to 8: Pillow does so with the pixels only."""
        if image.format == "PNG" and image.mode == "L" and isinstance(image.info.get("transparency"), int):
            image.info["transparency"] *= {2: 85, 4: 17}.get(self._data[24], 1)


#: A picture whose header has been read; size and pixel format are upright, `where` is what errors are about. `rows`,
#: from the first on as often as they are called, are read one by one where it `streams`; else the whole picture is
#: decoded, as by `pixels`, (H, W, C). Both raise HspanError when it is damaged or too large for memory.
OpenedPicture: TypeAlias = VipsPicture | _PillowPicture


def _open_with_pillow(data: bytes, where: object) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow's remarks on odd tags and its milder limit of size; the check below replaces that.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=READ_FORMATS)
    except UnidentifiedImageError as error:
        raise not_a_picture(where) from error
    except Image.DecompressionBombError as error:
        raise HspanError(where, f"too large: {error}", "cut it into smaller pictures") from error
    except (OSError, *DAMAGE) as error:
        raise damaged(where, error) from error
    require_accepted(ImageSize(height=image.height, width=image.width), where)
    return image


def _plain_mode(image: Image.Image, where: object) -> Image.Image:
    """The picture in mode L, LA, RGB, RGBA, 1 or I;16, in the colors that its profile describes."""
    mode, transparent = image.mode, "transparency" in image.info
    if mode in ("1", "L", "RGB"):
        alpha = {"1": "LA", "L": "LA", "RGB": "RGBA"}[mode]
        return image.convert(alpha) if transparent else image
    if mode in ("LA", "RGBA") or mode.startswith("I;16"):
        return image
    if mode in ("P", "PA"):
        colors = image.getpalette() or []
        gray = colors[::3] == colors[1::3] == colors[2::3]
        opaque = not transparent and mode == "P"
        return image.convert(("L" if gray else "RGB") if opaque else ("LA" if gray else "RGBA"))
    if mode in ("La", "RGBa"):
        return image.convert(mode.upper())
    if mode in ("YCbCr", "HSV", "RGBX"):
        return image.convert("RGB")
    raise HspanError(where, f"its color mode {mode} has no plain way to RGB", "convert it to an RGB picture")
