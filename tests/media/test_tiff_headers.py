"""What the tags of a TIFF say before it is decoded."""

from __future__ import annotations

from typing import Any

import pytest
import pyvips
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from support.picture_headers import header_of

from trt_hspan.media.metadata import (
    FIRST_ONLY,
    Header,
    read_header,
)


def tiff(image: pyvips.Image, **options: object) -> Header:
    data = image.tiffsave_buffer(**options)
    header = read_header(data, data[:1024], "TIFF", "a")
    assert header is not None
    return header


def test_tiffs_that_libvips_reads_wrongly_are_for_pillow() -> None:
    image = pyvips.Image.black(40, 30, bands=3).copy(interpretation="srgb")
    plain, tiled = tiff(image), tiff(image, tile=True)
    assert (plain.is_tiled, plain.needs_pillow, plain.unknown_channels) == (False, False, 0)
    assert (tiled.is_tiled, tiled.needs_pillow) == (True, False)
    assert not tiff(image, compression="jpeg").needs_pillow
    assert not tiff(image, compression="lzw").needs_pillow
    assert header_of(Image.new("RGB", (8, 6)), "TIFF", compression="zstd").needs_pillow
    assert tiff(image.colourspace("lab")).needs_pillow
    assert header_of(Image.new("YCbCr", (8, 6)), "TIFF").needs_pillow
    assert header_of(Image.new("YCbCr", (16, 16)), "TIFF", compression="jpeg").needs_pillow is False


def tiff_of_tags(*pages: dict[int, Any], last: int = 0) -> Header:
    """Of a TIFF without pixels: each page has its tags, and `last` is what the last says of where the next begins."""
    data = b"II*\0\x08\0\0\0"
    for number, tags in enumerate(pages, 1):
        directory = ImageFileDirectory_v2()
        for tag, value in tags.items():
            directory[tag] = value
        block = directory.tobytes(len(data))
        end, at = len(data) + len(block), 2 + 12 * len(tags)
        following = end if number < len(pages) else last
        data += block[:at] + following.to_bytes(4, "little") + block[at + 4 :]
    header = read_header(data, data[:1024], "TIFF", "a")
    assert header is not None
    return header


COPY, MASK = {254: 1}, {254: 4}
WIDTH = {256: 4}  # which says nothing here


@pytest.mark.parametrize(
    ("tags", "is_needed"),
    [
        ({258: 12}, True),
        *(({258: bits}, False) for bits in (8, 16, (12, 12, 12))),
        ({262: 8}, True),  # CIELAB
        *(({262: colors}, False) for colors in (1, 2, 5)),
        ({262: 6, 259: 5}, True),  # YCbCr, which libvips reads from JPEG's blocks alone
        ({262: 6, 259: 7}, False),
        *(({259: packed}, True) for packed in (34925, 50000, 50001)),
        *(({259: packed}, False) for packed in (1, 5, 7, 8, 32773)),
        ({322: 64, 284: 2}, True),  # tiles of one color each
        *((tags, False) for tags in ({322: 64, 284: 1}, {322: 64}, {284: 2})),
    ],
)
def test_a_tiff_is_for_pillow_by_its_tags(tags: dict[int, Any], is_needed: bool) -> None:
    assert tiff_of_tags(WIDTH | tags).needs_pillow is is_needed


@pytest.mark.parametrize(
    ("bits", "is_deep"),
    [((16, 16, 16), True), ((8, 16), True), ((16,), False), ((8, 8), False), ((32, 32), False)],
)
def test_colors_of_16_bits_are_deep_and_a_gray_is_not(bits: tuple[int, ...], is_deep: bool) -> None:
    assert tiff_of_tags({258: bits}).is_deep_color is is_deep
    assert not tiff_of_tags(WIDTH).is_deep_color


@pytest.mark.parametrize(
    ("extra", "unknown"), [((0, 0), 2), ((0,), 1), ((1,), 0), ((2,), 0), ((0, 2), 0), (None, 0)]
)
def test_channels_that_are_no_alpha_are_counted(extra: tuple[int, ...] | None, unknown: int) -> None:
    assert tiff_of_tags(WIDTH if extra is None else {338: extra}).unknown_channels == unknown


@pytest.mark.parametrize(
    ("pages", "last", "has_more"),
    [
        *(((page,), 0, True) for page in (COPY, MASK, {254: 5})),  # as in raw photographs
        *(((page,), 0, False) for page in (WIDTH, {254: 0}, {254: 2}, {254: 3})),
        ((WIDTH, WIDTH), 0, True),
        ((WIDTH, {254: 2}), 0, True),
        ((WIDTH, COPY), 0, False),
        ((WIDTH, COPY, MASK), 0, False),
        ((WIDTH, COPY, WIDTH), 0, True),
        ((WIDTH, COPY), 26, False),  # the copy follows itself
        ((WIDTH, COPY), 1 << 20, True),  # one that is cut off
    ],
)
def test_pages_of_a_tiff_are_pictures_unless_copies_and_masks(
    pages: tuple[dict[int, int], ...], last: int, has_more: bool
) -> None:
    assert tiff_of_tags(*pages, last=last).metadata.lost == ((FIRST_ONLY,) if has_more else ())
