"""Pictures for a server: good, too large, broken and hostile."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    """A smooth picture."""
    shape = (height // 4 + 2, width // 4 + 2, 3)
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))
    stream = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def pixels_of(data: bytes) -> npt.NDArray[np.uint8]:
    """(H, W, C) of a picture file."""
    return np.asarray(Image.open(io.BytesIO(data)))


def png_bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A valid PNG of a few kilobytes that unpacks to gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(1 << 20)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def hostile_files() -> dict[str, bytes]:
    """Files that are refused, by what is wrong with them."""
    good = png(30, 20)
    return {
        "empty": b"",
        "text": b"#!/bin/sh\necho pwned\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
        "truncated": good[: len(good) // 2],
        "header only": good[:33],
        "flipped bytes": good[:60] + bytes(b ^ 0x55 for b in good[60:90]) + good[90:],
        "bomb": png_bomb(),
        "zeros": bytes(4000),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "gif claiming 65535x65535": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x00;",
    }
