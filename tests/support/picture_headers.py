"""What a picture that Pillow writes says in its header."""

from __future__ import annotations

import io

from PIL import Image

from trt_hspan.media.metadata import Header, read_header


def header_of(image: Image.Image, kind: str, **options: object) -> Header:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    header = read_header(stream.getvalue(), stream.getvalue()[:1024], kind, "a")
    assert header is not None
    return header
