"""Picture files that are damaged, cut off or malicious, and a part of the error line for each."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width: int, height: int, data: bytes, *, interlace: int = 0) -> bytes:
    """A PNG of 8-bit RGB with this header and this compressed data, whether they fit or not."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _jpeg(mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    _noise().convert(mode).save(stream, "JPEG")
    return stream.getvalue()


def _whole_png() -> bytes:
    stream = io.BytesIO()
    _noise().save(stream, "PNG")
    return stream.getvalue()


HOSTILE = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no picture\n", "not a picture"),
    "png magic only": (b"\x89PNG\r\n\x1a\n", "PNG"),
    "half a png": (_whole_png()[:3000], "damaged or truncated PNG"),
    "png with flipped bits": (
        _whole_png()[:5000] + b"\xff" * 40 + _whole_png()[5040:],
        "damaged or truncated PNG",
    ),
    "png of no size": (png_file(0, 5, b""), "damaged or truncated PNG"),
    "png that claims much": (png_file(60000, 60000, zlib.compress(b"\0" * 99)), "bytes can hold"),
    "png of too many pixels": (png_file(30000, 30000, bytes(90_000)), "million accepted"),
    "png with too few rows": (png_file(8, 8, zlib.compress(b"\0" * 25)), "damaged or truncated PNG"),
    "jpeg magic only": (b"\xff\xd8\xff", "JPEG"),
    "half a jpeg": (_jpeg()[: len(_jpeg()) // 2], "damaged or truncated JPEG"),
    "cmyk jpeg": (_jpeg("CMYK"), "4 color components"),
    "ppm without pixels": (b"P6\n9 9\n255\n", "damaged or truncated PPM"),
    "ppm without sizes": (b"P6\n", "damaged or truncated PPM"),
    "ppm of a huge size": (b"P6\n99999 99999\n255\n" + b"\0" * 99, "million accepted"),
    "ppm of an endless size": (b"P6\n" + b"9" * 400 + b" 1\n255\n", "damaged or truncated PPM"),
    "ppm of 7 levels": (b"P5\n2 2\n7\n\0\0\0\0", "7 levels"),
    "ppm that ends in a comment": (b"P6\n#", "damaged or truncated PPM"),
}
