"""One picture in, one picture out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.media.pictures import open_picture, read_image
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime import memory
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling import pictures
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import (
    TileEffect,
    Upscaled,
    WriteOptions,
    tile_effect,
    upscale_file,
    upscale_picture_file,
    upscale_stream,
)
from trt_hspan.upscaling.upscaler import Upscaler, grown, is_out_of_memory, upscale_array, upscale_batch


@pytest.fixture
def source(tmp_path: Path) -> Path:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_picture(tmp_path / "in.png", image)
    return tmp_path / "in.png"


def test_every_pixel_arrives_where_it_belongs(source: Path, tmp_path: Path) -> None:
    result = upscale_file(NearestRunner(scale=3), source, tmp_path / "new" / "out.png")
    expected = read_image(source).repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "out.png"), expected)
    assert (result.input_height, result.input_width) == (5, 7)
    assert (result.output_height, result.output_width) == (15, 21)
    assert result.backend == "numpy, FP32"


def test_values_outside_the_range_are_clamped_and_not_wrapped(source: Path, tmp_path: Path) -> None:
    upscale_file(NearestRunner(offset=2.0), source, tmp_path / "out.png")
    assert read_image(tmp_path / "out.png").min() == 255


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_output_is_an_error_and_no_file(source: Path, tmp_path: Path, bad: float) -> None:
    with pytest.raises(
        HspanError, match=r"nearest on .*in\.png: 1 of 1680 values are NaN or infinite; see where"
    ):
        upscale_file(NearestRunner(spoil=bad), source, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_what_cannot_work_is_reported_before_the_network_runs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = NearestRunner()
    with pytest.raises(UsageError, match="cannot tell the format"):
        upscale_file(runner, source, tmp_path / "out.gif")
    whole = UpscaleOptions(tile="none")
    runner.fixed_shape = (1, 3, 7, 5)
    with pytest.raises(HspanError, match=r"in\.png: is 1x3x5x7, but nearest takes 1x3x7x5"):
        upscale_file(runner, source, tmp_path / "out.png", whole)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 10**9)
    with pytest.raises(HspanError, match=r"in\.png: 5x7 pixels as a whole need about 2\.0 GB"):
        upscale_file(NearestRunner(memory=2 * 10**9), source, tmp_path / "out.png", whole)
    assert runner.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def active(**options: object) -> NearestRunner:
    runner = NearestRunner(**options)  # type: ignore[arg-type]
    runner.activate()
    return runner


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *[((3, 4, 5), np.float32), ((1, 4, 4, 5), np.float32), ((1, 1, 3, 4, 5), np.float32)],
        *[((0, 3, 4, 5), np.float32), ((1, 3, 0, 5), np.float32), ((1, 3, 4, 5), np.float64)],
    ],
)
def test_what_is_no_batch_is_one_line(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(HspanError, match=r"^input: expected \(N, 3, H, W\) float32, got \("):
        upscale_batch(active(), np.zeros(shape, dtype))


def test_an_item_of_one_color_is_run_as_all_others_are() -> None:
    batch = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    batch[1] = 0.5
    runner = active(scale=2, offset=0.25)
    result = upscale_batch(runner, batch)
    np.testing.assert_array_equal(result, batch.repeat(2, 2).repeat(2, 3) + np.float32(0.25))


def test_alpha_that_changes_is_run_and_one_that_does_not_is_kept() -> None:
    image = np.full((8, 9, 4), 40, np.uint8)
    runner = active(scale=2, offset=10 / 255)
    assert np.unique(upscale_array(runner, image)[..., 3]).tolist() == [40]
    assert np.unique(upscale_array(runner, image)[..., 0]).tolist() == [50]
    image[2:, :, 3] = 60
    assert np.unique(upscale_array(runner, image)[..., 3]).tolist() == [50, 70]
    assert [shape[0] for shape in runner.calls] == [1, 1, 2]


@pytest.mark.parametrize("channels", [3, 4])
def test_a_self_ensemble_by_the_official_protocol_counts_the_tiles_of_all_turns(channels: int) -> None:
    seen: list[tuple[int, int]] = []
    image = np.random.default_rng(0).integers(0, 256, (40, 48, channels), np.uint8)
    options = UpscaleOptions(protocol="official", self_ensemble=True)
    result = upscale_array(active(scale=2), image, options, on_tile=lambda *words: seen.append(words))
    assert seen == [(number, 32) for number in range(1, 33)]
    np.testing.assert_array_equal(result, image.repeat(2, 0).repeat(2, 1))


def test_memory_that_ran_out_is_recognized_by_its_kind_its_words_and_its_cause() -> None:
    for words in ("CUDA Out of Memory", "std::bad_alloc", "Failed to allocate memory for x", "OUT_OF_MEMORY"):
        assert is_out_of_memory(RuntimeError(words))
        assert is_out_of_memory(HspanError("net", words))
        assert not is_out_of_memory(KeyError(words))
    caused = HspanError("net", "failed")
    caused.__cause__ = ValueError("wrapped")
    assert not is_out_of_memory(caused)
    caused.__cause__.__cause__ = MemoryError()
    assert is_out_of_memory(caused)


def test_pixels_grow_by_reflection_at_the_bottom_and_right() -> None:
    pixels = np.arange(6).reshape(2, 3)
    assert grown(pixels, ImageSize(3, 5)).tolist() == [[0, 1, 2, 1, 0], [3, 4, 5, 4, 3], [0, 1, 2, 1, 0]]
    assert grown(pixels, ImageSize(1, 2)).tolist() == [[0, 1]]
    batch = pixels[None, None]
    np.testing.assert_array_equal(
        grown(batch, ImageSize(3, 5), axes=(2, 3))[0, 0], grown(pixels, ImageSize(3, 5))
    )
    assert grown(pixels[:1, :1], ImageSize(2, 2)).tolist() == [[0, 0], [0, 0]]


def test_tiles_are_no_higher_than_strips_may_be() -> None:
    upscaler = Upscaler(active(), UpscaleOptions(tile=(40, 40), overlap=8))
    assert upscaler.plan(ImageSize(100, 100)).tile == (40, 40)
    assert upscaler.plan(ImageSize(100, 100), highest=24).tile == (24, 40)
    upscaler.limit = ImageSize(32, 16)
    assert upscaler.plan(ImageSize(100, 100), highest=24).tile == (24, 16)
    assert upscaler.plan(ImageSize(100, 100), highest=36).tile == (32, 16)


def test_a_comparison_shows_bicubic_on_the_left_and_the_network_on_the_right(
    source: Path, tmp_path: Path
) -> None:
    report = upscale_picture_file(
        Upscaler(active(scale=2)), source, tmp_path / "out.png", WriteOptions(compare=True)
    )
    assert report.comparison == tmp_path / "out_compare.png"
    halves = read_image(report.comparison)
    assert halves.shape == (10, 14 + 8 + 14, 3)
    bicubic = Image.open(source).resize((14, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(halves[:, :14], np.asarray(bicubic))
    assert (halves[:, 14:22] == 255).all()
    np.testing.assert_array_equal(halves[:, 22:], read_image(tmp_path / "out.png"))


def test_a_comparison_never_replaces_its_picture(source: Path, tmp_path: Path) -> None:
    source.rename(tmp_path / "out_compare.png")
    with pytest.raises(HspanError, match=r"out_compare\.png: is the input, and --compare would replace it"):
        upscale_picture_file(
            Upscaler(active()), tmp_path / "out_compare.png", tmp_path / "out.png", WriteOptions(compare=True)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out_compare.png"]


def test_what_tiles_change_is_measured_where_there_are_several(source: Path, tmp_path: Path) -> None:
    writing = WriteOptions(tile_effect=True)

    def measured(options: UpscaleOptions, runner: NearestRunner) -> Upscaled:
        return upscale_picture_file(Upscaler(runner, options), source, tmp_path / "out.png", writing)

    whole = measured(UpscaleOptions(), active())
    assert (whole.tiles, whole.tile_effect) == (1, None)
    assert whole.why_no_tile_effect == "the picture was taken as a whole"
    tiles = UpscaleOptions(tile=(3, 7), overlap=0)
    cut = measured(tiles, active())
    assert cut.tile_effect == TileEffect(psnr_db=math.inf, max_abs_difference=0)
    assert (cut.tiles, cut.tile_height, cut.tile_width, cut.why_no_tile_effect) == (2, 3, 7, None)
    runner = active()
    runner.profiles = (((1, 3, 1, 1), (1, 3, 3, 9)),)
    reason = measured(tiles, runner).why_no_tile_effect
    assert reason is not None
    assert "is 1x3x5x7, but nearest takes 1x3x1x1 to 1x3x3x9" in reason
    plain = upscale_picture_file(Upscaler(active()), source, tmp_path / "out.png")
    assert (plain.tile_effect, plain.why_no_tile_effect, plain.comparison, plain.streamed) == (
        None,
        None,
        None,
        False,
    )


class Brighter(NearestRunner):
    """Adds a half to what is cut."""

    def infer(self, batch: np.ndarray) -> np.ndarray:
        return super().infer(batch) + np.float32(0 if batch.shape[2] == 5 else 0.5)


def test_the_effect_of_tiles_is_the_mean_squared_difference_of_white_1() -> None:
    runner = Brighter(scale=2)
    runner.activate()
    batch = np.random.default_rng(0).random((1, 3, 5, 7), dtype=np.float32)
    effect = tile_effect(Upscaler(runner, UpscaleOptions(tile=(3, 7), overlap=0)), batch)
    assert effect.psnr_db == pytest.approx(-10 * math.log10(0.25))
    assert effect.max_abs_difference == pytest.approx(0.5)


@pytest.mark.parametrize(("most", "is_streamed"), [(4 * 5 * 7, False), (4 * 5 * 7 - 1, True)])
def test_a_result_of_more_pixels_than_are_taken_whole_is_streamed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, is_streamed: bool
) -> None:
    monkeypatch.setattr(pictures, "STREAM_PIXELS", most)
    report = upscale_picture_file(Upscaler(active(scale=2)), source, tmp_path / "out.png")
    assert report.streamed is is_streamed


def test_strips_have_32_rows_at_least(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_STRIP_BYTES", 1)
    write_picture(source, np.zeros((90, 7, 3), np.uint8))
    upscaler = Upscaler(active(scale=2), UpscaleOptions(tile=(64, 64), overlap=4))
    assert upscale_stream(upscaler, open_picture(source), tmp_path / "out.png").tile.height == 32


class ReachedError(Exception):
    """Where a picture's way ended."""


