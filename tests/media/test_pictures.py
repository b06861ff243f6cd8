"""Pictures with everything their files say: channels, depth, profile, metadata, and files that are odd."""

from __future__ import annotations

import io
import itertools
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms, TiffImagePlugin
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.media import formats
from trt_hspan.media.metadata import Metadata
from trt_hspan.media.pictures import Picture, decode_image, open_picture, read_picture
from trt_hspan.media.pixels import eight_bit, rgb_on_white
from trt_hspan.media.writing import encode_image, write_picture
from trt_hspan.upscaling.pictures import upscale_file

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(channels: int, dtype: type = np.uint8, *, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, np.iinfo(dtype).max, (11, 17, channels), dtype, endpoint=True)


@pytest.mark.parametrize(
    ("suffix", "channels", "dtype"),
    [
        *itertools.product([".png", ".tif", ".tiff"], [1, 2, 3, 4], [np.uint8, np.uint16]),
        *itertools.product([".webp"], [3, 4], [np.uint8]),
        *itertools.product([".bmp"], [1, 3], [np.uint8]),
    ],
)
def test_what_a_format_can_hold_comes_back_exactly(
    tmp_path: Path, suffix: str, channels: int, dtype: type
) -> None:
    write_picture(tmp_path / f"a{suffix}", pixels(channels, dtype))
    decoded = read_picture(tmp_path / f"a{suffix}").pixels
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, pixels(channels, dtype))


@pytest.mark.parametrize(
    ("suffix", "channels", "kept"),
    [
        *[(".jpg", 1, 1), (".jpg", 2, 1), (".jpg", 3, 3), (".jpg", 4, 3)],
        *[(".webp", 1, 3), (".webp", 2, 4), (".bmp", 2, 1), (".bmp", 4, 3)],
    ],
)
def test_what_a_format_cannot_hold_is_brought_to_what_it_can(suffix: str, channels: int, kept: int) -> None:
    assert decode_image(encode_image(pixels(channels), suffix)).pixels.shape == (11, 17, kept)
    deep = decode_image(encode_image(pixels(channels, np.uint16), suffix)).pixels
    assert (deep.dtype, deep.shape[2]) == (np.uint8, kept)


def test_transparency_is_laid_on_white_where_there_is_no_alpha() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:, 3] = 255
    decoded = decode_image(encode_image(rgba, ".bmp")).pixels
    assert (decoded[:, :4] == 255).all()
    assert (decoded[:, 4:] == 0).all()
    assert rgb_on_white(rgba[..., [0, 3]]).shape == (8, 8, 3)


def test_colors_on_white_are_rounded_to_the_nearest_level() -> None:
    """Every color at every alpha; c a + 255 (255 - a) is an integer and 255 is odd, so that nothing lies halfway."""
    color, alpha = np.mgrid[:256, :256]
    exact = (color * alpha + 255 * (255 - alpha)) / 255
    shown = rgb_on_white(np.dstack([color, alpha]).astype(np.uint8))
    np.testing.assert_array_equal(shown, np.repeat(np.rint(exact)[..., None], 3, axis=2))


def test_16_bits_become_8_by_rounding() -> None:
    levels = np.array([[[0], [128], [129], [32768], [65406], [65407], [65535]]], np.uint16)
    assert eight_bit(levels).ravel().tolist() == [0, 0, 1, 128, 254, 255, 255]


