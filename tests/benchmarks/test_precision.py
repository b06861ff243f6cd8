"""The benchmark of precisions, run as a user runs it, on pictures small enough for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.golden import GOLDEN
from support.synthetic_pictures import picture

from trt_hspan.evaluation.resize import downscale
from trt_hspan.media.writing import write_picture

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "precision.py"


def test_every_network_is_measured_beside_onnxruntime_s_own_quantization(tmp_path: Path) -> None:
    for index in range(2):
        high = picture(96, 96, seed=index)
        write_picture(tmp_path / "HR" / f"{index}.png", high)
        write_picture(tmp_path / "LR_bicubic" / "X4" / f"{index}x4.png", downscale(high, 4))
    options = ["--images", tmp_path, "--calibration", tmp_path, "--methods", "minmax", "--tiles", 2, "--json"]
    words = [sys.executable, SCRIPT, "--checkpoint", GOLDEN / "small_x4.pt", *options]
    result = subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["pictures"] == 2
    networks = {entry["network"]: entry for entry in report["networks"]}
    assert list(networks) == ["fp32", "fp16", "bf16", "int8, minmax", "int8, ONNX Runtime defaults"]
    worst = [entry["psnr_worst_db"] for entry in networks.values()]
    assert worst[0] > 100 > worst[1] > worst[2] > worst[4]
    # FP16's promise, which holds for any network whose values are in its range.
    assert networks["fp16"]["psnr_worst_db"] >= 55
    assert abs(networks["fp16"]["psnr_y_loss_db"]) <= 0.005
    assert networks["fp16"]["size_bytes"] < 0.6 * networks["fp32"]["size_bytes"]
    assert networks["int8, minmax"]["quantized_mac_share"] > 0.5
    assert networks["fp32"]["quantized_mac_share"] == 0
    assert all(entry["cpu_seconds"] > 0 for entry in networks.values())


@pytest.mark.parametrize(("words", "code"), [(["--checkpoint", "none.pt"], 1), (["--methods", "guess"], 2)])
def test_wrong_request_is_reported_without_a_traceback(words: list[str], code: int, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == code
    assert "Traceback" not in result.stderr
