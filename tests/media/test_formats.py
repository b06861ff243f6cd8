"""What a file is by how it begins, and what may be written: on the bytes alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.media.formats import (
    MAX_PIXELS,
    WRITE_FORMATS,
    damaged,
    format_and_suffix,
    kind_of_file,
    kind_of_name,
    not_a_picture,
    require_accepted,
    require_sides,
    require_writable_suffix,
)
from trt_hspan.sizes import ImageSize


def box(*brands: bytes, length: int | None = None) -> bytes:
    """A box "ftyp": its length, the major brand, a version, compatible brands."""
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(content) + 4 if length is None else length).to_bytes(4, "big") + content


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n", ("PNG", ".png")),
        (b"\xff\xd8\xff\xe0", ("JPEG", ".jpg")),
        (b"BM" + bytes(12) + b"\x28\0\0\0", ("BMP", ".bmp")),
        (b"P1 # 4 3\n# of a form\n4 3\n", ("PPM", ".png")),
        *((text, None) for text in (b"P1 bugs first, P2 4 later", b"BMW 1802 \x28 of a kind", b"GIF8 bits")),
        (b"GIF89a", ("GIF", ".png")),
        *((start, ("TIFF", ".tif")) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
        *((b"P%d\n" % kind, ("PPM", ".png")) for kind in (1, 2, 3, 4, 5, 6)),
        (b"\xff\x0a", ("JXL", ".png")),
        (b"\0\0\0\x0cJXL \r\n\x87\n", ("JXL", ".png")),
        (b"RIFF\1\2\3\4WEBPVP8 ", ("WEBP", ".webp")),
        (box(b"avif"), ("AVIF", ".png")),
        (box(b"heic", b"mif1"), ("HEIC", ".png")),
        (box(b"mif1", b"heic", b"avif"), ("AVIF", ".png")),
        (box(b"mif1", b"heic") + b"\0\0\0\x08avif", ("HEIC", ".png")),  # behind the box
        (box(b"msf1", b"avif", length=1 << 30), ("AVIF", ".png")),
        (box(b"isom", b"avif"), None),
        (b"RIFF\1\2\3\4AVI LIST", None),
        (b"P7\n", None),
        (b"P0\n", None),
        (b"", None),
    ],
)
def test_pictures_are_told_by_how_they_begin(start: bytes, expected: tuple[str, str] | None) -> None:
    assert format_and_suffix(start) == expected


def packets(first: int, size: int, count: int) -> bytes:
    return (bytes(first) + b"G" + bytes(size - first - 1)) * count


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (box(b"isom"), "video"),
        (box(b"qt  "), "video"),
        *((box(brand), None) for brand in (b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"crx ")),
        *((b"\0\0\0\x08" + name, "video") for name in (b"moov", b"mdat", b"wide", b"free")),
        *((text, None) for text in (b"The wide river", b"its free of charge")),
        (b"RIFF\1\2\3\4AVI LIST", "video"),
        (b"RIFF\1\2\3\4WAVEfmt ", None),
        (b"RIFF\1\2\3\4WEBP", "picture"),
        (b"\x1aE\xdf\xa3", "video"),
        (b"YUV4MPEG2 W4", "video"),
        (b"OggS" + bytes(20) + b"\x80theora", "video"),
        (b"OggS" + bytes(20) + b"OVP80", "video"),
        (b"OggS" + bytes(20) + b"OpusHead", None),
        (b"OggS" + bytes(1013) + b"\x80theora", "video"),  # the last of the bytes that are looked at
        (b"OggS" + bytes(1014) + b"\x80theora", None),
        (b"\x80theora", None),
        (packets(0, 188, 3), "video"),
        (packets(4, 192, 3), "video"),
        (packets(0, 204, 3), "video"),
        (packets(0, 188, 2) + b"G", "video"),
        (packets(0, 188, 2), None),
        (packets(0, 188, 2) + b"X" + bytes(187), None),
        (b"X" + bytes(187) + packets(0, 188, 2), None),
        (packets(0, 190, 3), None),
        (b"G" + bytes(600), None),
        (b"", None),
    ],
)
def test_videos_are_told_by_how_they_begin(tmp_path: Path, start: bytes, kind: str | None) -> None:
    (tmp_path / "a.dat").write_bytes(start)
    assert kind_of_file(tmp_path / "a.dat") == kind
    # A name is heeded where the content says nothing, and not where it says sound.
    (tmp_path / "a.MKV").write_bytes(start)
    is_sound = start[4:8] == b"ftyp" or start.startswith(b"RIFF")
    assert kind_of_file(tmp_path / "a.MKV") == (kind or (None if is_sound else "video"))


def test_a_folder_is_neither_and_what_cannot_be_read_is_what_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    assert kind_of_file(tmp_path / "folder.png") is None
    assert kind_of_file(tmp_path / "none.PNG") == "picture"
    assert kind_of_file(tmp_path / "none.txt") is None


def test_as_many_pixels_are_accepted_as_the_error_says() -> None:
    require_accepted(ImageSize(1 << 13, 1 << 14), "a")
    assert MAX_PIXELS == 1 << 27
    with pytest.raises(HspanError, match="claims 8193x16384 pixels, more than the 134 million accepted"):
        require_accepted(ImageSize((1 << 13) + 1, 1 << 14), "a")


@pytest.mark.parametrize(
    ("name", "most"), [("a.JPG", 65500), ("a.jpeg", 65500), ("a.jfif", 65500), ("a.webp", 16383)]
)
def test_sides_are_as_long_as_the_format_allows(name: str, most: int) -> None:
    require_sides(name, ImageSize(most, 1))
    for size in (ImageSize(most + 1, 1), ImageSize(1, most + 1)):
        with pytest.raises(HspanError, match=f"its sides have at most {most}"):
            require_sides(name, size)
        require_sides("a.png", size)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("a.PNG", "picture"), ("a.heif", "picture"), ("a.jfif", "picture"), ("a.pbm", "picture")],
        *[("a.MKV", "video"), ("a.m4v", "video"), ("a.txt", None), ("png", None)],
    ],
)
def test_a_name_says_what_a_file_is_to_be(name: str, kind: str | None) -> None:
    assert kind_of_name(Path(name)) == kind


@pytest.mark.parametrize(
    "suffix", [".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".TIF"]
)
def test_pictures_are_written_under_the_names_of_eight_kinds(tmp_path: Path, suffix: str) -> None:
    require_writable_suffix(tmp_path / f"a{suffix}")
    (tmp_path / f"b{suffix}").mkdir()
    with pytest.raises(UsageError, match="is a folder, expected a picture's name; name a file in it"):
        require_writable_suffix(tmp_path / f"b{suffix}")


def test_what_no_decoder_knows_and_what_one_complains_of_is_one_line() -> None:
    assert str(not_a_picture("a")) == (
        "a: not a picture that can be read; give PNG, JPEG, WEBP, BMP, TIFF, GIF or PPM"
    )
    line = "a: a damaged or truncated picture"
    assert str(damaged("a", ValueError(" \n"))) == f"{line}; copy or download it again"
    assert str(damaged("a", ValueError(" odd\nbytes"))) == f"{line} (odd); copy or download it again"
    assert str(damaged("a", ValueError(130 * "x"))) == f"{line} ({120 * 'x'}); copy or download it again"


@pytest.mark.parametrize("suffix", WRITE_FORMATS)
def test_a_format_is_written_with_the_options_that_lose_the_least(suffix: str) -> None:
    name, options = WRITE_FORMATS[suffix]
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    noise[:3, :, 3] = 0  # whose colors nobody sees
    pixels = noise[..., :3] if name in ("JPEG", "BMP") else noise
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, name, **options)
    with Image.open(stream) as image:
        if name == "JPEG":
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # full color resolution
            # libjpeg scales its table of luma, which begins with 16, to quality 95: ITU-T T.81, annex K.
            assert image.quantization[0][0] == round(16 * (200 - 2 * 95) / 100)
        else:
            np.testing.assert_array_equal(np.asarray(image), pixels)
