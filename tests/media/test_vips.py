"""libvips as the one that decodes: rows as they are needed, memory, threads, and its errors in one line."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageOps

from trt_hspan.errors import HspanError
from trt_hspan.media import vips
from trt_hspan.media.metadata import UNUSED_PROFILE, Header, Metadata
from trt_hspan.media.pictures import decode_image, open_picture
from trt_hspan.media.vips import VipsPicture, has_vips, interpretation, one_thread_of_vips
from trt_hspan.media.writing import encode_image

NOISE = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)


@pytest.mark.parametrize(
    ("channels", "names"),
    [(1, ("b-w", "grey16")), (2, ("b-w", "grey16")), (3, ("srgb", "rgb16")), (4, ("srgb", "rgb16"))],
)
def test_colors_are_called_as_libvips_calls_them(channels: int, names: tuple[str, str]) -> None:
    assert (interpretation(channels, deep=False), interpretation(channels, deep=True)) == names


@pytest.mark.parametrize("bytes_at_a_time", [3 * 31 * 3, 3 * 31 * 3 + 92, 4 * 31 * 3 - 1, 1])
def test_rows_are_decoded_once_and_so_many_at_a_time(
    monkeypatch: pytest.MonkeyPatch, bytes_at_a_time: int
) -> None:
    monkeypatch.setattr(vips, "_CHUNK_BYTES", bytes_at_a_time)
    rows = open_picture(encode_image(NOISE)).rows()
    assert isinstance(rows, vips.VipsRows)
    region, fetched = rows._region, []

    def fetch(left: int, top: int, width: int, height: int) -> Any:
        fetched.append((top, height))
        return region.fetch(left, top, width, height)

    rows._region = SimpleNamespace(fetch=fetch)
    for top, bottom, most in ((0, 7, 7), (4, 9, 7), (4, 9, 7), (8, 19, 11)):
        np.testing.assert_array_equal(rows(top, bottom), NOISE[top:bottom])
        assert len(rows._buffer) == most  # as many as were needed at a time
    if bytes_at_a_time == 1:
        assert fetched == [(row, 1) for row in range(19)]
    else:
        counts = [(0, 3), (3, 3), (6, 1), (7, 2), (9, 3), (12, 3), (15, 3), (18, 1)]
        assert fetched == counts


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_if_it_is_not(monkeypatch: pytest.MonkeyPatch, orientation: int) -> None:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(stream, "PNG", exif=exif)
    with Image.open(stream) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    copy_memory, copies = pyvips.Image.copy_memory, []

    def noted(image: Any) -> Any:
        copies.append(image)
        return copy_memory(image)

    monkeypatch.setattr(pyvips.Image, "copy_memory", noted)
    opened = open_picture(stream.getvalue())
    assert opened.size == upright.shape[:2]
    np.testing.assert_array_equal(opened.rows()(0, len(upright)), upright)
    assert len(copies) == (orientation != 1)  # the others are read in another order than they are stored


def test_rows_that_are_damaged_are_one_line() -> None:
    data = encode_image(np.tile(NOISE, (9, 9, 1)))
    rows = open_picture(data[: len(data) // 2]).rows()
    with pytest.raises(HspanError, match="picture: a damaged or truncated picture"):
        rows(0, 9 * 23)


@pytest.mark.parametrize(
    ("bands", "kind", "words"),
    [
        (1, "float", "1 channels of type float have no plain way to RGB"),
        (6, "uchar", "6 channels of type uchar have no plain way to RGB"),
        (5, "uchar", "5 channels are no picture"),
    ],
)
def test_channels_that_are_no_colors_are_refused(bands: int, kind: str, words: str) -> None:
    image = pyvips.Image.black(4, 3, bands=bands).cast(kind)
    with pytest.raises(HspanError, match=words):
        open_picture(bytes(image.tiffsave_buffer()))


@pytest.mark.parametrize("profile", [False, True])
def test_a_profile_of_an_avif_has_more_right_than_its_numbers(profile: bool) -> None:
    image = pyvips.Image.new_from_array(NOISE, interpretation="srgb").copy()
    if profile:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", SRGB)
    numbers = ((b"cICP", b"\x09\x10\0\1"),)
    data = bytes(image.heifsave_buffer(compression="av1"))
    said = VipsPicture(data, "AVIF", Header(metadata=Metadata(png_colors=numbers)), "a").metadata
    assert (said.icc_profile, said.png_colors) == ((SRGB, ()) if profile else (None, numbers))


@pytest.mark.parametrize("more", [0, 1])
def test_a_turned_picture_of_much_memory_is_unpacked_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=exif)
    new_temp_file, files = pyvips.Image.new_temp_file, []

    def noted(name: str) -> Any:
        files.append(name)
        return new_temp_file(name)

    monkeypatch.setattr(pyvips.Image, "new_temp_file", noted)
    monkeypatch.setattr(vips, "_MEMORY_BYTES", 2 * NOISE.size - more)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png").rows()(0, 31), np.rot90(NOISE, -1))
    assert len(files) == more


@pytest.mark.parametrize(
    ("name", "kind", "sample_bytes"),
    [
        ("a.png", "an interlaced PNG", 1),
        ("deep.png", "an interlaced PNG", 2),
        ("a.jpg", "a progressive JPEG", 2),
    ],
)
def test_what_its_decoder_unpacks_whole_is_refused_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, sample_bytes: int
) -> None:
    image = pyvips.Image.black(40, 30, bands=3).copy(interpretation="srgb")
    if name == "deep.png":
        image = image.cast("ushort").copy(interpretation="rgb16")
    image.set_type(pyvips.GValue.gint_type, "orientation", 3)  # an upright PNG is read pass by pass
    plain, source = tmp_path / f"plain_{name}", tmp_path / name
    image.write_to_file(str(plain))
    image.write_to_file(str(source), interlace=True)
    needed = 40 * 30 * 3 * sample_bytes
    monkeypatch.setattr(vips, "available_memory_bytes", lambda: needed)
    assert open_picture(source).rows()(0, 30).shape == (30, 40, 3)
    monkeypatch.setattr(vips, "available_memory_bytes", lambda: needed - 1)
    assert open_picture(plain).rows()(0, 30).shape == (30, 40, 3)
    with pytest.raises(
        HspanError, match=f"{name}: {kind} is decoded as a whole, its 30x40 pixels need about 0.0 GB"
    ):
        open_picture(source).rows()


def test_the_last_of_several_streams_gives_the_threads_back() -> None:
    before = pyvips.concurrency_get()
    pyvips.concurrency_set(3)
    try:
        first, second = one_thread_of_vips("a"), one_thread_of_vips("b")
        first.__enter__()
        second.__enter__()
        assert pyvips.concurrency_get() == 1
        first.__exit__(None, None, None)
        assert pyvips.concurrency_get() == 1
        second.__exit__(None, None, None)
        assert pyvips.concurrency_get() == 3
        with one_thread_of_vips("c"):
            assert pyvips.concurrency_get() == 1
        assert pyvips.concurrency_get() == 3
    finally:
        pyvips.concurrency_set(before)


@pytest.mark.parametrize(
    ("detail", "line"),
    [
        ("VipsJpeg: Corrupt data (32.5)\n", "a: a damaged or truncated picture (Corrupt data); copy or"),
        ("first\npngload_source: bad CRC\n \n", "a: a damaged or truncated picture (bad CRC); copy or"),
        (
            "heif: Invalid input: No 'meta' box (2.107)",
            "a: a damaged or truncated picture (Invalid input: No",
        ),
        ("libpng read error", "a: a damaged or truncated picture; copy or download it again"),
        ("VipsImage: unable to write to x", "a: a damaged or truncated picture; copy"),
        ("", "a: a damaged or truncated picture; copy or download it again"),
        ("Compression scheme 9 is not configured", "a: libvips cannot read it (Compression scheme 9 is not"),
        (
            "Feature UNSUPPORTED here",
            "a: libvips cannot read it (Feature UNSUPPORTED here); save it again as",
        ),
    ],
)
def test_what_libvips_says_is_one_line(detail: str, line: str) -> None:
    assert str(vips._unreadable("a", SimpleNamespace(detail=detail))).startswith(line)


def test_without_pyvips_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_vips()
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert not has_vips()
    with pytest.raises(
        HspanError, match=r"^16-bit color: needs pyvips, which cannot be loaded \(.*\); install it"
    ):
        vips.vips()


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_warnings_of_libvips_are_shown_while_debugging_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    monkeypatch.delenv("VIPS_WARNING", raising=False)
    removed: list[bool] = []
    monkeypatch.setattr(pyvips, "_remove_log_handler", lambda: removed.append(True))
    with caplog.at_level(level):
        vips.vips()
    is_debugging = level == "DEBUG"
    assert removed == ([] if is_debugging else [True])
    assert ("VIPS_WARNING" in os.environ) is not is_debugging


@pytest.mark.parametrize("white", [1, 100, 255, 256, 65535])
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_a_ppm_of_any_white_is_brought_to_8_or_16_bits(tmp_path: Path, kind: bytes, white: int) -> None:
    shape = (2, 3, 1 if kind == b"P5" else 3)
    levels = np.linspace(0, white, int(np.prod(shape))).astype(np.int64).reshape(shape)
    stored = levels.astype(">u2" if white > 255 else "u1").tobytes()
    data = b"%s\n# a comment\n3 2\n%d\n" % (kind, white) + stored
    most = 65535 if white > 255 else 255
    (tmp_path / "a.ppm").write_bytes(data)
    for source in (data, tmp_path / "a.ppm"):
        opened = open_picture(source)
        assert isinstance(opened, VipsPicture)
        pixels = opened.pixels()
        assert pixels.dtype == (np.uint16 if white > 255 else np.uint8)
        np.testing.assert_array_equal(pixels, np.rint(levels * (most / white)))
    with pytest.raises(HspanError, match=r"\(1 bytes are missing\)"):
        open_picture(data[:-1])


def inks(kind: str, profile: bytes | None = None) -> bytes:
    levels = np.random.default_rng(3).integers(0, 256, (6, 7, 4), np.uint8)
    stream = io.BytesIO()
    options = {} if profile is None else {"icc_profile": profile}
    Image.frombytes("CMYK", (7, 6), levels.tobytes()).save(stream, kind, **options)
    return stream.getvalue()


def profile_of(space: str) -> bytes:
    image = pyvips.Image.black(2, 2, bands=3 + (space == "cmyk")).copy(interpretation=space)
    return bytes(image.icc_transform(space, input_profile=space).get("icc-profile-data"))


CMYK, SRGB = profile_of("cmyk"), profile_of("srgb")


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("reader", ["libvips", "Pillow"])
@pytest.mark.parametrize(
    ("profile", "is_heeded"),
    [(None, True), (CMYK, True), (SRGB, False), (b"no profile" * 20, False), (CMYK[:-1], False)],
    ids=["none", "own", "of-RGB", "letters", "cut-off"],
)
def test_a_profile_of_inks_that_is_not_heeded_is_said(
    monkeypatch: pytest.MonkeyPatch, kind: str, reader: str, profile: bytes | None, is_heeded: bool
) -> None:
    if reader == "Pillow":
        monkeypatch.setitem(sys.modules, "pyvips", None)
    opened, plain = open_picture(inks(kind, profile)), decode_image(inks(kind))
    pixels = opened.pixels()
    np.testing.assert_array_equal(opened.pixels(), pixels)  # it is opened anew
    assert opened.metadata == replace(plain.metadata, lost=() if is_heeded else (UNUSED_PROFILE,))
    assert opened.metadata.icc_profile is None
    assert np.array_equal(pixels, plain.pixels) is (profile is None or not is_heeded)
    if kind == "TIFF":
        with Image.open(io.BytesIO(inks(kind))) as image:
            left = 255 - np.asarray(image).astype(int)
        # What each ink leaves of what black leaves; Pillow rounds in another way.
        np.testing.assert_allclose(plain.pixels, left[..., :3] * left[..., 3:] / 255, rtol=0, atol=1)


def test_inks_of_16_bits_keep_them_through_a_profile() -> None:
    levels = np.random.default_rng(3).integers(0, 65536, (6, 7, 4), np.uint16)
    image = pyvips.Image.new_from_memory(levels.tobytes(), 7, 6, 4, "ushort").copy(interpretation="cmyk")
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", CMYK)
    deep = decode_image(bytes(image.tiffsave_buffer()))
    assert deep.pixels.dtype == np.uint16
    assert len(np.unique(deep.pixels % 257)) > 10
