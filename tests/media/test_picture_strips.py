"""Files that are written in strips: what decoders find in them, however the strips are cut."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.media import packed_rows, png_chunks
from trt_hspan.media.picture_strips import StripTarget, write_strips
from trt_hspan.media.pictures import Metadata, decode_image, eight_bit, on_white, read_picture
from trt_hspan.media.pixels import PixelFormat


def written(path: Path, pixels: np.ndarray, cuts: list[int], metadata: Metadata | None = None) -> bytes:
    target = StripTarget(
        path=path,
        height=pixels.shape[0],
        width=pixels.shape[1],
        pixels=PixelFormat.of(pixels),
        metadata=metadata or Metadata(),
    )
    write_strips(target, iter(np.split(pixels, cuts)))
    return path.read_bytes()


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
        patch.setattr(packed_rows, "_PIECE_BYTES", piece)
        data = written(path, pixels, [cut for cut in cuts if cut < height])
    np.testing.assert_array_equal(decode_image(data).pixels, pixels)
    # Another decoder.
    found = pyvips.Image.new_from_buffer(data, "", fail_on="warning")
    np.testing.assert_array_equal(found.numpy().reshape(pixels.shape), pixels)


def test_the_pieces_of_a_png_are_one_zlib_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_rows, "_PIECE_BYTES", 100)
    pixels = np.random.default_rng(0).integers(0, 256, (31, 33, 3), np.uint8)
    data = written(tmp_path / "a.png", pixels, [1, 9])
    stream, packed = io.BytesIO(data), b""
    for kind, length in png_chunks.chunks(stream):
        found = stream.read(length)
        assert stream.read(4) == struct.pack(">I", zlib.crc32(kind + found))
        packed += found if kind == b"IDAT" else b""
    assert len(zlib.decompress(packed)) == 31 * (1 + 33 * 3)  # its checksum would be wrong otherwise


def test_more_than_4_gib_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 30, 4), np.uint16)
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x829A] = 0.5
    exif[0x8769] = 0
    metadata = Metadata(exif=exif.tobytes(), dpi=(300.0, 300.0))
    monkeypatch.setattr(packed_rows, "_PIECE_BYTES", 1000)
    classic = written(tmp_path / "a.tif", pixels, [7], metadata)
    monkeypatch.setattr(packed_rows, "_CLASSIC_BYTES", pixels.nbytes - 1)
    big = written(tmp_path / "b.tif", pixels, [7], metadata)
    assert (classic[:4], big[:4]) == (b"II*\0", b"II+\0")
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_picture(tmp_path / name).pixels, pixels)
        assert read_picture(tmp_path / name).metadata == metadata


def test_the_strips_of_a_tiff_are_small_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_rows, "_PIECE_BYTES", 300)
    data = written(tmp_path / "a.tif", np.zeros((10, 30, 3), np.uint8), [4])
    tags = ImageFileDirectory_v2(data[:8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    assert tags[278] == 3
    assert len(tags[273]) == len(tags[279]) == 4
    ends = [at + size for at, size in zip(tags[273], tags[279], strict=True)]
    assert list(tags[273][1:]) == ends[:-1]
    assert ends[-1] == len(data)


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
def test_a_full_disk_is_told_and_leaves_nothing(
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

    target = StripTarget(
        path=tmp_path / f"a{suffix}",
        height=8,
        width=30,
        pixels=PixelFormat(channels=3, dtype=np.uint8),
        metadata=Metadata(),
    )
    with pytest.raises(OutOfMemoryError, match="no room"):
        write_strips(target, strips())
    assert list(tmp_path.iterdir()) == []


def test_what_a_jpeg_has_no_room_for_is_told_before_the_work(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000  # a segment ends at 65,533 bytes
    with pytest.raises(HspanError, match=r"a\.jpg: JPEG has no room for .*; choose \.png") as told:
        written(tmp_path / "a.jpg", np.zeros((4, 4, 3), np.uint8), [2], Metadata(exif=exif.tobytes()))
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []
