"""The demo: the whole chain on the shipped network and photograph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import CommandLine

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