def test_quality_makes_files_smaller_and_must_be_a_percentage() -> None:
    image = pixels(3)
    for suffix in (".jpg", ".webp"):
        assert len(encode_image(image, suffix, quality=20)) < len(encode_image(image, suffix))
        assert len(encode_image(image, suffix, quality=1)) < len(encode_image(image, suffix, quality=100))
    for bad in (0, 101):
        with pytest.raises(UsageError, match=f"got {bad}, expected 1 to 100"):
            encode_image(image, ".jpg", quality=bad)
    with pytest.raises(UsageError, match="cannot tell the format"):
        encode_image(image, ".gif")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_profile_and_exif_survive_and_orientation_is_reset(tmp_path: Path, suffix: str, dtype: type) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    exif[0x8298] = "Somebody"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif[0x8769] = 0
    stored = pixels(3)
    Image.fromarray(stored).save(
        tmp_path / f"a{suffix}",
        exif=exif.tobytes(),
        icc_profile=SRGB,
        **({"quality": 95} if suffix == ".jpg" else {}),
    )
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.pixels.shape == (17, 11, 3)
    if suffix != ".jpg":
        target = np.rot90(stored, -1) if suffix != ".webp" else picture.pixels
        np.testing.assert_array_equal(picture.pixels, target)
    scaled = picture.pixels.astype(dtype) * dtype(257 if dtype == np.uint16 else 1)
    write_picture(tmp_path / f"b{suffix}", Picture(pixels=scaled, metadata=picture.metadata))
    again = Image.open(tmp_path / f"b{suffix}")
    decoded = again.getexif()
    assert again.size == (11, 17)
    assert decoded.get(0x0112, 1) == 1
    assert (decoded[0x010F], decoded[0x8298]) == ("Maker", "Somebody")
    assert decoded.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
    assert again.info["icc_profile"] == SRGB


