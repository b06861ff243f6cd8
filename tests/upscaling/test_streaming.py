"""Pictures that never lie in memory whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image
from support.runner_doubles import NearestRunner
from support.torch_function_runner import TorchFunctionRunner, convolutions

from trt_hspan.errors import HspanError
from trt_hspan.machine.memory import array_of_own_pages
from trt_hspan.media import pictures as media_pictures
from trt_hspan.media.pictures import open_picture, read_picture, size_from_image_file
from trt_hspan.media.writing import write_picture
from trt_hspan.upscaling import pictures
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import WriteOptions, upscale_picture_file, upscale_stream
from trt_hspan.upscaling.upscaler import Upscaler


def pixels(channels: int, dtype: type = np.uint8) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, np.iinfo(dtype).max, (71, 53, channels), dtype, endpoint=True)


def stream(source: Path, target: Path, *, scale: int = 2, **options: object) -> np.ndarray:
    with NearestRunner(scale=scale) as runner:
        upscale_stream(
            Upscaler(runner, UpscaleOptions(tile=(24, 20), overlap=4)),
            open_picture(source),
            target,
            **options,
        )
    return read_picture(target).pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_kind_of_pixel_arrives(tmp_path: Path, suffix: str, channels: int, dtype: type) -> None:
    write_picture(tmp_path / f"a{suffix}", pixels(channels, dtype))
    result = stream(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, pixels(channels, dtype).repeat(2, 0).repeat(2, 1))


def test_jpeg_keeps_profile_and_exif_and_takes_a_quality(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    Image.fromarray(pixels(3)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = read_picture(tmp_path / "a.jpg").pixels
    assert size_from_image_file(tmp_path / "a.jpg") == upright.shape[:2] == (53, 71)
    # Two JPEG decoders may round a value differently.
    result = stream(tmp_path / "a.jpg", tmp_path / "b.png").astype(int)
    assert np.abs(result - upright.repeat(2, 0).repeat(2, 1)).max() <= 3
    stream(tmp_path / "a.jpg", tmp_path / "good.jpg")
    stream(tmp_path / "a.jpg", tmp_path / "bad.jpg", quality=10)
    assert (tmp_path / "bad.jpg").stat().st_size < (tmp_path / "good.jpg").stat().st_size
    written = Image.open(tmp_path / "good.jpg").getexif()
    assert (written[0x010F], written.get(0x0112, 1)) == ("Maker", 1)


def test_a_streamed_result_is_the_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(tmp_path / "a.png", pixels(3))
    results = []
    for most in (pictures.STREAM_PIXELS, 100):
        monkeypatch.setattr(pictures, "STREAM_PIXELS", most)
        with TorchFunctionRunner(convolutions(2), 2) as runner:
            upscaler = Upscaler(runner, UpscaleOptions(tile=(24, 20), overlap=8))
            report = upscale_picture_file(upscaler, tmp_path / "a.png", tmp_path / "b.png")
        assert report.streamed is (most == 100)
        assert (report.tiles, report.output_height, report.output_width) == (16, 142, 106)
        results.append(read_picture(tmp_path / "b.png").pixels)
    np.testing.assert_array_equal(*results)


def test_out_of_memory_begins_again_with_smaller_tiles(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", pixels(3))
    runner = TorchFunctionRunner(convolutions(2), 2)
    with runner:
        upscale_stream(Upscaler(runner), open_picture(tmp_path / "a.png"), tmp_path / "whole.png")
        runner.most_pixels = 30 * 30
        upscaler = Upscaler(runner, UpscaleOptions(overlap=6))
        plan = upscale_stream(upscaler, open_picture(tmp_path / "a.png"), tmp_path / "b.png")
    assert upscaler.shrinks
    assert plan.tile.pixels <= 30 * 30
    difference = (
        read_picture(tmp_path / "b.png").pixels.astype(int) - read_picture(tmp_path / "whole.png").pixels
    )
    assert np.abs(difference).max() <= 1  # sums in another order may round the other way
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "whole.png"]


def test_truncated_input_leaves_nothing_behind(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", np.tile(pixels(3), (4, 4, 1)))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(HspanError, match=r"a\.png: a damaged or truncated picture") as caught:
        stream(tmp_path / "a.png", tmp_path / "b.png")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_format_that_cannot_hold_the_size_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", np.zeros((2, 33_000, 1), np.uint8))
    with pytest.raises(HspanError, match=r"b\.jpg: cannot write 4x66000 pixels as JPEG") as caught:
        stream(tmp_path / "a.png", tmp_path / "b.jpg")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failure_of_the_network_leaves_nothing(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", pixels(3))
    with pytest.raises(HspanError, match="values are NaN"), NearestRunner(spoil=np.nan) as runner:
        upscale_stream(Upscaler(runner), open_picture(tmp_path / "a.png"), tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
@pytest.mark.parametrize("profile", ["none", "own", "no profile"])
def test_inks_stream_as_the_colors_they_are_in_memory(tmp_path: Path, suffix: str, profile: str) -> None:
    source = tmp_path / f"inks{suffix}"
    pixels = np.random.default_rng(3).integers(0, 256, (20, 24, 4), np.uint8)
    image = pyvips.Image.new_from_memory(pixels.tobytes(), 24, 20, 4, "uchar").copy(interpretation="cmyk")
    if profile == "own":
        image = image.icc_transform("cmyk", input_profile="cmyk")
    elif profile == "no profile":
        image = image.copy()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", b"no profile")
    image.write_to_file(str(source))
    opened = open_picture(source)
    whole = read_picture(source)
    difference = opened.rows()(0, 20).astype(int) - whole.pixels
    assert abs(difference).max() <= 1
    assert opened.metadata.icc_profile is whole.metadata.icc_profile is None


def test_what_needs_the_whole_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(tmp_path / "a.png", pixels(3))
    monkeypatch.setattr(pictures, "STREAM_PIXELS", 100)
    with NearestRunner(scale=2) as runner:
        for writing, option in (
            (WriteOptions(compare=True), "--compare"),
            (WriteOptions(tile_effect=True), "--tile"),
        ):
            with pytest.raises(HspanError, match=f"too large for {option}"):
                upscale_picture_file(Upscaler(runner), tmp_path / "a.png", tmp_path / "b.png", writing)
        both = UpscaleOptions(protocol="official", self_ensemble=True)
        with pytest.raises(HspanError, match="turns whole pictures"):
            upscale_picture_file(Upscaler(runner, both), tmp_path / "a.png", tmp_path / "b.png")


def test_a_format_that_is_decoded_whole_does_not_stream(tmp_path: Path) -> None:
    for suffix, streams in (
        (".gif", False),
        (".webp", False),
        (".png", True),
        (".jpg", True),
        (".tif", True),
    ):
        Image.fromarray(pixels(3)).save(tmp_path / f"a{suffix}")
        assert open_picture(tmp_path / f"a{suffix}").streams is streams


def write_pnm(path: Path, image: np.ndarray, header: bytes | None = None) -> None:
    height, width, channels = image.shape
    kind, white = b"P5" if channels == 1 else b"P6", np.iinfo(image.dtype).max
    header = header or b"%s\n# made\n%d %d\n%d\n" % (kind, width, height, white)
    path.write_bytes(header + image.astype(np.dtype(image.dtype).newbyteorder(">")).tobytes())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_of_a_binary_ppm_stream(tmp_path: Path, channels: int, dtype: type) -> None:
    write_pnm(tmp_path / "a.ppm", pixels(channels, dtype))
    assert size_from_image_file(tmp_path / "a.ppm") == (71, 53)
    result = stream(tmp_path / "a.ppm", tmp_path / "b.png")
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, pixels(channels, dtype).repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.ppm").pixels, pixels(channels, dtype))


def test_a_truncated_ppm_is_one_line(tmp_path: Path) -> None:
    write_pnm(tmp_path / "a.ppm", pixels(3), b"P6 53 72 255\n")
    with pytest.raises(HspanError, match=r"a\.ppm: a damaged or truncated picture \(159 bytes are missing\)"):
        stream(tmp_path / "a.ppm", tmp_path / "b.png")
    write_pnm(tmp_path / "a.ppm", pixels(3, np.uint16), b"P6 53 72 65535\n")
    with pytest.raises(HspanError, match=r"\(318 bytes are missing\)"):
        read_picture(tmp_path / "a.ppm")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ppm"]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".bmp"])
def test_a_small_picture_that_is_decoded_whole_streams_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    image = pixels(1).repeat(3, 2)
    Image.fromarray(image).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    expected = read_picture(tmp_path / f"a{suffix}").pixels.repeat(2, 0).repeat(2, 1)
    monkeypatch.setattr(pictures, "STREAM_PIXELS", 5000)
    with NearestRunner(scale=2) as runner:
        report = upscale_picture_file(Upscaler(runner), tmp_path / f"a{suffix}", tmp_path / "b.png")
    assert report.streamed
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png").pixels, expected)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".bmp"])
def test_what_would_be_whole_in_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded all the same")

    Image.fromarray(pixels(3)).save(tmp_path / f"a{suffix}")
    monkeypatch.setattr(pictures, "STREAM_PIXELS", 1000)
    monkeypatch.setattr(media_pictures._PillowPicture, "_decoded", property(never))
    with NearestRunner(scale=2) as runner:
        with pytest.raises(
            HspanError, match=r"71x53 pixels are too many for its format.*; convert it to PNG, TIFF"
        ):
            upscale_picture_file(Upscaler(runner), tmp_path / f"a{suffix}", tmp_path / "b.png")
        for target in ("b.webp", "b.bmp"):
            with pytest.raises(
                HspanError, match=rf"142x106 pixels are too many for \{target[1:]}.*; name a \.png"
            ):
                upscale_picture_file(Upscaler(runner), tmp_path / f"a{suffix}", tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_a_file_of_the_same_name_is_read_anew(tmp_path: Path) -> None:
    for side in (5, 9):
        write_picture(tmp_path / "a.png", np.full((side, side, 3), side, np.uint8))
        assert size_from_image_file(tmp_path / "a.png") == (side, side)
        assert (
            open_picture(tmp_path / "a.png").rows()(0, side).tolist()
            == np.full((side, side, 3), side).tolist()
        )


@pytest.mark.parametrize(("target", "most"), [("b.webp", 16383), ("b.jpg", 65500)])
def test_a_side_that_a_format_cannot_hold_is_reported_before_the_work(
    tmp_path: Path, target: str, most: int
) -> None:
    write_picture(tmp_path / "a.png", np.zeros((1, most // 2 + 1, 1), np.uint8))
    with NearestRunner(scale=2) as runner:
        with pytest.raises(HspanError, match=f"its sides have at most {most}; name a"):
            upscale_picture_file(Upscaler(runner), tmp_path / "a.png", tmp_path / target)
        assert runner.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_libvips_has_its_threads_back_after_a_stream(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", pixels(3))
    before = pyvips.concurrency_get()
    pyvips.concurrency_set(3)
    try:
        during = []
        with NearestRunner(scale=2) as runner:
            upscale_stream(
                Upscaler(runner),
                open_picture(tmp_path / "a.png"),
                tmp_path / "b.png",
                on_tile=lambda *_: during.append(pyvips.concurrency_get()),
            )
        assert during == [1]
        assert pyvips.concurrency_get() == 3
    finally:
        pyvips.concurrency_set(before)


def test_pages_that_the_system_has_not_are_a_lack_of_memory() -> None:
    with pytest.raises(MemoryError, match="not enough memory"):
        array_of_own_pages((1 << 60,), np.uint8)


_CHILD = """
import json, sys
from pathlib import Path
from support.runner_doubles import NearestRunner
from trt_hspan.upscaling.pictures import upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler
with NearestRunner(scale=int(sys.argv[3])) as runner:
    report = upscale_picture_file(Upscaler(runner), Path(sys.argv[1]), Path(sys.argv[2]))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
