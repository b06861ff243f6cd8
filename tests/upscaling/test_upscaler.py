"""One picture in, one picture out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.media.pictures import read_image
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime import memory
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.pictures import upscale_file


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
