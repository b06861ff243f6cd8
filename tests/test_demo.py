"""The demo: the whole chain on the shipped network and photograph."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from support.command_line import CommandLine

from trt_hspan.cli.demo import next_lines
from trt_hspan.demo import DemoReport
from trt_hspan.media.pictures import read_image


@pytest.mark.slow
def test_demo_makes_engines_and_a_picture_better_than_bicubic(run: CommandLine, tmp_path: Path) -> None:
    result = run("demo", "-o", tmp_path, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["engines"]["plugin"]["network_layer_counts"]["PLUGIN_V3"] == 2
    assert "PLUGIN_V3" not in report["engines"]["function"]["network_layer_counts"]
    validation = report["validation"]
    assert validation["passed"]
    assert validation["total"]["candidate_quality"]["psnr_y_db"] > report["bicubic"]["psnr_y_db"]
    assert read_image(report["upscaled"]).shape == (300, 444, 3)
    assert read_image(report["comparison"]).shape[1] > 4 * 444
    assert {path.suffix for path in (tmp_path / "engines").iterdir()} == {".plan", ".onnx", ".json"}


def test_the_demo_ends_with_lines_to_type_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Report:
        photograph = Path("demo-output/photograph low.png")
        engines = {"function": (Path("demo-output/engines/x.plan"), None)}  # noqa: RUF012

    report = cast("DemoReport", cast("Any", Report))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    upscale = (
        "trt-hspan upscale 'demo-output/photograph low.png' -o larger.png --engine demo-output/engines/x.plan"
    )
    assert next_lines(report) == [upscale, "trt-hspan --help"]
    monkeypatch.delenv("VIRTUAL_ENV")
    assert next_lines(report) == [". .venv/bin/activate", upscale, "trt-hspan --help"]