# getrusage's figure begins with that of the process that started this one.
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"peak": peak, "pixels": report.output_height * report.output_width, "streamed": report.streamed}))
"""


def peak_of_stream(source: Path, target: Path, *, scale: int = 1) -> tuple[int, int]:
    """Bytes of memory that a process took at most, and the pixels of the result."""
    completed = subprocess.run(
        [sys.executable, "-c", _CHILD, source, target, str(scale)],
        cwd=Path(__file__).parents[1],
        env={
            "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}",
            "PATH": "",
            # libvips's own buffers would grow with the number of processors.
            "VIPS_CONCURRENCY": "64",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    report = json.loads(completed.stdout)
    assert report["streamed"]
    return report["peak"], report["pixels"]


def test_120_megapixels_pass_through_less_than_a_gigabyte(tmp_path: Path) -> None:
    # 360 MB of pixels on either side; a strip picture, where one row of tiles is 30,000 pixels wide.
    width, height = 30_000, 4_000
    position = pyvips.Image.xyz(width, height)
    channels = [position[0] % 256, position[1] % 256, (position[0] + position[1]) // 64 % 256]
    picture = channels[0].bandjoin(channels[1:]).cast("uchar").copy(interpretation="srgb")
    picture.tiffsave(str(tmp_path / "a.tif"), compression="lzw")
    peak, count = peak_of_stream(tmp_path / "a.tif", tmp_path / "b.tif")
    assert count == width * height == 120_000_000
    assert peak < 1_000_000_000
    written = pyvips.Image.new_from_file(str(tmp_path / "b.tif"), access="sequential")
    assert (
        written - pyvips.Image.new_from_file(str(tmp_path / "a.tif"), access="sequential")
    ).abs().max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("lost", [0.3, 0.02])
def test_a_tiff_that_lacks_its_last_rows_is_an_error(tmp_path: Path, dtype: type, lost: float) -> None:
    write_picture(tmp_path / "a.png", np.tile(pixels(3, dtype), (4, 4, 1)))
    stream(tmp_path / "a.png", tmp_path / "a.tif", scale=1)  # its directory comes first
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: int(len(data) * (1 - lost))])
    with pytest.raises(HspanError, match=r"a\.tif: a damaged or truncated picture"):
        stream(tmp_path / "a.tif", tmp_path / "b.tif")
    with pytest.raises(HspanError, match=r"a\.tif: a damaged or truncated picture"):
        read_picture(tmp_path / "a.tif")
    assert not (tmp_path / "b.tif").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [False, True])
def test_a_tiff_whose_rows_cannot_be_unpacked_is_an_error(tmp_path: Path, tile: bool, dtype: type) -> None:
    noise = pixels(3, dtype)
    image = pyvips.Image.new_from_memory(
        noise.tobytes(), 53, 71, 3, "uchar" if dtype == np.uint8 else "ushort"
    )
    image = image.copy(interpretation="srgb" if dtype == np.uint8 else "rgb16")
    data = bytearray(image.tiffsave_buffer(compression="lzw", tile=tile))
    data[12:20] = b"\xff" * 8
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(HspanError, match=r"a\.tif: a damaged or truncated picture"):
        stream(tmp_path / "a.tif", tmp_path / "b.tif")
    with pytest.raises(HspanError, match=r"a\.tif: a damaged or truncated picture"):
        read_picture(tmp_path / "a.tif")


def test_a_tiff_with_tags_that_nobody_knows_is_read(tmp_path: Path) -> None:
    tags = {65000: "odd", 40196: b"x", 34377: b"8BIM"}
    Image.fromarray(pixels(3)).save(tmp_path / "a.tif", tiffinfo=tags, compression="tiff_lzw")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.tif").rows()(0, 71), pixels(3))


@pytest.mark.parametrize("options", [{}, {"transparency": 3}])
def test_a_palette_of_grays_stays_gray(tmp_path: Path, options: dict[str, int]) -> None:
    picture = Image.fromarray(pixels(1)[..., 0] // 16).convert("P")
    picture.putpalette([level for index in range(16) for level in (17 * index,) * 3])
    picture.save(tmp_path / "a.png", **options)
    result = stream(tmp_path / "a.png", tmp_path / "b.png", scale=1)
    np.testing.assert_array_equal(result, read_picture(tmp_path / "a.png").pixels)
    assert result.shape[2] == 1 + len(options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_with_a_tag_that_libtiff_warns_of_is_read(tmp_path: Path, dtype: type) -> None:
    gray = pixels(1, dtype)
    # EXIF has two names in this tag, of the photographer and of the editor.
    Image.fromarray(gray[..., 0]).save(tmp_path / "a.tif", tiffinfo={0x8298: "photographer\0editor"})
    np.testing.assert_array_equal(stream(tmp_path / "a.tif", tmp_path / "b.tif", scale=1), gray)


def test_a_tiff_that_libvips_cannot_read_is_not_called_damaged(tmp_path: Path) -> None:
    Image.fromarray(pixels(3)).save(tmp_path / "a.tif")
    jpeg_2000 = (34712).to_bytes(2, "little")
    entry = bytes.fromhex("03010300 01000000")  # compression, one 16-bit number
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data.replace(entry + b"\1\0", entry + jpeg_2000))
    with pytest.raises(HspanError, match=r"a\.tif: libvips cannot read it \(.* 34712 .*\); save it again as"):
        stream(tmp_path / "a.tif", tmp_path / "b.tif")


def test_tiles_that_are_cut_because_the_picture_is_wide_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "a.png", np.zeros((90, 100, 3), np.uint8))
    monkeypatch.setattr(pictures, "_STRIP_BYTES", 100 * 3 * 4 * 40)
    notes: list[str] = []
    for tile in ((48, 20), (40, 20), "auto"):
        with NearestRunner(scale=2) as runner:
            upscaler = Upscaler(runner, UpscaleOptions(tile=tile), on_shrink=notes.append)
            plan = upscale_stream(upscaler, open_picture(tmp_path / "a.png"), tmp_path / "b.png")
        assert plan.tile.height <= 40
        assert upscaler.shrinks == []
    assert len(notes) == 1
    assert "of tiles of 48x20 at most 40 rows are taken, because strips of 200 pixels' width" in notes[0]