def test_text_resolution_and_xmp_survive(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
    metadata = Metadata(text=(("Title", "A cat"), ("Author", "Ann")), dpi=(300.0, 300.0), xmp=xmp)
    for dtype in (np.uint8, np.uint16):
        for suffix in (".png", ".tif", ".jpg", ".webp"):
            data = encode_image(Picture(pixels=pixels(3, dtype), metadata=metadata), suffix)
            decoded = decode_image(data).metadata
            assert decoded.xmp is not None
            assert decoded.xmp.strip(b"\0") == xmp
            if suffix == ".png":
                assert dict(decoded.text) == dict(metadata.text)
            if suffix != ".webp":
                assert decoded.dpi == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_file_without_a_resolution_is_given_none(suffix: str, dtype: type) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    for block in (None, exif.tobytes()):
        data = encode_image(Picture(pixels=pixels(3, dtype), metadata=Metadata(exif=block)), suffix)
        decoded = Image.open(io.BytesIO(data))
        tags = decoded.getexif() if suffix == ".png" else decoded.tag_v2
        assert not {282, 283} & set(tags)
        assert suffix == ".tif" or "dpi" not in decoded.info
        assert decode_image(data).metadata == Metadata(exif=block)
        np.testing.assert_array_equal(decode_image(data).pixels, pixels(3, dtype))


@pytest.mark.parametrize("stated", [b'tiff:Orientation="6"', b"<tiff:Orientation>6</tiff:Orientation>"])
def test_an_upright_picture_of_16_bits_has_no_other_orientation_in_its_xmp(stated: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = pyvips.Image.new_from_memory(pixels(3, np.uint16).tobytes(), 17, 11, 3, "ushort")
    for name, blob in (("exif-data", exif.tobytes()), ("xmp-data", b"<x:xmpmeta>" + stated)):
        image.set_type(pyvips.GValue.blob_type, name, blob)
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    data = image.copy(interpretation="rgb16").pngsave_buffer(bitdepth=16)
    decoded = decode_image(data)
    np.testing.assert_array_equal(decoded.pixels, np.rot90(pixels(3, np.uint16), -1))
    assert decoded.metadata.xmp == b"<x:xmpmeta>"


def test_a_profile_for_other_channels_is_not_attached() -> None:
    data = encode_image(Picture(pixels=pixels(1), metadata=Metadata(icc_profile=SRGB)), ".png")
    assert "icc_profile" not in Image.open(io.BytesIO(data)).info


def test_inks_of_16_bits_are_those_of_8() -> None:
    levels = np.random.default_rng(5).integers(0, 256, (6, 7, 4), np.uint8)

    def tiff(pixels: np.ndarray, kind: str) -> bytes:
        image = pyvips.Image.new_from_memory(pixels.tobytes(), 7, 6, 4, kind)
        return bytes(image.copy(interpretation="cmyk").tiffsave_buffer())

    shallow = decode_image(tiff(levels, "uchar")).pixels
    deep = decode_image(tiff(levels.astype(np.uint16) * 257, "ushort")).pixels
    assert (shallow.shape, deep.dtype) == (deep.shape, np.uint16)
    assert abs(deep / 257 - shallow).max() <= 0.51  # half a level of rounding


def test_cmyk_goes_through_its_profile_and_loses_it() -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (9, 8), (0, 255, 255, 0)).save(stream, "JPEG", quality=100, icc_profile=b"no profile")
    picture = decode_image(stream.getvalue())
    assert np.abs(picture.pixels.astype(int) - (255, 0, 0)).max() <= 3
    assert picture.metadata.icc_profile is None


@pytest.fixture(params=["libvips", "Pillow"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setitem(sys.modules, "pyvips", None)
    return str(request.param)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_colors(transparent: bool) -> None:
    image = Image.fromarray(np.eye(8, dtype=np.uint8) * 3).convert("P")
    image.putpalette([10, 20, 30] * 3 + [200, 100, 50])
    stream = io.BytesIO()
    image.save(stream, "PNG", **({"transparency": 0} if transparent else {}))
    decoded = decode_image(stream.getvalue()).pixels
    assert decoded.shape == (8, 8, 4 if transparent else 3)
    assert len(np.unique(decoded[..., :3].reshape(-1, 3), axis=0)) == 2
    np.testing.assert_array_equal(decoded[..., :3], np.asarray(image.convert("RGB")))


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("transparent", "channels"), [(False, 1), (True, 2)])
def test_a_palette_of_grays_is_gray(transparent: bool, channels: int) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.putpalette([level for index in range(64) for level in (255 - index,) * 3])
    stream = io.BytesIO()
    image.save(stream, "PNG", **({"transparency": 5} if transparent else {}))
    decoded = decode_image(stream.getvalue()).pixels
    assert decoded.shape == (8, 8, channels)
    np.testing.assert_array_equal(decoded[..., 0].ravel(), 255 - np.arange(64))


@pytest.mark.usefixtures("reader")
def test_black_and_white_becomes_gray_and_a_color_key_alpha() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.eye(9, dtype=bool)).save(stream, "PNG")
    np.testing.assert_array_equal(decode_image(stream.getvalue()).pixels[..., 0], np.eye(9) * 255)
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(stream, "PNG", transparency=(1, 2, 3))
    assert (decode_image(stream.getvalue()).pixels[..., 3] == 0).all()
    stream = io.BytesIO()
    Image.new("L", (4, 4), 7).save(stream, "PNG", transparency=7)
    assert (decode_image(stream.getvalue()).pixels == (7, 0)).all()


def test_a_bitmap_of_a_pbm_is_black_where_it_is_set() -> None:
    pixels = decode_image(b"P4\n9 2\n\x81\x00\x00\x80").pixels
    assert pixels.shape == (2, 9, 1)
    assert pixels[..., 0].tolist() == [[0, *[255] * 6, 0, 255], [*[255] * 8, 0]]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_transparent_gray_of_a_shallow_png_is_found(depth: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0))
    data += chunk(b"tRNS", b"\0\1") + chunk(b"IDAT", zlib.compress(bytes([0, 1 << (8 - depth)])))
    gray = 255 // (2**depth - 1)
    assert decode_image(data + chunk(b"IEND", b"")).pixels.tolist() == [[[gray, 0], [0, 255]]]


def test_one_gray_pixel_of_16_bits_is_a_picture() -> None:
    for suffix in (".png", ".tif"):
        one = np.full((1, 1, 1), 40000, np.uint16)
        np.testing.assert_array_equal(decode_image(encode_image(one, suffix)).pixels, one)


