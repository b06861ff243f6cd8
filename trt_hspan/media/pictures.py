"""Pictures with everything a file says about them. Owns what is kept: channels, depth, profile, metadata.

Where `images` gives the 8-bit RGB that measurements are made on, a `Picture` keeps gray gray, alpha alpha and 16 bits
16 bits, and takes the color profile, EXIF, XMP, text and resolution along. Pillow reads and writes 8 bits; 16-bit
color, of which Pillow keeps the upper half, goes through libvips (`deep_pictures`).
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import error_from_os_error, write_bytes
from trt_hspan.media.exif import tiff_with_exif
from trt_hspan.media.images import (
    DAMAGE,
    WRITE_FORMATS,
    Uint8Array,
    damaged,
    opened,
    require_accepted,
    require_writable_suffix,
)
from trt_hspan.media.metadata import XMP_KEY, XMP_TAG, Metadata, fits_profile, metadata_of_image
from trt_hspan.media.pixels import PixelFormat
from trt_hspan.media.pnm import pixels_from_pnm, pnm_header

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


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Reads a picture file. As `decode_image`; a missing file or a folder is told too.

    Raises:
        HspanError: as `decode_image`; or the file cannot be read.
    """
    source = Path(path)
    if source.is_dir():
        raise HspanError(source, "is a folder, expected a picture", "name a picture in it")
    try:
        data = source.read_bytes()
    except OSError as error:
        raise error_from_os_error(source, error, action="read") from error
    return decode_image(data, where=source)


def decode_image(data: bytes, *, where: object = "picture") -> Picture:
    """A picture from the bytes of a file, recognized by content.

    Turned upright by its EXIF orientation. Palettes become RGB, or gray, with alpha where they have it; black and white
    becomes gray; CMYK becomes sRGB through its profile, without one by plain complement. Of an animation or
    several pages the first is taken.

    Args:
        data: PNG, JPEG, WebP, BMP, TIFF, GIF or PPM.
        where: what an error is about.

    Raises:
        HspanError: empty, not a picture, truncated, of more than `images.MAX_PIXELS` pixels, in a mode without
            a fixed range (float, 32-bit integer, LAB), or 16-bit color where pyvips is not installed.
    """
    from PIL import ImageOps

    if not data:
        raise HspanError(where, "is empty (0 bytes), expected a picture", "copy or download it again")
    from trt_hspan.media.deep_pictures import decode_deep, is_deep

    if is_deep(data):
        pixels, metadata, name = decode_deep(data, where)
        return Picture(pixels=pixels, metadata=metadata, format=name)
    header = pnm_header(data)
    if header is not None and header.dtype is np.uint16:  # Pillow keeps 8 bits of them
        require_accepted(header.height, header.width, where)
        return Picture(pixels=pixels_from_pnm(data, header, where), format="PPM")
    with opened(io.BytesIO(data), where) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd tags; what matters is raised
        try:
            image.load()
            name = image.format or "PNG"
            bits = getattr(image, "tag_v2", {}).get(_BITS_TAG)
            _scale_color_key(image, data)
            metadata = metadata_of_image(image)
            straight, keeps_profile = _plain_mode(ImageOps.exif_transpose(image), where)
            pixels = np.array(straight)
        except (OSError, *DAMAGE) as error:
            raise damaged(where, error) from error
    if not keeps_profile:
        metadata = replace(metadata, icc_profile=None)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype not in (np.uint8, np.uint16):
        pixels = pixels.astype(np.uint16)
    if name == "TIFF" and bits == (12,):  # of gray, whose white is 4095 to Pillow
        pixels = (pixels << 4 | pixels >> 8).astype(np.uint16)
    return Picture(pixels=pixels[..., None] if pixels.ndim == 2 else pixels, metadata=metadata, format=name)


def write_picture(
    path: str | os.PathLike[str], picture: Picture | npt.NDArray[Any], *, quality: int | None = None
) -> None:
    """Writes a picture, whole or not at all; the suffix says the format. As `encode_image`.

    Raises:
        UsageError: another suffix, or the name of a folder.
        HspanError: as `encode_image`; or the file cannot be written.
    """
    target = Path(path)
    require_writable_suffix(target)
    write_bytes(target, encode_image(picture, target.suffix, quality=quality, where=target))


