"""What files say beside their pixels: the same of a file that is read in rows as of one that is read whole."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin, PngImagePlugin
from support.picture_headers import header_of
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.media.colors import PngColors, icc_profile
from trt_hspan.media.metadata import (
    FIRST_ONLY,
    JPEG_DESCRIPTIONS,
    PNG_SIGNATURE,
    UNUSED_PROFILE,
    Metadata,
    PpmHeader,
    colors_of_heif,
    descriptive_tags,
    fits_profile,
    inks,
    jpeg_segments,
    metadata_of_blocks,
    png_chunk,
    png_chunks,
    read_header,
    upright_exif,
)
from trt_hspan.media.pictures import Picture, open_picture, read_picture
from trt_hspan.media.vips import vips
from trt_hspan.media.writing import write_picture
from trt_hspan.upscaling import pictures
from trt_hspan.upscaling.pictures import upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'


def exif() -> bytes:
    block = Image.Exif()
    block[0x010F], block[0x0131] = "Maker", "Program"
    block.get_ifd(0x8769)[0x829A] = 0.5
    block.get_ifd(0x8825)[1] = "N"
    block[0x8769] = block[0x8825] = 0
    return block.tobytes()


SAID = {
    "nothing": Metadata(),
    "everything": Metadata(
        icc_profile=SRGB,
        exif=exif(),
        xmp=XMP,
        text=(("Title", "a b"), ("Ärger", "täglich")),
        dpi=(300.0, 150.0),
    ),
    "exif": Metadata(exif=exif()),
    "resolution": Metadata(dpi=(72.0, 72.0)),
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_streamed_result_says_what_one_in_memory_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, dtype: type, channels: int, said: str
) -> None:
    source = tmp_path / f"source{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, channels)).astype(dtype)
    write_picture(source, Picture(pixels=pixels, metadata=SAID[said]))
    described = read_picture(source).metadata
    assert open_picture(source).metadata == described
    with NearestRunner(scale=2) as runner:
        for name, most in (("whole", 1 << 20), ("streamed", 1)):
            monkeypatch.setattr(pictures, "STREAM_PIXELS", most)
            upscale_picture_file(Upscaler(runner), source, tmp_path / f"{name}{suffix}")
    whole, streamed = (read_picture(tmp_path / f"{name}{suffix}") for name in ("whole", "streamed"))
    assert streamed.metadata == whole.metadata == described
    if suffix != ".jpg":
        np.testing.assert_array_equal(streamed.pixels, whole.pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_turned_picture_is_said_to_be_upright(tmp_path: Path, suffix: str) -> None:
    block = Image.Exif()
    block[0x0112], block[0x010F] = 6, "Maker"
    packet = b'<x:xmpmeta tiff:Orientation="6"/>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet.decode())
    more = {
        ".png": {"pnginfo": info},
        ".jpg": {"xmp": packet},
        ".tif": {"tiffinfo": {700: packet, 274: 6, 271: "Maker"}},
    }
    options = more[suffix] if suffix == ".tif" else {**more[suffix], "exif": block}
    Image.new("RGB", (8, 5)).save(tmp_path / f"a{suffix}", **options)
    described = open_picture(tmp_path / f"a{suffix}").metadata
    assert described == read_picture(tmp_path / f"a{suffix}").metadata
    assert described.xmp == b"<x:xmpmeta />"
    written = Image.Exif()
    written.load(described.exif or b"")
    assert dict(written) == {0x010F: "Maker"}


def test_a_resolution_in_centimetres_is_reported_in_inches(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.tif", tiffinfo={282: 100.0, 283: 50.0, 296: 3})
    assert (
        open_picture(tmp_path / "a.tif").metadata.dpi
        == read_picture(tmp_path / "a.tif").metadata.dpi
        == (254.0, 127.0)
    )


def test_further_pictures_of_a_jpeg_are_not_followed(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pictures[1:], exif=exif())
    header = open_picture(tmp_path / "a.jpg").metadata
    assert header.exif is not None
    assert header.lost == (FIRST_ONLY,)
    assert header == read_picture(tmp_path / "a.jpg").metadata


def camera_exif() -> bytes:
    """A directory within EXIF, a maker's bytes, a byte order that is not ours and a name in UTF-8."""
    block = b"MM\0*\0\0\0\x08"
    block += bytes.fromhex("0002 013b 0002 00000004 4ac3b600 8769 0004 00000001 00000026 00000000")
    block += bytes.fromhex("0003 927c 0007 00000008 00000062 a005 0004 00000001 00000050")
    block += bytes.fromhex("a434 0002 00000004 4cc3a400 00000000")
    block += bytes.fromhex("0001 0001 0002 00000004 52393800 00000000")
    return b"Exif\0\0" + block + b"MAKERNOT"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_of_a_camera_arrives_as_it_was(tmp_path: Path, suffix: str, dtype: type) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=camera_exif())
    said = read_picture(tmp_path / "a.jpg").metadata
    write_picture(tmp_path / f"b{suffix}", Picture(pixels=np.zeros((6, 8, 3), dtype), metadata=said))
    with Image.open(tmp_path / f"b{suffix}") as image:
        described = image.getexif()
        assert described[0x013B].encode("latin-1") == b"J\xc3\xb6"
        inner = described.get_ifd(0x8769)
        assert inner[0xA434].encode("latin-1") == b"L\xc3\xa4"
        assert inner[0x927C] == b"MAKERNOT"
        assert described.get_ifd(0xA005)[1] == "R98"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_orientation_after_the_pixels_of_a_png_is_applied(tmp_path: Path, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3)).astype(dtype)
    write_picture(tmp_path / "a.png", pixels)
    block = bytes.fromhex("49492a00 08000000 0100 12010300 01000000 06000000 00000000")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:-12] + png_chunk(b"eXIf", block) + data[-12:])
    upright = np.rot90(pixels, -1)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, upright)
    opened = open_picture(tmp_path / "a.png")
    assert opened.size == (11, 7)
    np.testing.assert_array_equal(opened.rows()(0, 11), upright)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_block_that_is_no_exif_is_none(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / f"a{suffix}", exif=b"Exif\0\0MX\0*\0\0\0\x08\0\1", dpi=(9, 9))
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.pixels.shape == (6, 8, 3)
    assert picture.metadata.exif is None