def test_ppm_of_9_to_15_bits_is_brought_to_16(tmp_path: Path) -> None:
    levels = np.array([0, 1, 512, 1023, 2000, 700], ">u2")
    expected = np.array([0, 64, 32800, 65535, 65535, 44843], np.uint16)
    for kind, shape in (("P5", (3, 2, 1)), ("P6", (1, 2, 3))):
        data = f"{kind} {shape[1]} {shape[0]} 1023\n".encode() + levels.tobytes()
        np.testing.assert_array_equal(decode_image(data).pixels, expected.reshape(shape))
        (tmp_path / "a.ppm").write_bytes(data)
        rows = open_picture(tmp_path / "a.ppm").rows()(0, shape[0])
        np.testing.assert_array_equal(rows, expected.reshape(shape))


def test_interlaced_and_progressive_files_are_read() -> None:
    for deep in (False, True):
        image = pixels(3, np.uint16 if deep else np.uint8)
        vips = pyvips.Image.new_from_array(image).copy(interpretation="rgb16" if deep else "srgb")
        np.testing.assert_array_equal(decode_image(vips.pngsave_buffer(interlace=True)).pixels, image)
    stream = io.BytesIO()
    Image.fromarray(pixels(3)).save(stream, "JPEG", progressive=True)
    assert decode_image(stream.getvalue()).pixels.shape == (11, 17, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kept", [0.4, 0.95])
def test_truncated_files_are_one_line(
    dtype: type, suffix: str, kept: float, caplog: pytest.LogCaptureFixture
) -> None:
    data = encode_image(np.tile(pixels(3, dtype), (9, 9, 1)), suffix)
    with pytest.raises(HspanError, match=r"damaged or truncated|not a picture") as caught:
        decode_image(data[: int(len(data) * kept)], where="a.png")
    assert not re.search(r"\n|vips|libpng|_source|\(\)", str(caught.value))
    assert caplog.messages == [], "libvips has a warning for every row"


@pytest.mark.parametrize("data", [b"", b"words", b"\x89PNG\r\n\x1a\n" + b"\0" * 30, b"II*\0" + b"\xff" * 40])
def test_bytes_that_are_no_picture_are_one_line(data: bytes) -> None:
    with pytest.raises(HspanError) as caught:
        decode_image(data, where="x.png")
    assert str(caught.value).startswith("x.png: ")
    assert "\n" not in str(caught.value)


def test_deep_color_without_pyvips_is_reported_and_never_cut_to_8_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode_image(pixels(3, np.uint16), ".png")
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "pyvips", None)
        with pytest.raises(HspanError, match=r"needs pyvips.*pip install -e '\.\[media\]'"):
            decode_image(data)
    np.testing.assert_array_equal(decode_image(data).pixels, pixels(3, np.uint16))
    assert decode_image(encode_image(pixels(3), ".tif")).pixels.shape == (11, 17, 3)


def test_a_picture_that_claims_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_image(pixels(3, np.uint16), ".png")
    monkeypatch.setattr(formats, "MAX_PIXELS", 100)
    with pytest.raises(HspanError, match="claims 11x17 pixels"):
        decode_image(data)


def test_16_bits_go_through_the_network_with_16_bits(tmp_path: Path) -> None:
    ramp = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50, 1).repeat(3, axis=2) + 30_000
    write_picture(tmp_path / "a.png", ramp)
    upscale_file(NearestRunner(scale=2), tmp_path / "a.png", tmp_path / "b.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "b.tif").pixels, ramp.repeat(2, 0).repeat(2, 1))


def test_a_file_that_opens_and_cannot_be_read_is_one_line() -> None:
    # The first page of a process's memory is not mapped: reading fails for root too.
    with pytest.raises(HspanError, match=r"^/proc/self/mem: cannot read") as caught:
        read_picture(Path("/proc/self/mem"))
    assert "\n" not in str(caught.value)


def test_twelve_bits_of_gray_are_spread_over_sixteen() -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    said = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1, 279: 6}
    for tag, value in said.items():
        directory[tag] = value
    packed = b"II*\0\x08\0\0\0" + directory.tobytes(8) + bytes.fromhex("fff000 800123")
    np.testing.assert_array_equal(decode_image(packed).pixels.ravel(), [0xFFFF, 0, 0x8008, 0x1231])


