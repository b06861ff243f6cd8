"""One file, one picture: whoever reads it, whole or in rows, and with either decoder, sees the same pixels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.datasets import samples_from_folder
from trt_hspan.media.pictures import open_picture, read_image, read_picture, size_from_image_file
from trt_hspan.media.pixels import rgb_on_white
from trt_hspan.precision.crops import Crops, TilePlan, samples_from_place
from trt_hspan.upscaling import pictures
from trt_hspan.upscaling.upscaler import Upscaler

HEIGHT, WIDTH = 23, 31


def noise(channels: int, dtype: type = np.uint8) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels), dtype, endpoint=True)


def vips_image(pixels: np.ndarray, interpretation: str) -> pyvips.Image:
    kind = "uchar" if pixels.dtype == np.uint8 else "ushort"
    image = pyvips.Image.new_from_memory(pixels.tobytes(), WIDTH, HEIGHT, pixels.shape[2], kind)
    return image.copy(interpretation=interpretation)


def inks(path: Path) -> None:
    image = vips_image(noise(4), "cmyk").icc_transform("cmyk", input_profile="cmyk")
    image.tiffsave(str(path))


def undeclared(path: Path) -> None:
    Image.frombytes("RGBX", (WIDTH, HEIGHT), noise(4).tobytes()).save(path)
    data = bytearray(path.read_bytes())
    entry = data.index(
        bytes.fromhex("5201 0300 01000000")
    )  # the tag ExtraSamples, which gets a number without a meaning
    data[entry : entry + 2] = b"\0\xfd"
    path.write_bytes(data)


def palette(path: Path, **options: object) -> None:
    picture = Image.fromarray(noise(1)[..., 0] // 4).convert("P")
    picture.putpalette([level for index in range(64) for level in (index, 255 - index, 3 * index)])
    picture.save(path, **options)


# Name of the file, how it is made, and the shape and type that its pixels must have.
FILES: dict[str, tuple[Callable[[Path], None], int, type]] = {
    "inks-with-profile.tif": (inks, 3, np.uint8),
    "deep-color.png": (
        lambda path: vips_image(noise(3, np.uint16), "rgb16").pngsave(str(path)),
        3,
        np.uint16,
    ),
    "deep-color.tif": (
        lambda path: vips_image(noise(4, np.uint16), "rgb16").tiffsave(str(path)),
        4,
        np.uint16,
    ),
    "zstandard.tif": (lambda path: Image.fromarray(noise(3)).save(path, compression="zstd"), 3, np.uint8),
    "fourth-channel-that-is-no-alpha.tif": (
        lambda path: Image.frombytes("RGBX", (WIDTH, HEIGHT), noise(4).tobytes()).save(path),
        3,
        np.uint8,
    ),
    "fourth-channel-that-is-not-declared.tif": (undeclared, 4, np.uint8),
    "deep-gray.png": (
        lambda path: Image.fromarray(noise(1, np.uint16)[..., 0]).save(path),
        1,
        np.uint16,
    ),
    "palette.png": (palette, 3, np.uint8),
    "palette-with-alpha.png": (lambda path: palette(path, transparency=5), 4, np.uint8),
    "gray-with-alpha.png": (lambda path: vips_image(noise(2), "b-w").pngsave(str(path)), 2, np.uint8),
    "interlaced.png": (
        lambda path: vips_image(noise(3), "srgb").pngsave(str(path), interlace=True),
        3,
        np.uint8,
    ),
    "turned.jpg": (
        lambda path: Image.fromarray(noise(3)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08" + ORIENTATION_6),
        3,
        np.uint8,
    ),
    "deep.ppm": (
        lambda path: path.write_bytes(b"P6 31 23 65535\n" + noise(3, np.uint16).astype(">u2").tobytes()),
        3,
        np.uint16,
    ),
    "plain.webp": (lambda path: Image.fromarray(noise(3)).save(path, lossless=True), 3, np.uint8),
}
ORIENTATION_6 = bytes.fromhex("0001 0112 0003 00000001 00060000 00000000")


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    FILES[request.param][0](path)
    return path


def test_pixels_have_the_channels_and_depth_of_the_file(file: Path) -> None:
    _, channels, dtype = FILES[file.name]
    opened = open_picture(file)
    pixels = opened.pixels()
    assert (pixels.shape[2], pixels.dtype) == (channels, dtype)
    assert (opened.pixel_format.channels, opened.pixel_format.dtype) == (channels, dtype)
    assert size_from_image_file(file) == opened.size == pixels.shape[:2]


def test_rows_and_bytes_give_the_same_pixels(file: Path) -> None:
    opened = open_picture(file)
    whole = opened.pixels()
    for _ in range(2):  # rows can be read again
        rows = opened.rows()
        for top in range(0, opened.size.height, 3):  # as tiles need them: some rows twice
            bottom = min(opened.size.height, top + 7)
            np.testing.assert_array_equal(rows(top, bottom), whole[top:bottom])
    np.testing.assert_array_equal(open_picture(file.read_bytes()).pixels(), whole)


def test_every_command_sees_the_same_pixels(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`validate` and `audit` read samples, `quantize` crops, `upscale` whole pictures and strips."""
    shown = rgb_on_white(read_picture(file).pixels)
    np.testing.assert_array_equal(read_image(file), shown)
    np.testing.assert_array_equal(samples_from_folder(file, 2)[0].load()[0], shown)
    samples = samples_from_place(str(file), 2)
    crop = next(iter(Crops(samples, TilePlan(count=1, side=40))))
    np.testing.assert_array_equal(crop.low, shown)
    with NearestRunner(scale=1) as runner:
        for most in (1 << 20, 400 if open_picture(file).streams else 1 << 20):
            monkeypatch.setattr(pictures, "STREAM_PIXELS", most)
            report = pictures.upscale_picture_file(Upscaler(runner), file, tmp_path / "result.tif")
            assert report.streamed is (most == 400)
            np.testing.assert_array_equal(read_image(tmp_path / "result.tif"), shown)


def test_pillow_alone_gives_the_same_pixels_of_8_bits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_picture(file).pixels()
    monkeypatch.setitem(sys.modules, "pyvips", None)
    if whole.dtype == np.uint16 and whole.shape[2] > 1:
        with pytest.raises(HspanError, match="needs pyvips"):
            open_picture(file)
        return
    difference = open_picture(file).pixels().astype(int) - whole
    assert np.abs(difference).max() <= (
        1 if file.name.startswith("inks") else 0
    )  # two CMYK conversions round


@pytest.mark.parametrize(
    ("channels", "words"),
    [(5, "5 channels are no picture"), (6, "6 channels of type uchar have no plain way")],
)
def test_more_channels_than_a_picture_has_are_refused(tmp_path: Path, channels: int, words: str) -> None:
    vips_image(noise(channels), "srgb").tiffsave(str(tmp_path / "a.tif"))
    with pytest.raises(HspanError, match=words):
        open_picture(tmp_path / "a.tif")
