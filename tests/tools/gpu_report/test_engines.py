"""Steps f to h of `make gpu` as far as they go without a GPU: TensorRT-RTX builds, ONNX Runtime stands in for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tools.gpu_report import engines, programs
from tools.gpu_report.engines import Checks, check_engine, write_model_with_attribute
from trt_hspan.names import OP_TYPE


@pytest.fixture(scope="module")
def hwc8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checks, target = Checks(), tmp_path_factory.mktemp("formats") / "fp16-hwc8.onnx"
    write_model_with_attribute(checks, target, "fp16", "io_format", "hwc8")
    assert checks.failures == []
    return target


def test_a_format_is_written_to_every_attention_and_builds(hwc8: Path, tmp_path: Path) -> None:
    nodes = [node for node in onnx.load(hwc8).graph.node if node.op_type == OP_TYPE]
    assert len(nodes) == 2
    assert all(node.attribute[0].s == b"hwc8" for node in nodes)
    checks = Checks()
    words = ("--onnx", str(hwc8), "--flavor", "tensorrt-rtx", "--attention", "plugin", "--target", "sm_86")
    check_engine(checks, tmp_path / "engines" / "fp16-hwc8.plan", (*words, *engines._STATIC), device="cpu")
    assert checks.failures == []
    assert checks.results["engine fp16-hwc8"].endswith("dB against PyTorch, 50 are the bar")


@pytest.mark.parametrize(("configuration", "builds"), [("plain-32x128", True), ("tiled-two-looks", False)])
def test_a_tactic_is_forced_on_every_attention_or_the_build_fails(
    tmp_path: Path, configuration: str, builds: bool
) -> None:
    """Without a GPU, tiles are not among what runs on each GPU of the library."""
    checks, target = Checks(), tmp_path / "forced.onnx"
    write_model_with_attribute(checks, target, "fp16", "configuration", configuration)
    words = ("--onnx", str(target), "--flavor", "tensorrt-rtx", "--attention", "plugin", "--target", "sm_86")
    check_engine(checks, tmp_path / "engines" / "forced.plan", (*words, *engines._STATIC), device="cpu")
    assert (checks.failures == []) == builds


def test_an_engine_that_does_not_build_is_a_failure_with_the_commands_line(tmp_path: Path) -> None:
    checks = Checks()
    check_engine(checks, tmp_path / "engines" / "none.plan", ("--onnx", str(tmp_path / "none.onnx")))
    assert len(checks.failures) == 1
    assert "none.onnx" in checks.failures[0]
    assert checks.results["engine none"].startswith("FAILED: ")


def test_without_an_engine_of_step_f_the_later_steps_say_so(tmp_path: Path) -> None:
    assert programs.run_programs(tmp_path)["left_out"] == ["C++ runtime, trtexec: step f left no engine"]
    assert programs.run_server(tmp_path)["left_out"] == ["Triton: step f left no engine"]


@pytest.mark.parametrize(
    ("program", "address"),
    [
        (
            "import time; print('noise'); print('{\"event\": \"starting\"}', flush=True); time.sleep(0.3);"
            'print(\'{"event": "ready", "http": "http://127.0.0.1:1234"}\', flush=True); time.sleep(20)',
            "http://127.0.0.1:1234",
        ),
        ("print('it ends')", None),
    ],
)
def test_the_servers_address_is_what_it_says_when_it_is_ready(program: str, address: str | None) -> None:
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert programs._address_when_ready(process) == address
        process.kill()


@pytest.mark.parametrize(("difference", "passes"), [(1, True), (2, False)])
def test_a_picture_may_differ_by_one_step(
    difference: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((4, 5, 3), 7, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "served.png")
    pixels[2, 3, 1] += difference
    done = subprocess.CompletedProcess([], 0, "", "")

    def upscale(*words: object) -> subprocess.CompletedProcess[str]:
        Image.fromarray(pixels).save(str(words[-1]))
        return done

    monkeypatch.setattr(programs, "command_line", upscale)
    checks = Checks()
    programs._check_picture(checks, "Triton", tmp_path / "x.plan", done, tmp_path / "served.png")
    assert checks.results["Triton"].endswith(f"at most {difference} of 255 from trt-hspan upscale")
    assert (checks.failures == []) == passes


def test_trtexec_is_left_out_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs.shutil, "which", lambda _: None)
    checks = Checks()
    programs._check_trtexec(checks, tmp_path, tmp_path / "x.plan")
    assert checks.left_out == ["trtexec: not installed"]
