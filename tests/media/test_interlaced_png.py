"""Interlaced PNGs, read pass by pass: the same pixels as from a decoder that holds them all."""

from __future__ import annotations

import errno
import io
import itertools
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from trt_hspan.errors import HspanError
from trt_hspan.media import picture_rows, png_chunks
from trt_hspan.media.picture_rows import rows_of_file
from trt_hspan.media.pictures import read_picture
from trt_hspan.media.pixels import PixelFormat

COLORS = {(1, 8): "b-w", (2, 8): "b-w", (1, 16): "grey16", (2, 16): "grey16"}


def write_interlaced(path: Path, pixels: np.ndarray, **options: object) -> None:
    height, width, channels = pixels.shape
    depth = 8 * pixels.itemsize
    kind = COLORS.get((channels, depth), "srgb" if depth == 8 else "rgb16")
    image = pyvips.Image.new_from_memory(
        np.ascontiguousarray(pixels).tobytes(), width, height, channels, "uchar" if depth == 8 else "ushort"
    )
    image.copy(interpretation=kind).pngsave(str(path), interlace=True, **options)


def noise(height: int, width: int, channels: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_size_and_kind_comes_out_row_by_row(tmp_path: Path, channels: int, dtype: type) -> None:
    # Up to 4 pixels some passes are empty.
    for height, width in itertools.product((1, 2, 3, 5, 8, 33), (1, 2, 4, 5, 9, 31)):
        pixels = noise(height, width, channels, dtype)
        write_interlaced(tmp_path / "a.png", pixels)
        rows = rows_of_file(tmp_path / "a.png")
        assert (rows.height, rows.width) == (height, width)
        assert (rows.pixels.channels, rows.pixels.dtype) == (channels, dtype)
        for top in range(0, height, 2):  # as tiles ask for them: some rows twice
            bottom = min(height, top + 5)
            np.testing.assert_array_equal(rows(top, bottom), pixels[top:bottom])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_the_colors_that_they_are_in_memory(
    tmp_path: Path, depth: int, transparent: bool
) -> None:
    pixels = noise(19, 23, 4 if transparent else 3)
    write_interlaced(tmp_path / "a.png", pixels, palette=True, bitdepth=depth)
    rows = rows_of_file(tmp_path / "a.png")
    whole = read_picture(tmp_path / "a.png").pixels
    assert rows.pixels == PixelFormat(channels=whole.shape[2], dtype=np.uint8, where=tmp_path / "a.png")
    np.testing.assert_array_equal(rows(0, 19), whole)


def test_grays_of_less_than_8_bits_and_a_transparent_color(tmp_path: Path) -> None:
    for depth in (1, 2, 4):
        write_interlaced(tmp_path / "a.png", noise(9, 11, 1), bitdepth=depth)
        whole = read_picture(tmp_path / "a.png").pixels
        np.testing.assert_array_equal(rows_of_file(tmp_path / "a.png")(0, 9), whole)
    write_interlaced(tmp_path / "a.png", noise(9, 11, 3))
    data = (tmp_path / "a.png").read_bytes()
    key = png_chunks.chunk(b"tRNS", struct.pack(">HHH", *noise(9, 11, 3)[4, 4]))
    (tmp_path / "a.png").write_bytes(data[:33] + key + data[33:])
    whole = read_picture(tmp_path / "a.png").pixels
    assert whole.shape[2] == 4
    np.testing.assert_array_equal(rows_of_file(tmp_path / "a.png")(0, 9), whole)


def test_what_the_file_says_is_kept_and_no_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    write_interlaced(tmp_path / "a.png", noise(40, 40, 3))
    data = (tmp_path / "a.png").read_bytes()
    text = png_chunks.chunk(b"tEXt", b"Title\0A cat")
    (tmp_path / "a.png").write_bytes(data[:33] + text + data[33:])
    rows = rows_of_file(tmp_path / "a.png")
    assert rows.metadata.text == (("Title", "A cat"),)
    assert list((tmp_path / "temporary").iterdir())
    del rows
    assert not list((tmp_path / "temporary").iterdir())


def damages(data: bytes) -> dict[str, bytes]:
    stream = io.BytesIO(data)
    length = next(length for kind, length in png_chunks.chunks(stream) if kind == b"IDAT")
    at = slice(stream.tell(), stream.tell() + length)
    packed = bytearray(data[at])
    packed[len(packed) // 2] ^= 0xFF
    plain = bytearray(zlib.decompress(data[at]))
    plain[0] = 9  # a filter that does not exist

    def with_pixels(pixels: bytes) -> bytes:
        return data[: at.start - 8] + png_chunks.chunk(b"IDAT", pixels) + data[at.stop + 4 :]

    return {
        "half is missing": data[: len(data) // 2],
        "a flipped byte": data[: at.start] + bytes(packed) + data[at.stop :],
        "another stream": with_pixels(bytes(packed)),
        "too few pixels": with_pixels(zlib.compress(zlib.decompress(data[at])[:-9])),
        "no such filter": with_pixels(zlib.compress(bytes(plain))),
    }


@pytest.mark.parametrize(
    "damage", ["half is missing", "a flipped byte", "another stream", "too few pixels", "no such filter"]
)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    write_interlaced(tmp_path / "a.png", noise(40, 40, 3))
    (tmp_path / "a.png").write_bytes(damages((tmp_path / "a.png").read_bytes())[damage])
    with pytest.raises(HspanError, match=r"a\.png: a damaged or truncated picture") as caught:
        rows_of_file(tmp_path / "a.png")(0, 40)
    assert "\n" not in str(caught.value)


def test_no_room_for_the_passes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_interlaced(tmp_path / "a.png", noise(4, 4, 3))
    monkeypatch.setattr(picture_rows, "files_of_passes", full)
    with pytest.raises(
        HspanError, match=r"a\.png: an interlaced PNG is unpacked into .*No space left.*set TMPDIR"
    ):
        rows_of_file(tmp_path / "a.png")


def test_another_decoder_agrees(tmp_path: Path) -> None:
    write_interlaced(tmp_path / "a.png", noise(57, 43, 3))
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["interlace"]
        np.testing.assert_array_equal(rows_of_file(tmp_path / "a.png")(0, 57), np.asarray(image))