def _exif_tags(block: bytes) -> set[int]:
    exif = Image.Exif()
    exif.load(block)
    return set(exif)


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12)])
@pytest.mark.parametrize("channels", [3, 4])
def test_avif_is_read_with_its_depth_and_metadata(
    tmp_path: Path, dtype: type, bits: int, channels: int
) -> None:
    """Lossless AVIF of libvips: what it keeps of 16 bits are the upper 12."""
    original = pixels(channels, dtype)
    image = pyvips.Image.new_from_array(original, interpretation="rgb16" if bits > 8 else "srgb")
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = (
        "maker",
        6,
    )  # to be turned right, which libvips writes into AVIF's own property
    image = image.copy()
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", SRGB)
    image.set_type(
        pyvips.GValue.blob_type, "exif-data", b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    )
    path = tmp_path / "a.png"  # the content says what it is
    image.heifsave(path, compression="av1", lossless=True, bitdepth=bits)
    read = read_picture(path)
    assert (read.format, read.pixels.dtype, read.pixels.shape) == ("AVIF", dtype, (17, 11, channels))
    kept = original >> (16 - bits) << (16 - bits) if bits > 8 else original
    np.testing.assert_array_equal(read.pixels, np.rot90(kept, -1))
    assert read.metadata.icc_profile == SRGB
    assert read.metadata.exif is not None
    assert b"maker" in read.metadata.exif
    assert 0x0112 not in _exif_tags(read.metadata.exif)
    upscale_file(NearestRunner(), path, tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").pixels.shape == (68, 44, channels)


@pytest.mark.parametrize(
    ("numbers", "kept"),
    [((9, 16), b"\x09\x10\0\1"), ((12, 13), b"\x0c\x0d\0\1"), ((1, 13), None), ((2, 2), None)],
)
def test_the_colors_of_an_avif_stay(tmp_path: Path, numbers: tuple[int, int], kept: bytes | None) -> None:
    """BT.2020 with PQ, Display P3, sRGB, and numbers that say nothing."""
    image = pyvips.Image.new_from_array(pixels(3))
    start, _, rest = image.heifsave_buffer(compression="av1").partition(b"colrnclx")
    data = start + b"colrnclx" + bytes([0, numbers[0], 0, numbers[1]]) + rest[4:]
    (tmp_path / "a.avif").write_bytes(data)
    upscale_file(NearestRunner(), tmp_path / "a.avif", tmp_path / "b.png")
    said = dict(read_picture(tmp_path / "b.png").metadata.png_colors)
    assert said == ({b"cICP": kept} if kept else {})
    upscale_file(NearestRunner(), tmp_path / "a.avif", tmp_path / "b.webp")
    assert (read_picture(tmp_path / "b.webp").metadata.icc_profile is not None) == (kept is not None)


def test_a_format_that_libvips_cannot_read_here_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    with pytest.raises(
        HspanError, match=r"a\.jxl: (a JXL picture, which libvips cannot read here|a damaged)"
    ):
        read_picture(tmp_path / "a.jxl")


@pytest.mark.parametrize("length", [40, 200])
def test_a_truncated_avif_is_one_line(tmp_path: Path, length: int) -> None:
    image = pyvips.Image.new_from_array(pixels(3))
    data = image.heifsave_buffer(compression="av1")
    with pytest.raises(HspanError, match="picture: a damaged or truncated picture"):
        decode_image(data[:length])
