"""Files that are written in strips: what decoders find in them, however the strips are cut."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from trt_hspan.errors import HspanError, OutOfMemoryError, UsageError
from trt_hspan.media import writing
from trt_hspan.media.colors import icc_profile
from trt_hspan.media.metadata import FIRST_ONLY, Metadata, png_chunks
from trt_hspan.media.pictures import Picture, decode_image, read_picture
from trt_hspan.media.pixels import eight_bit, on_white
from trt_hspan.media.writing import color_losses, encode_image, write_picture, write_strips
from trt_hspan.sizes import ImageSize


def written(path: Path, pixels: np.ndarray, cuts: list[int], metadata: Metadata | None = None) -> bytes:
    size = ImageSize(*pixels.shape[:2])
    write_strips(path, size, iter(np.split(pixels, cuts)), metadata=metadata or Metadata())
    return path.read_bytes()


@settings(deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.integers(1, 4),
    deep=st.booleans(),
    suffix=st.sampled_from([".png", ".tif"]),
    cuts=st.lists(st.integers(1, 39), unique=True).map(sorted),
    piece=st.sampled_from([1, 300, 1 << 20]),
    seed=st.integers(0, 1 << 30),
)
def test_pixels_come_back_whatever_the_strips(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    channels: int,
    deep: bool,
    suffix: str,
    cuts: list[int],
    piece: int,
    seed: int,
) -> None:
    dtype = np.uint16 if deep else np.uint8
    pixels = np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, (height, width, channels), dtype, True
    )
    path = tmp_path_factory.mktemp("strips") / f"a{suffix}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_PIECE_BYTES", piece)
        data = written(path, pixels, [cut for cut in cuts if cut < height])
    np.testing.assert_array_equal(decode_image(data).pixels, pixels)
    # Another decoder.
    decoded = pyvips.Image.new_from_buffer(data, "", fail_on="warning")
    np.testing.assert_array_equal(decoded.numpy().reshape(pixels.shape), pixels)


def test_more_than_4_gib_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 30, 4), np.uint16)
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x829A] = 0.5
    exif[0x8769] = 0
    metadata = Metadata(exif=exif.tobytes(), dpi=(300.0, 300.0))
    monkeypatch.setattr(writing, "_PIECE_BYTES", 1000)
    classic = written(tmp_path / "a.tif", pixels, [7], metadata)
    monkeypatch.setattr(writing, "_CLASSIC_BYTES", pixels.nbytes - 1)
    big = written(tmp_path / "b.tif", pixels, [7], metadata)
    assert (classic[:4], big[:4]) == (b"II*\0", b"II+\0")
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_picture(tmp_path / name).pixels, pixels)
        assert read_picture(tmp_path / name).metadata == metadata


def test_the_strips_of_a_tiff_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_PIECE_BYTES", 3000)
    data = written(tmp_path / "a.tif", np.zeros((100, 30, 3), np.uint8), [4])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.tag_v2[278], len(image.tag_v2[273])) == (32, 4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_jpeg_has_8_bits_and_its_alpha_on_white(tmp_path: Path, channels: int, dtype: type) -> None:
    ramp = np.linspace(0, np.iinfo(dtype).max, 64).astype(dtype)
    pixels = np.broadcast_to(ramp[:, None, None], (64, 48, channels))
    data = written(tmp_path / "a.jpg", pixels, [10, 11])
    expected = eight_bit(pixels)
    expected = on_white(expected) if channels in (2, 4) else expected
    assert np.abs(decode_image(data).pixels.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: opened(Path("/dev/full"), mode))
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    with pytest.raises(HspanError, match=rf"a\{suffix}: the disk is full"):
        written(tmp_path / f"a{suffix}", pixels, [100])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_what_the_strips_raise_is_raised_and_nothing_is_left(tmp_path: Path, suffix: str) -> None:
    def strips() -> Iterator[np.ndarray]:
        yield np.zeros((4, 30, 3), np.uint8)
        raise OutOfMemoryError("tile", "no room")

    with pytest.raises(OutOfMemoryError, match="no room"):
        write_strips(tmp_path / f"a{suffix}", ImageSize(8, 30), strips())
    assert list(tmp_path.iterdir()) == []


def test_more_exif_than_a_jpeg_can_store_is_an_error(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000  # a segment ends at 65,533 bytes
    with pytest.raises(HspanError, match=r"a\.jpg: JPEG cannot store so much .*; choose \.png") as caught:
        written(tmp_path / "a.jpg", np.zeros((4, 4, 3), np.uint8), [2], Metadata(exif=exif.tobytes()))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_of_16_bits_needs_no_pyvips(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvips", None)
    gray = np.random.default_rng(0).integers(0, 65536, (5, 7, 1), np.uint16)
    np.testing.assert_array_equal(decode_image(encode_image(gray, suffix)).pixels, gray)
    for channels in (2, 3, 4):
        with pytest.raises(HspanError, match="needs pyvips"):
            encode_image(gray.repeat(channels, 2), suffix)


def test_a_narrow_tiff_is_written_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    column = np.arange(40, dtype=np.uint8).reshape(40, 1, 1)
    write_picture(tmp_path / "a.tif", column)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, column)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("writer", ["libvips", "Pillow"])
def test_a_jpeg_has_quality_95_and_full_color_resolution(
    monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    if writer == "Pillow":
        monkeypatch.setitem(sys.modules, "pyvips", None)
    noise = np.random.default_rng(0).integers(0, 256, (33, 40, 3), np.uint8)
    for suffix in (".jpg", ".JPEG", ".jfif"):
        assert encode_image(noise, suffix) == encode_image(noise, suffix, quality=95)
    assert encode_image(noise, ".jpg", quality=94) != encode_image(noise, ".jpg", quality=96)
    with Image.open(io.BytesIO(encode_image(noise, ".jpg"))) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        # The table of luma that libjpeg scales to 95 %: its first entry is 16.
        assert image.quantization[0][0] == round(16 * 10 / 100)


def test_a_webp_is_lossless_unless_it_has_a_quality() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    noise[:3, :, 3] = 0  # whose colors stay
    np.testing.assert_array_equal(decode_image(encode_image(noise, ".webp")).pixels, noise)
    lossy = decode_image(encode_image(noise, ".webp", quality=100)).pixels
    assert (lossy[3:] != noise[3:]).any()


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LINEAR = (b"gAMA", (100_000).to_bytes(4, "big"))
NUMBERS = (b"cICP", bytes([9, 99, 0, 1]))  # of no transfer that there is


@pytest.mark.parametrize(
    ("said", "suffix", "gray", "lines"),
    [
        (Metadata(), ".jpg", False, []),
        (Metadata(lost=(FIRST_ONLY,)), ".png", False, [FIRST_ONLY]),
        (Metadata(icc_profile=SRGB), ".PNG", False, []),
        (Metadata(icc_profile=SRGB), ".tif", False, []),
        (Metadata(icc_profile=SRGB), ".tif", True, ["left out: damaged, or not one of gray pixels"]),
        (Metadata(icc_profile=SRGB), ".webp", True, []),  # whose gray is RGB
        (Metadata(icc_profile=b""), ".png", False, ["left out: damaged, or not one of RGB pixels"]),
        (Metadata(icc_profile=SRGB), ".bmp", False, ["its color profile is lost: BMP has none"]),
        (Metadata(png_colors=(LINEAR,)), ".bmp", False, ["its color profile is lost: BMP has none"]),
        (Metadata(png_colors=(NUMBERS,)), ".png", False, []),
        (Metadata(png_colors=(NUMBERS,)), ".jpg", False, ["(cICP 9-99-0-1) are lost: no profile says them"]),
        (Metadata(png_colors=(NUMBERS,), icc_profile=SRGB), ".jpg", False, []),
        (
            Metadata(png_colors=((b"cHRM", bytes(32)),)),
            ".tif",
            False,
            ["(cHRM) are lost: no profile says them"],
        ),
        (Metadata(png_colors=((b"mDCV", bytes(24)),)), ".png", False, []),
        (Metadata(png_colors=((b"mDCV", bytes(24)),)), ".webp", False, ["is lost: WEBP has none"]),
        (Metadata(png_colors=((b"cLLI", bytes(8)),)), ".tiff", False, ["is lost: TIFF has none"]),
    ],
)
def test_what_a_file_of_another_name_will_not_say_is_one_line(
    said: Metadata, suffix: str, gray: bool, lines: list[str]
) -> None:
    found = color_losses(said, f"folder/a{suffix}", gray=gray)
    assert len(found) == len(lines)
    assert all(line.endswith(end) for line, end in zip(found, lines, strict=True))


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp"])
def test_numbers_of_colors_have_more_right_than_a_profile_and_that_than_a_gamma(suffix: str) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)

    def profile_of(*colors: tuple[bytes, bytes]) -> bytes | None:
        picture = Picture(pixels=pixels, metadata=Metadata(icc_profile=SRGB, png_colors=colors))
        return decode_image(encode_image(picture, suffix)).metadata.icc_profile

    assert profile_of(LINEAR) == SRGB
    assert profile_of(NUMBERS) == SRGB
    numbers = profile_of((b"cICP", bytes([12, 13, 0, 1])), LINEAR)
    assert numbers is not None
    assert bytes([12, 13, 0, 1]) in numbers


def test_a_png_says_srgb_once_and_its_profile_stays() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    said = Metadata(icc_profile=SRGB, png_colors=((b"sRGB", b"\1"), LINEAR))
    again = decode_image(encode_image(Picture(pixels=pixels, metadata=said))).metadata
    assert (again.icc_profile, again.png_colors) == (SRGB, (LINEAR,))
    alone = Metadata(png_colors=((b"sRGB", b"\1"), LINEAR))
    assert decode_image(encode_image(Picture(pixels=pixels, metadata=alone))).metadata == alone


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("writer", ["libvips", "Pillow"])
def test_a_quality_is_a_number_from_1_to_100(
    monkeypatch: pytest.MonkeyPatch, suffix: str, writer: str
) -> None:
    if writer == "Pillow":
        monkeypatch.setitem(sys.modules, "pyvips", None)
    pixels = np.zeros((4, 4, 3), np.uint8)
    for quality in (1, 100):
        assert decode_image(encode_image(pixels, suffix, quality=quality)).pixels.shape == (4, 4, 3)
    for quality in (0, 101):
        with pytest.raises(UsageError, match=f"--quality: got {quality}, expected 1 to 100"):
            encode_image(pixels, suffix, quality=quality)


@pytest.mark.parametrize(
    ("suffix", "is_encoded"), [(".png", 1), (".jpg", 1), (".tif", 1), (".webp", 0), (".bmp", 0)]
)
def test_libvips_encodes_what_it_is_faster_at(
    monkeypatch: pytest.MonkeyPatch, suffix: str, is_encoded: int
) -> None:
    encode, calls = writing._encode, []

    def noted(*arguments: Any) -> None:
        calls.append(suffix)
        encode(*arguments)

    monkeypatch.setattr(writing, "_encode", noted)
    encode_image(np.zeros((4, 4, 3), np.uint8), suffix)
    assert calls == [suffix] * is_encoded
    monkeypatch.setitem(sys.modules, "pyvips", None)
    encode_image(np.zeros((4, 4, 3), np.uint8), suffix)
    assert calls == [suffix] * is_encoded


def test_gray_with_alpha_is_color_with_alpha_in_a_webp() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 2), np.uint8)
    np.testing.assert_array_equal(
        decode_image(encode_image(pixels, ".webp")).pixels, pixels[..., [0, 0, 0, 1]]
    )


@pytest.mark.parametrize("writer", ["libvips", "Pillow"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_profile_is_kept_by_pixels_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, writer: str, suffix: str, channels: int
) -> None:
    if writer == "Pillow":
        monkeypatch.setitem(sys.modules, "pyvips", None)
    points = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
    for gray in (True, False):
        profile = icc_profile(points, [(1.8,)], gray=gray)
        pixels = np.zeros((4, 4, channels), np.uint8)
        data = encode_image(Picture(pixels=pixels, metadata=Metadata(icc_profile=profile)), suffix)
        kept = decode_image(data).metadata.icc_profile
        assert kept == (profile if gray is (channels <= 2) else None)


def test_a_bmp_has_a_resolution() -> None:
    said = Metadata(dpi=(300.0, 150.0))
    again = decode_image(encode_image(Picture(pixels=np.zeros((4, 4, 3), np.uint8), metadata=said), ".bmp"))
    assert again.metadata.dpi == pytest.approx(said.dpi, abs=0.02)  # in whole dots a meter: 0.0254 dpi


def save(**said: Any) -> tuple[dict[str, Any], SimpleNamespace]:
    """An image of libvips that notes the options with which it is to be written, or fails."""
    options: dict[str, Any] = {}
    error = said.pop("error", None)

    def saved(target: object, **given: Any) -> None:
        options.update(given)
        if error is not None:
            raise error

    return options, SimpleNamespace(format="uchar", pngsave_target=saved, tiffsave_target=saved, **said)


@pytest.mark.parametrize(
    ("width", "bands", "kind", "rows"),
    [
        *((side, 1, "uchar", 1 << 15) for side in (1, 31, 32)),
        (33, 1, "uchar", 31760),  # of 31775.03, a multiple of 16
        (25, 2, "ushort", 10480),  # of 10485.76
        (1 << 15, 1, "uchar", 32),
        (1 << 16, 1, "uchar", 16),
        (1 << 16, 3, "ushort", 16),  # no fewer, of any width
    ],
)
def test_strips_of_a_tiff_have_a_mebibyte(
    monkeypatch: pytest.MonkeyPatch, width: int, bands: int, kind: str, rows: int
) -> None:
    monkeypatch.setattr(writing, "_describe_tiff", lambda *_, **__: None)
    options, image = save(width=width, height=9, bands=bands)
    image.format = kind
    writing._encode(io.BytesIO(), image, encoding("TIFF"))
    assert options["tile_height"] == rows


@pytest.mark.parametrize("more", [0, 1])
def test_a_tiff_of_almost_4_gib_is_a_bigtiff(monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    """64 MiB less: compression may make noise a little larger."""
    monkeypatch.setattr(writing, "_describe_tiff", lambda *_, **__: None)
    row_bytes = 1 << 15
    options, image = save(width=row_bytes, height=(4096 - 64 << 20) // row_bytes + more, bands=1)
    writing._encode(io.BytesIO(), image, encoding("TIFF"))
    assert options["bigtiff"] is bool(more)


def encoding(name: str) -> Any:
    return writing._Encoding(name=name, metadata=Metadata(), quality=None, where="a")


def test_what_libvips_says_when_it_cannot_write_is_one_line_of_200_letters() -> None:
    _, image = save(width=3, height=2, bands=1, error=pyvips.Error("failed", "no\n " + 300 * "x"))
    with pytest.raises(HspanError) as caught:
        writing._encode(io.BytesIO(), image, encoding("PNG"))
    assert str(caught.value) == f"a: cannot write 2x3 pixels as PNG: no {197 * 'x'}; choose .png or .tif"


@pytest.mark.parametrize(
    ("piece", "pieces"), [(1, 10), (30, 10), (31, 10), (100, 3), (150, 2), (299, 2), (300, 1)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rows_go_to_the_encoder_uncompressed_and_so_many_at_a_time(
    monkeypatch: pytest.MonkeyPatch, piece: int, pieces: int, dtype: type
) -> None:
    monkeypatch.setattr(writing, "_PIECE_BYTES", piece)
    pixels = np.zeros((10, 30 // np.dtype(dtype).itemsize, 1), dtype)
    stream = io.BytesIO()
    writing._write_stored_png(stream, "PNG", ImageSize(*pixels.shape[:2]), iter([pixels]))
    lengths = [length for kind, length in png_chunks(stream) if kind == b"IDAT"]
    assert len(lengths) == pieces + 1  # the last one has what the compressor still holds
    assert sum(lengths) >= 10 * 31
    np.testing.assert_array_equal(decode_image(stream.getvalue()).pixels, pixels)


def test_the_directory_of_a_tiff_begins_at_an_even_place(tmp_path: Path) -> None:
    """TIFF 6.0, section 2: "on a word boundary", whatever the length of what stands before it."""
    for length in range(1, 9):
        noise = np.random.default_rng(length).integers(0, 256, (length, 5, 3), np.uint8)
        said = Metadata(xmp=b"x" * length)
        data = encode_image(Picture(pixels=noise, metadata=said), ".tif")
        assert int.from_bytes(data[4:8], "little") % 2 == 0
        assert decode_image(data).metadata == said