@pytest.mark.parametrize(
    "entry",
    [
        "0128 0002 00000004 61626300",  # a unit that is a text
        "0131 0005 00000001 00000008",  # a program that is a fraction
    ],
)
def test_a_tag_of_a_type_that_is_not_its_own_is_left_out(tmp_path: Path, entry: str) -> None:
    block = b"Exif\0\0MM\0*\0\0\0\x08"
    block += bytes.fromhex(f"0002 010f 0002 00000002 58000000 {entry} 00000000")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=block)
    kept = Image.Exif()
    kept.load(read_picture(tmp_path / "a.jpg").metadata.exif or b"")
    assert dict(kept) == {0x010F: "X"}


def test_a_big_endian_bigtiff_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"MM\0+\0\x08\0\0" + bytes(7) + b"\x10" + bytes(16))
    with pytest.raises(HspanError, match=r"a\.tif: a big-endian BigTIFF"):
        open_picture(tmp_path / "a.tif")


def test_an_empty_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(HspanError, match=r"a\.png: is empty"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("color", "is_gray"),
    [((7, 7, 7), True), ((8, 7, 7), False), ((7, 8, 7), False), ((7, 7, 8), False)],
)
def test_a_palette_is_gray_if_each_of_its_colors_is(color: tuple[int, int, int], is_gray: bool) -> None:
    picture = Image.new("P", (3, 2))
    picture.putpalette([1, 1, 1, *color, 9, 9, 9])
    assert header_of(picture, "PNG").has_gray_palette is is_gray
    assert not header_of(Image.new("L", (3, 2)), "PNG").has_gray_palette


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("value", "orientation"), [*((n, n) for n in range(1, 9)), (0, 1), (9, 1), (None, 1)]
)
def test_an_orientation_is_a_number_from_1_to_8(kind: str, value: int | None, orientation: int) -> None:
    block = Image.Exif()
    if value is not None:
        block[0x0112] = value
    assert header_of(Image.new("RGB", (3, 2)), kind, exif=block).orientation == orientation


def test_color_of_16_bits_alone_is_deep() -> None:
    for kind in ("PNG", "TIFF"):
        for mode in ("L", "I;16", "RGB"):
            assert not header_of(Image.new(mode, (3, 2)), kind).is_deep_color
    deep = vips().Image.black(3, 2, bands=3).copy(interpretation="rgb16").cast("ushort")
    for suffix, kind in ((".png", "PNG"), (".tif", "TIFF")):
        data = deep.write_to_buffer(suffix)
        header = read_header(data, data[:1024], kind, "a")
        assert header is not None
        assert header.is_deep_color


def test_other_formats_have_no_header_of_their_own() -> None:
    assert read_header(b"BM", b"BM", "BMP", "a") is None


