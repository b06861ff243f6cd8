"""PNG, JPEG and PPM in the C++ runtime, against Pillow; files that are damaged, hostile or odd."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from support.hostile_pictures import HOSTILE, png_file

from trt_hspan.media.metadata import png_chunk, png_chunks

from .conftest import RuntimeLibrary, StatusError, Upscaler


@pytest.fixture
def copier(runtime: RuntimeLibrary) -> Upscaler:
    """Scale 1 and the network that changes nothing: what comes out is what was read."""
    with runtime.upscaler(lambda tile: tile, scale=1, largest=(512, 512)) as upscaler:
        yield upscaler


def _pixels(size: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def _copied(copier: Upscaler, folder: Path, source: Path, suffix: str = ".png") -> npt.NDArray[np.generic]:
    target = folder / f"copied{suffix}"
    copier.upscale_file(source, target)
    with Image.open(target) as image:
        return np.asarray(image)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (64, 48)])
def test_png_keeps_every_pixel_of_every_mode(
    copier: Upscaler, tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    channels = len(mode)
    pixels = _pixels((*size, channels))
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "a.png")
    assert np.array_equal(
        _copied(copier, tmp_path, tmp_path / "a.png"), pixels[..., 0] if channels == 1 else pixels
    )


def test_png_of_16_bits_keeps_them(copier: Upscaler, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (9, 11), np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    assert np.array_equal(_copied(copier, tmp_path, tmp_path / "deep.png"), pixels)


def test_palettes_and_bits_become_whole_samples(copier: Upscaler, tmp_path: Path) -> None:
    palette = Image.fromarray(_pixels((8, 9, 3))).quantize(7)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(
        _copied(copier, tmp_path, tmp_path / "palette.png"), np.asarray(palette.convert("RGB"))
    )
    bits = Image.fromarray(_pixels((8, 9)) > 127)
    bits.save(tmp_path / "bits.png")
    assert np.array_equal(_copied(copier, tmp_path, tmp_path / "bits.png"), np.asarray(bits.convert("L")))


def test_interlaced_png_is_read(copier: Upscaler, tmp_path: Path) -> None:
    pixels = _pixels((8, 8, 3))
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, dy, dx in passes for row in pixels[top::dy, left::dx]
    )
    (tmp_path / "a.png").write_bytes(png_file(8, 8, zlib.compress(rows), interlace=1))
    assert np.array_equal(_copied(copier, tmp_path, tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_decoded_as_pillow_does(copier: Upscaler, tmp_path: Path, mode: str) -> None:
    pixels = _pixels((40, 56, 3)) // 4 + np.arange(56, dtype=np.uint8)[None, :, None]
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image)
    # Both decode with libjpeg-turbo: the same inverse transform, the same color conversion.
    assert np.array_equal(_copied(copier, tmp_path, tmp_path / "a.jpg"), expected)


def test_written_jpeg_is_close_to_the_picture(copier: Upscaler, tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (48, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png")
    got = _copied(copier, tmp_path, tmp_path / "a.png", ".jpg").astype(int)
    assert np.abs(got - ramp).max() <= 3  # quality 95: quantization steps of a few levels


def test_what_a_file_says_of_its_colors_is_kept(copier: Upscaler, tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    said = {
        b"cICP": bytes([9, 16, 0, 1]),
        b"gAMA": (100_000).to_bytes(4, "big"),
        b"cHRM": np.array([31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000], ">u4").tobytes(),
        b"mDCV": bytes(range(24)),
        b"cLLI": bytes(range(8)),
    }
    plain, described = tmp_path / "plain.png", tmp_path / "described.png"
    Image.fromarray(_pixels((9, 8, 3))).save(plain, icc_profile=profile)
    damaged = png_chunk(b"sRGB", b"\0")[:-1] + b"?"
    file = plain.read_bytes()
    chunks = b"".join(png_chunk(kind, data) for kind, data in (*said.items(), (b"gAMA", b"more")))
    described.write_bytes(file[:33] + chunks + damaged + file[33:])
    copier.upscale_file(described, tmp_path / "again.png")
    for source, copy in (
        (described, "again.jpg"),
        (tmp_path / "again.jpg", "more.jpg"),
        (tmp_path / "more.jpg", "x.png"),
    ):
        copier.upscale_file(source, tmp_path / copy)
    for copy in ("again.png", "again.jpg", "more.jpg", "x.png"):
        with Image.open(tmp_path / copy) as image:
            assert image.info["icc_profile"] == profile
    with (tmp_path / "again.png").open("rb") as stream:
        kept = [(kind, stream.read(length)) for kind, length in png_chunks(stream)]
    assert {kind: data for kind, data in kept if kind in said} == said
    assert [kind for kind, _ in kept].count(b"gAMA") == 1
    assert b"sRGB" not in dict(kept)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(copier: Upscaler, tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_pixels((24, 40, 3))).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(_copied(copier, tmp_path, tmp_path / "a.jpg"), expected)


@pytest.mark.parametrize("kind", ["P5", "P6"])
@pytest.mark.parametrize("maximum", [255, 65535])
def test_netpbm_files_pass_both_ways(copier: Upscaler, tmp_path: Path, kind: str, maximum: int) -> None:
    shape = (5, 6) if kind == "P5" else (5, 6, 3)
    dtype = ">u2" if maximum > 255 else "u1"
    pixels = np.random.default_rng(2).integers(0, maximum + 1, shape).astype(dtype)
    content = f"{kind}\n# a comment\n6 5\n{maximum}\n".encode() + pixels.tobytes()
    (tmp_path / "a.ppm").write_bytes(content)
    copier.upscale_file(tmp_path / "a.ppm", tmp_path / "b.ppm")
    assert (tmp_path / "b.ppm").read_bytes() == content.replace(b"# a comment\n", b"")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_is_one_line_and_leaves_no_output(copier: Upscaler, tmp_path: Path, name: str) -> None:
    content, part = HOSTILE[name]
    source, target = tmp_path / "bad", tmp_path / "out.png"
    source.write_bytes(content)
    with pytest.raises(StatusError) as failure:
        copier.upscale_file(source, target)
    assert failure.value.status == 1
    assert part in failure.value.message
    assert str(source) in failure.value.message
    assert "\n" not in failure.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_folders_missing_files_and_unknown_suffixes_are_reported(copier: Upscaler, tmp_path: Path) -> None:
    folder = tmp_path / "x.png"
    folder.mkdir()
    Image.fromarray(_pixels((4, 4, 3))).save(tmp_path / "a.png")
    for source, target, part in [
        (folder, "b.png", "is a folder"),
        (tmp_path / "none.png", "b.png", "no such file"),
        (tmp_path / "a.png", "b.webp", "cannot tell the format"),
        (tmp_path / "a.png", "nowhere/b.png", "no such file"),
    ]:
        with pytest.raises(StatusError) as failure:
            copier.upscale_file(source, tmp_path / target)
        assert part in failure.value.message


def test_a_format_that_cannot_hold_the_picture_is_reported(copier: Upscaler, tmp_path: Path) -> None:
    Image.fromarray(_pixels((4, 4, 4))).save(tmp_path / "a.png")
    for target in ("b.jpg", "b.ppm"):
        with pytest.raises(StatusError) as failure:
            copier.upscale_file(tmp_path / "a.png", tmp_path / target)
        assert "transparency" in failure.value.message
    assert not (tmp_path / "b.jpg").exists()


def test_an_output_of_too_many_pixels_is_refused_before_the_work(runtime: RuntimeLibrary) -> None:
    def never(tile: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        raise AssertionError("must not run")

    with (
        runtime.upscaler(never, scale=16, largest=(4096, 4096)) as upscaler,
        pytest.raises(StatusError) as failure,
    ):
        upscaler.upscale(np.zeros((1200, 1200, 1), np.uint8))
    assert "million accepted" in failure.value.message