def encode_image(
    picture: Picture | npt.NDArray[Any],
    suffix: str = ".png",
    *,
    quality: int | None = None,
    where: object = "picture",
) -> bytes:
    """The bytes of a picture file.

    What a format cannot hold is brought to what it can: JPEG and BMP have no alpha (laid on white), JPEG, WebP and BMP
    have 8 bits, WebP knows gray as RGB only.

    Args:
        picture: a picture, or pixels (H, W, C) as in `Picture`.
        suffix: .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff.
        quality: of JPEG, 1 to 100, 95 when None; makes WebP lossy, which is lossless when None. The others
            are always lossless.
        where: what an error is about.

    Raises:
        UsageError: an unknown suffix, or a quality outside 1 to 100.
        HspanError: not pixels, or the format cannot hold a picture this large (JPEG 65535, WebP 16383 a side).
    """
    made = picture if isinstance(picture, Picture) else Picture(pixels=picture)
    known = WRITE_FORMATS.get(suffix.lower())
    if known is None:
        raise UsageError(
            where, f"cannot tell the format from {suffix!r}", f"end it in {', '.join(WRITE_FORMATS)}"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError("--quality", f"got {quality}, expected 1 to 100")
    name, options = known
    kind = PixelFormat.of(made.pixels, where=where)
    if kind.dtype == np.uint16 and name in ("PNG", "TIFF"):
        from trt_hspan.media.picture_strips import packed_picture

        return packed_picture(made, suffix)
    pixels = eight_bit(made.pixels)
    if quality is not None and name in ("JPEG", "WEBP"):
        options = {**options, "quality": quality, "lossless": False}
    return _encoded(_for_format(pixels, name), made.metadata, name, options, where)


def eight_bit(pixels: npt.NDArray[Any]) -> Uint8Array:
    """uint16 pixels rounded to uint8 (65535 = 257 * 255); uint8 as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def rgb_on_white(picture: Picture) -> Uint8Array:
    """(H, W, 3) uint8: what a viewer shows, transparency laid on white."""
    pixels = eight_bit(picture.pixels)
    if pixels.shape[2] in (2, 4):
        pixels = on_white(pixels)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def on_white(pixels: Uint8Array) -> Uint8Array:
    """(H, W, 2 or 4) without alpha: color * alpha + white * (1 - alpha), rounded."""
    color, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:].astype(np.uint32)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _for_format(pixels: Uint8Array, name: str) -> Uint8Array:
    if name in ("JPEG", "BMP") and pixels.shape[2] in (2, 4):
        return on_white(pixels)
    if pixels.shape[2] == 2 and name == "WEBP":
        return pixels[..., [0, 0, 0, 1]]
    return pixels


def _encoded(
    pixels: Uint8Array, metadata: Metadata, name: str, options: dict[str, object], where: object
) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    extra: dict[str, object] = {}
    if name != "BMP":
        if metadata.icc_profile and fits_profile(metadata.icc_profile, gray=pixels.shape[2] <= 2):
            extra["icc_profile"] = metadata.icc_profile
        if metadata.exif:
            extra["exif"] = metadata.exif
        if metadata.xmp and name not in ("PNG", "TIFF"):
            extra["xmp"] = metadata.xmp
    if metadata.dpi and name in ("PNG", "JPEG", "TIFF", "BMP"):
        extra["dpi"] = metadata.dpi
    if name == "PNG":
        info = PngInfo()
        if metadata.xmp:
            info.add_itxt(XMP_KEY, metadata.xmp.decode("utf-8", "replace"))
        for key, value in metadata.text:
            info.add_text(key, value)
        extra["pnginfo"] = info
    if name == "TIFF":
        tags = Image.Exif()
        if metadata.xmp:
            tags[XMP_TAG] = metadata.xmp
        extra["exif"] = tags  # the EXIF block itself follows below: libtiff refuses directories in it
    stream = io.BytesIO()
    try:
        image.save(stream, format=name, **options, **extra)
    except (OSError, *DAMAGE) as error:
        height, width = pixels.shape[:2]
        raise HspanError(
            where, f"{name} cannot hold {width}x{height} pixels ({error})", "write .png instead"
        ) from error
    data = stream.getvalue()
    return tiff_with_exif(data, metadata.exif) if name == "TIFF" else data


def _scale_color_key(image: Image.Image, data: bytes) -> None:
    """Brings the transparent gray of a PNG of 2 or 4 bits to 8: Pillow does so with the pixels only."""
    if image.format == "PNG" and image.mode == "L" and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= {2: 85, 4: 17}.get(data[24], 1)


def _plain_mode(image: Image.Image, where: object) -> tuple[Image.Image, bool]:
    """The picture in mode L, LA, RGB, RGBA, 1 or I;16, and whether its color profile still describes it."""
    mode, transparent = image.mode, "transparency" in image.info
    if mode in ("1", "L", "RGB"):
        alpha = {"1": "LA", "L": "LA", "RGB": "RGBA"}[mode]
        return (image.convert(alpha) if transparent else image), True
    if mode in ("LA", "RGBA") or mode.startswith("I;16"):
        return image, True
    if mode in ("P", "PA"):
        colors = image.getpalette() or []
        gray = colors[::3] == colors[1::3] == colors[2::3]
        opaque = not transparent and mode == "P"
        return image.convert(("L" if gray else "RGB") if opaque else ("LA" if gray else "RGBA")), True
    if mode in ("La", "RGBa"):
        return image.convert(mode.upper()), True
    if mode == "CMYK":
        return _srgb_from_cmyk(image), False
    if mode in ("YCbCr", "HSV", "RGBX"):
        return image.convert("RGB"), True
    raise HspanError(where, f"its color mode {mode} has no plain way to RGB", "convert it to an RGB picture")


def _srgb_from_cmyk(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, *DAMAGE):
            converted = None  # a profile that is none says nothing of the colors
        if converted is not None:
            return converted
    return image.convert("RGB")