@pytest.mark.parametrize(
    ("start", "header"),
    [
        (b"P5 3 2 255\nx", PpmHeader(2, 3, 1, 255, 11)),
        (b"P6\n# 7 7\n3\t2 # of 8 bits\n256 ", PpmHeader(2, 3, 3, 256, 29)),
        (b"P6 3 2 65535\n", PpmHeader(2, 3, 3, 65535, 13)),
        (b"P6 3 2 1\n", PpmHeader(2, 3, 3, 1, 9)),
        *((text, None) for text in (b"P6 3 2 65536\n", b"P6 3 2 0\n", b"P6 0 2 9\n", b"P6 3 0 9\n")),
        *((text, None) for text in (b"P4 3 2\n", b"P6 3 2 255", b"P6 3 2\n")),
    ],
)
def test_a_binary_ppm_says_height_width_channels_and_white(start: bytes, header: PpmHeader | None) -> None:
    found = read_header(start, start, "PPM", "a")
    assert (None if found is None else found.ppm) == header
    if found is not None and header is not None:
        assert found.is_deep_color is (header.white > 255)
        assert found.metadata == Metadata()


@pytest.mark.parametrize("gray", [True, False])
def test_a_profile_fits_pixels_of_its_kind_if_it_is_whole(gray: bool) -> None:
    profile = icc_profile((0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06), [(2.2,)], gray=gray)
    assert fits_profile(profile, gray=gray)
    assert fits_profile(profile + b"more", gray=gray)
    assert not fits_profile(profile, gray=not gray)
    assert not fits_profile(profile[:-1], gray=gray)
    assert not fits_profile(profile.replace(b"acsp", b"ascp"), gray=gray)
    assert not fits_profile(b"", gray=gray)


def test_a_jpeg_is_read_up_to_its_first_scan() -> None:
    file = b"\xff\xd8" + b"\xff\xe0\0\4ab" + b"\xff\xff\xff\xfe\0\2" + b"\xff\xda\0\2" + b"\xff\xe1\0\2"
    assert list(jpeg_segments(file)) == [(0xE0, slice(2, 8)), (0xFE, slice(10, 14))]
    assert list(jpeg_segments(file[:12])) == [(0xE0, slice(2, 8))]
    assert list(jpeg_segments(file[:6])) == [(0xE0, slice(2, 8))]
    assert list(jpeg_segments(file[:5])) == []
    assert list(jpeg_segments(b"\xff\xd8\0\xe0\0\2")) == []


def test_chunks_of_a_png_are_what_their_lengths_say() -> None:
    data = PNG_SIGNATURE + png_chunk(b"tEXt", b"abc") + png_chunk(b"IEND", b"") + b"restful"
    # https://www.w3.org/TR/png-3/: an empty IEND is these twelve bytes.
    assert data[-19:-7] == bytes.fromhex("00000000 49454e44 ae426082")
    stream = io.BytesIO(data)
    assert [(kind, length, stream.read(length)) for kind, length in png_chunks(stream)] == [
        (b"tEXt", 3, b"abc"),
        (b"IEND", 0, b""),
    ]


@pytest.mark.parametrize(
    ("start", "colors"),
    [
        (b"xxcolrnclx\0\x09\0\x10", ((b"cICP", b"\x09\x10\0\1"),)),
        (b"colrnclx\0\x0c\0\n", ((b"cICP", b"\x0c\n\0\1"),)),
        *((start, ()) for start in (b"colrnclx\0\1\0\x0d", b"colrnclx\0\2\0\2", b"colrprof", b"")),
    ],
)
def test_the_numbers_of_a_heif_are_those_of_a_png(start: bytes, colors: PngColors) -> None:
    assert colors_of_heif(start) == colors


@pytest.mark.parametrize(
    ("tags", "dpi"),
    [
        ({282: 100.0, 283: 50.0, 296: 2}, (100.0, 50.0)),
        ({282: 100.0, 283: 50.0, 296: 3}, (254.0, 127.0)),
        ({282: 100.0, 283: 50.0, 296: 1}, None),  # no unit: an aspect alone
        ({282: 100.0}, None),
        ({283: 100.0}, None),
        ({282: 100.0, 283: 0.0}, None),
    ],
)
def test_a_resolution_has_two_numbers_and_a_unit(
    tags: dict[int, float], dpi: tuple[float, float] | None
) -> None:
    assert header_of(Image.new("L", (4, 4)), "TIFF", tiffinfo=tags).metadata.dpi == dpi


def test_thumbnails_of_a_jpeg_are_not_further_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    large, thumbnail = "Baseline MP Primary Image", "Large Thumbnail (VGA Equivalent)"
    for kinds, lost in (
        ([large, thumbnail, thumbnail], ()),
        ([large, thumbnail, large], (FIRST_ONLY,)),
        ([], ()),
    ):
        index = {0xB002: [{"Attribute": {"MPType": kind}} for kind in kinds]} if kinds else None
        monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "_getmp", lambda image, index=index: index)
        assert header_of(Image.new("L", (8, 8)), "JPEG").metadata.lost == lost


