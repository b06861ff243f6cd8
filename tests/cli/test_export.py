"""`trt-hspan export` as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from support.command_line import CommandLine
from support.golden import GOLDEN, GoldenNetwork

from trt_hspan import load_model
from trt_hspan.files import sha256_from_file
from trt_hspan.graph import load_onnx, precision_from_model
from trt_hspan.model.presets import shipped_weights


def test_writes_a_model_and_says_what_it_is(
    run: CommandLine, tmp_path: Path, small_x4: GoldenNetwork
) -> None:
    target = tmp_path / "new" / "folder" / "net.onnx"
    result = run(
        "export", small_x4.checkpoint, "-o", target, "--precision", "fp16", "--static", "12x14", "--json"
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["input_shape"] == [1, 3, 12, 14]
    assert (report["precision"], report["scale"], report["attention_nodes"]) == ("fp16", 4, 2)
    assert report["sha256"] == sha256_from_file(target)
    assert report["source_sha256"] == sha256_from_file(small_x4.checkpoint)
    assert precision_from_model(load_onnx(target)) == "fp16"


def test_prints_a_table_for_people(run: CommandLine, tmp_path: Path, small_x4: GoldenNetwork) -> None:
    result = run("export", small_x4.checkpoint, "-o", tmp_path / "net.onnx")
    assert result.code == 0
    for words in ("HSPAN x4, 32 features", "attention nodes", "opset"):
        assert words in result.out


@pytest.mark.parametrize(
    ("options", "domain"), [(["--for", "ort-tensorrt"], "trt.plugins"), (["--no-function-body"], "hspan")]
)
def test_writes_the_attention_for_a_plugin_without_a_body(
    run: CommandLine, tmp_path: Path, small_x4: GoldenNetwork, options: list[str], domain: str
) -> None:
    target = tmp_path / "net.onnx"
    result = run("export", small_x4.checkpoint, "-o", target, *options, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["plugin_domains"] == [domain]
    assert report["attention_nodes"] == 2
    assert not report["attention_has_a_function_body"]
    model = onnx.load(target)
    assert [node.domain for node in model.graph.node if node.domain] == [domain, domain]
    assert not model.functions


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--for", "tensorrt"], 2, "--for: got 'tensorrt', expected ort-tensorrt"),
        (["--precision", "int4"], 2, "--precision: 'int4' is unknown"),
        (["--static", "12"], 2, "--static: got '12', expected height x width"),
        (["--static", "0x12"], 2, "--static"),
        (["--opset", "9"], 2, "--opset: 9 has no fp32"),
        (["--res-scale", "-1"], 2, "'--res-scale'"),
        (["-o", "net.engine"], 2, "ends in .onnx"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: CommandLine, tmp_path: Path, small_x4: GoldenNetwork, options: list[str], code: int, words: str
) -> None:
    result = run("export", small_x4.checkpoint, "-o", tmp_path / "net.onnx", *options)
    assert result.code == code
    assert words in result.error_line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "no checkpoint", "truncated", "other network", "wrong shape"])
def test_bad_checkpoint_is_one_line_and_exit_code_1(
    run: CommandLine, tmp_path: Path, state: dict[str, torch.Tensor], kind: str
) -> None:
    checkpoint = tmp_path / "net.pt"
    if kind == "no checkpoint":
        checkpoint.write_text("hello")
    elif kind == "truncated":
        checkpoint.write_bytes((GOLDEN / "small_x2.pt").read_bytes()[:1000])
    elif kind == "other network":
        torch.save({"head.0.weight": torch.zeros(3, 3, 3, 3)}, checkpoint)
    elif kind == "wrong shape":
        state["tail.1.bias"] = torch.zeros(4)
        torch.save(state, checkpoint)
    output = tmp_path / "out"
    result = run("export", checkpoint, "-o", output / "net.onnx")
    assert result.code == 1
    assert str(checkpoint) in result.error_line
    assert not output.exists()


def test_output_that_cannot_be_written_is_one_error_line(
    run: CommandLine, tmp_path: Path, small_x4: GoldenNetwork
) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = run("export", small_x4.checkpoint, "-o", tmp_path / "file" / "net.onnx")
    assert result.code == 1
    assert "net.onnx" in result.error_line


def test_full_disk_leaves_no_half_file(tmp_path: Path, small_x4: GoldenNetwork) -> None:
    # A limit on file sizes stands in for the full disk: the write fails in the middle.
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import trt_hspan.cli, trt_hspan.export;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "trt_hspan.cli.main(sys.argv[1:])"
    )
    words = ["export", str(small_x4.checkpoint), "-o", str(tmp_path / "net.onnx")]
    completed = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 1
    assert completed.stderr.count("\n") == 1, completed.stderr
    assert "net.onnx" in completed.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "trt_hspan", "export", str(tmp_path / "no.pt"), "-o", "x.onnx", "--debug"]
    completed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert completed.returncode == 1
    assert "Traceback" in completed.stderr


def test_export_tells_the_residual_scale_that_it_takes(
    tmp_path: Path, run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(checkpoint: str, output: Path, *_: object, **__: object) -> None:
        """Reads the checkpoint; the network is a shipped one."""
        load_model(checkpoint)
        shipped = shipped_weights("hspan-tiny-x2")
        assert shipped is not None
        shutil.copy(shipped.with_suffix(".onnx"), output)

    monkeypatch.setattr("trt_hspan.precision.audit.network_audit.export_audited", exported)
    path = tmp_path / "net.pt"
    torch.save({"params": torch.load(GOLDEN / "small_x2.pt", weights_only=True)}, path)
    result = run("export", path, "-o", tmp_path / "net.onnx")
    lines = result.err.splitlines()
    assert result.code == 0
    assert [line.startswith(f"trt-hspan: note: {path}: ") for line in lines] == [True, True], result.err
    assert "['params']" in lines[0]
    assert "the default 0.1, which --res-scale changes" in lines[1]
    assert "residual scale" not in run("export", path, "-o", tmp_path / "b.onnx", "--res-scale", "0.1").err
    assert run("export", "hspan-tiny-x2", "-o", tmp_path / "c.onnx").err == ""
