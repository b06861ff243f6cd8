"""Reading and writing pictures: every color mode, and every broken file."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.media import formats
from trt_hspan.media.formats import require_writable_suffix
from trt_hspan.media.pictures import read_image, read_picture, size_from_image_file
from trt_hspan.media.writing import write_picture


def picture(height: int = 24, width: int = 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def one_line(error: HspanError) -> str:
    text = str(error)
    assert "\n" not in text
    return text


# Reading
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".tiff", ".PNG"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(path, picture())
    np.testing.assert_array_equal(read_image(path), picture())


def test_jpeg_is_written_with_full_color_resolution(tmp_path: Path) -> None:
    # One saturated column of red in black: with halved color resolution its neighbors would turn dark red.
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8] = (255, 0, 0)
    write_picture(tmp_path / "a.jpg", image)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - image).max() < 40
    small = io.BytesIO()
    Image.fromarray(image).save(small, "JPEG", quality=95, subsampling=2)
    assert np.abs(np.asarray(Image.open(small)).astype(int) - image).max() > 40


def test_content_and_not_the_suffix_says_the_format(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    Image.fromarray(picture()).save(path, "PNG")
    np.testing.assert_array_equal(read_image(path), picture())


def test_gray_has_three_equal_channels(tmp_path: Path) -> None:
    gray = picture()[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_gray_is_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a{suffix}")
    # 65535 = 255 * 257; 128 / 257 rounds down, 129 / 257 up.
    assert read_image(tmp_path / f"a{suffix}")[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_palette_becomes_its_colors(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = (10, 200, 30)
    Image.fromarray(image).quantize(4).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), image)


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "bw.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bw.png")[..., 1], np.eye(8) * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 3] = [255, 0, 255]  # black, invisible, black
    image = Image.fromarray(rgba)
    if mode == "P":
        image = image.quantize(4)
        assert "transparency" in image.info or image.mode == "P"
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, 0], [[0, 255, 0]] * 2)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "red.tif"), np.full((4, 5, 3), (255, 0, 0)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_known_from_the_header(tmp_path: Path, orientation: int) -> None:
    upright = picture(6, 9)
    # The stored pixels for each orientation tag, as the EXIF standard numbers them.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)
    assert size_from_image_file(tmp_path / "a.png") == (6, 9)


@pytest.mark.parametrize("suffix", [".gif", ".jpg", ".png", ".tif", ".webp"])
def test_of_several_pictures_the_first_is_taken_and_that_is_said(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    several, one = tmp_path / f"several{suffix}", tmp_path / f"one{suffix}"
    kind = {".jpg": "MPO"}.get(suffix)
    frames[0].save(several, kind, save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(one)
    loss = 1 if suffix == ".jpg" else 0  # of a level of red, by YCbCr
    np.testing.assert_allclose(read_image(several), np.full((2, 3, 3), (255, 0, 0)), atol=loss)
    assert read_picture(several).metadata.lost == ("contains several pictures: the first is taken",)
    assert read_picture(one).metadata.lost == ()


def test_a_smaller_copy_at_the_start_of_a_raw_photograph_is_said_to_be_one_of_several(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.dng", "TIFF", tiffinfo={254: 1})
    assert read_picture(tmp_path / "a.dng").metadata.lost == (
        "contains several pictures: the first is taken",
    )


@pytest.mark.parametrize("bigtiff", [False, True])
def test_smaller_copies_in_a_tiff_are_not_several_pictures(tmp_path: Path, bigtiff: bool) -> None:
    pyvips = pytest.importorskip("pyvips")
    pyramid = tmp_path / "pyramid.tif"
    image = pyvips.Image.black(300, 280, bands=3)
    image.tiffsave(str(pyramid), tile=True, pyramid=True, tile_width=64, tile_height=64, bigtiff=bigtiff)
    assert pyvips.Image.new_from_file(str(pyramid)).get("n-pages") > 2
    assert read_picture(pyramid).metadata.lost == ()


# Pictures that are not
# ------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, world\n" * 100, "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "damaged or truncated|not a picture"),
        (png_header(20_000, 8_000), "claims 8000x20000 pixels, more than the 134 million"),
        (png_header(60_000, 60_000), "claims 60000x60000 pixels"),
    ],
    ids=["empty", "text", "eps", "signature-only", "bomb", "larger-bomb"],
)
def test_file_that_is_no_picture_is_one_error_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, size_from_image_file):
        with pytest.raises(HspanError, match=message) as caught:
            read(path)
        assert one_line(caught.value).startswith(str(path))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".gif"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_picture_is_never_read_as_a_gray_rest(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture(64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(HspanError, match=r"damaged or truncated|not a picture") as caught:
        read_image(path)
    assert one_line(caught.value)


@pytest.mark.parametrize(
    "kind", [SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, OSError]
)
def test_whatever_a_decoder_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    write_picture(tmp_path / "a.png", picture())

    def broken(*_: object) -> None:
        raise kind("odd\nbytes")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", broken)
    with pytest.raises(HspanError, match=r"a\.png: a damaged or truncated picture \(odd\)"):
        read_image(tmp_path / "a.png")


def test_missing_file_and_folder_are_distinguished(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(HspanError, match="is a folder, expected a picture"):
        read_image(tmp_path)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_a_fixed_range_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(HspanError, match="no plain way to RGB"):
        read_image(tmp_path / "a.tif")


def sample_bytes(suffix: str) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(20, 20)).save(stream, suffix, **({} if suffix == "GIF" else {"exif": exif}))
    return stream.getvalue()


SAMPLES = {name: sample_bytes(name) for name in ("PNG", "JPEG", "WEBP", "TIFF", "GIF")}


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(SAMPLES)), data=st.data())
def test_damaged_bytes_give_a_picture_or_one_line(tmp_path_factory, name: str, data: st.DataObject) -> None:
    damaged = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{name}"
    path.write_bytes(damaged)
    for read in (read_image, size_from_image_file):
        try:
            result = read(path)
        except HspanError as error:
            one_line(error)
        else:
            if read is read_image:
                assert (result.ndim, result.shape[2], result.dtype) == (3, 3, np.uint8)


# Writing
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif", "a.png.txt"])
def test_unknown_suffix_is_a_usage_error_before_the_work(tmp_path: Path, name: str) -> None:
    for call in (require_writable_suffix, lambda path: write_picture(path, picture())):
        with pytest.raises(UsageError, match="cannot tell the format"):
            call(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_folder_as_output_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        require_writable_suffix(tmp_path)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_that_are_no_pixels_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(HspanError, match=r"expected pixels as \(H, W, C\) uint8"):
        write_picture(tmp_path / "a.png", image)


def test_format_that_cannot_hold_the_size_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(HspanError, match=r"WEBP cannot hold 1x16384 pixels.*write \.png") as caught:
        write_picture(tmp_path / "a.webp", np.zeros((1, 16384, 3), np.uint8))
    assert one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_as_long_as_a_name_may_be_is_written(tmp_path: Path) -> None:
    for stem in ("a" * 251, "\u00e4" * 125, os.fsdecode(b"\xe4" * 251)):
        write_picture(tmp_path / f"{stem}.png", np.zeros((2, 2, 3), np.uint8))
        assert [path.stem for path in tmp_path.iterdir()] == [stem]
        (tmp_path / f"{stem}.png").unlink()


def test_failed_write_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_picture(path, picture())

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(HspanError, match="the disk is full"):
        write_picture(path, picture(seed=1))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_image(path), picture())


def test_eps_is_not_on_the_list_because_pillow_runs_ghostscript_for_it() -> None:
    assert "EPS" not in formats.READ_FORMATS