def test_an_animation_is_told_by_what_stands_before_its_first_picture() -> None:
    stream = io.BytesIO()
    Image.new("L", (3, 2)).save(stream, "PNG")
    data, control = stream.getvalue(), png_chunk(b"acTL", bytes(8))
    for file, lost in (
        (data[:33] + control + data[33:], (FIRST_ONLY,)),
        (data[:-12] + control + data[-12:], ()),
    ):
        header = read_header(file, file[:1024], "PNG", "a")
        assert header is not None
        assert header.metadata.lost == lost


def test_descriptions_in_a_jpeg_are_its_application_segments_and_comments() -> None:
    names = {marker & 0xFF: name for marker, (name, *_) in JpegImagePlugin.MARKER.items()}
    assert set(JPEG_DESCRIPTIONS) == {
        marker for marker, name in names.items() if name.startswith(("APP", "COM"))
    }


def test_tags_that_describe_a_picture_are_kept_and_those_of_its_storage_are_not() -> None:
    names = ["ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "HostComputer"]
    names += ["Copyright", "WhitePoint", "PrimaryChromaticities", "XPTitle", "XPComment", "XPAuthor"]
    described = {ExifTags.Base[name].value for name in (*names, "XPKeywords", "XPSubject")}
    block = Image.Exif()
    for neighbor in {tag + step for tag in described for step in (-1, 0, 1)} - {274}:
        block[neighbor] = 1
    block[274] = 6  # the orientation
    block.get_ifd(0x8769).update(
        {0xA001: 1, 0xA002: 8, 0xA003: 6, 0xA004: "a"}
    )  # width and height among them
    block.get_ifd(0x8825)[1] = "N"
    block[0x8769] = block[0x8825] = 0
    every = set(block) - {274}
    for of_tiff, kept in ((True, described | {0x8769, 0x8825}), (False, every)):
        upright = Image.Exif()
        upright.load(upright_exif(block, of_tiff=of_tiff) or b"")
        assert set(upright) == kept
        assert set(upright.get_ifd(0x8769)) == {0xA001, 0xA004}
        assert upright.get_ifd(0x8825) == {1: "N"}
        assert set(descriptive_tags(upright_exif(block, of_tiff=of_tiff))) == described | {0x8769, 0x8825}


def test_what_libvips_has_read_of_nothing_is_nothing() -> None:
    assert metadata_of_blocks(None, None, None) == metadata_of_blocks(b"", b"", b"") == Metadata()
    assert metadata_of_blocks(b"p", None, b'<x tiff:Orientation="3">') == Metadata(
        icc_profile=b"p", xmp=b"<x >"
    )


def test_colors_of_a_png_count_before_its_pixels_alone() -> None:
    gamma, other = png_chunk(b"gAMA", b"\0\1\2\3"), png_chunk(b"gAMA", b"\0\0\0\7")
    stream = io.BytesIO()
    Image.new("L", (3, 2)).save(stream, "PNG")
    data = stream.getvalue()
    for file, colors in (
        (data[:33] + gamma + other + data[33:], ((b"gAMA", b"\0\1\2\3"),)),
        (data[:-12] + gamma + data[-12:], ()),
        (data[:33] + png_chunk(b"gAMA", bytes(4)) + data[33:], ()),
    ):
        header = read_header(file, file[:1024], "PNG", "a")
        assert header is not None
        assert header.metadata.png_colors == colors


def test_a_profile_of_inks_is_left_out_and_one_without_use_said() -> None:
    image = pyvips.Image.black(1, 1, bands=4).copy(interpretation="cmyk")
    profile = bytes(image.icc_transform("cmyk", input_profile="cmyk").get("icc-profile-data"))
    transform, said = inks(Metadata(icc_profile=profile, dpi=(9.0, 9.0), lost=("one",)))
    assert said == Metadata(dpi=(9.0, 9.0), lost=("one",))
    red = transform.apply(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0))
    assert red[0] > 2 * max(red[1:])
    # One that cannot be unpacked, of other pixels, cut off, and without what a profile contains.
    for broken in (b"", SRGB, profile[:-1], (132).to_bytes(4, "big") + profile[4:128] + bytes(4)):
        assert inks(Metadata(icc_profile=broken, lost=("one",))) == (
            None,
            Metadata(lost=("one", UNUSED_PROFILE)),
        )
    assert inks(Metadata()) == (None, Metadata())


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_plain_picture_has_nothing_that_a_decoder_must_heed(kind: str) -> None:
    header = header_of(Image.new("RGB", (3, 2)), kind)
    assert (header.orientation, header.unknown_channels, header.ppm) == (1, 0, None)
    heeded = (header.has_gray_palette, header.is_deep_color, header.is_tiled, header.needs_pillow)
    assert heeded == (False,) * 4