def reached(what: str) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise ReachedError(what)

    return call


@pytest.mark.parametrize(("scale", "way"), [(8192, "whole"), (8193, "in strips")])
def test_results_of_more_than_67_million_pixels_are_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: int, way: str
) -> None:
    """Of more than 8192x8192."""
    write_picture(tmp_path / "a.png", np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setattr(pictures, "whole_picture", reached("whole"))
    monkeypatch.setattr(pictures, "upscale_stream", reached("in strips"))
    with pytest.raises(ReachedError, match=f"^{way}$"):
        upscale_picture_file(Upscaler(active(scale=scale)), tmp_path / "a.png", tmp_path / "b.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_strip_has_96_mebibytes_of_pixels_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    write_picture(tmp_path / "a.png", np.zeros((1, 1000, 3), dtype))
    upscaler = Upscaler(active(scale=2))
    heights: list[int] = []

    def strips(*_: object, highest: int, **__: object) -> None:
        heights.append(highest)
        raise ReachedError

    monkeypatch.setattr(upscaler, "strips", strips)
    with pytest.raises(ReachedError):
        upscale_stream(upscaler, open_picture(tmp_path / "a.png"), tmp_path / "b.png")
    # A row of input gives two of 2000 pixels.
    assert heights == [(96 << 20) // (2 * 2000 * 3 * np.dtype(dtype).itemsize)]


@pytest.mark.parametrize("options", [{"self_ensemble": True}, {"protocol": "official"}])
def test_a_streamed_picture_may_be_turned_in_its_tiles_or_cut_as_the_official_code_does(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    write_picture(tmp_path / "a.png", pixels)
    upscaler = Upscaler(active(scale=2), UpscaleOptions(**options))
    upscale_stream(upscaler, open_picture(tmp_path / "a.png"), tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), pixels.repeat(2, 0).repeat(2, 1))


def test_the_time_of_a_picture_is_that_of_its_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([10.0, 20.0, 22.5])
    monkeypatch.setattr(pictures, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert upscale_picture_file(Upscaler(active()), source, tmp_path / "b.png").run_time_seconds == 2.5
