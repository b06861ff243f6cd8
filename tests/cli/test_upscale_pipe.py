"""`trt-hspan upscale` between standard input and standard output."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.command_line import CommandLine
from support.small_networks import write_attention_network

from trt_hspan.media.pictures import read_picture
from trt_hspan.media.writing import encode_image
from trt_hspan.upscaling import pictures


def picture(suffix: str, height: int = 12, width: int = 14) -> bytes:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    return encode_image(pixels, suffix)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Scale 1, a second to load."""
    return write_attention_network(tmp_path / "network.onnx")


@pytest.fixture
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def through_pipes(data: bytes, *words: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "trt_hspan", "upscale", *map(str, words)]
    return subprocess.run(command, input=data, capture_output=True, check=False)


def send(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_picture_comes_out_in_its_own_format_or_another(network: Path) -> None:
    for data, options, expected in [
        (picture(".jpg"), (), "JPEG"),
        (picture(".png"), ("--format", "webp"), "WEBP"),
    ]:
        process = through_pipes(data, "-", "-o", "-", "--onnx", network, *options)
        assert process.returncode == 0, process.stderr
        result = Image.open(io.BytesIO(process.stdout))
        assert (result.format, result.size) == (expected, (14, 12))


def test_bytes_that_are_no_picture_are_one_line_and_nothing_is_sent(network: Path) -> None:
    for data in (b"", b"words", picture(".png", 50, 50)[:3000]):
        process = through_pipes(data, "-", "-o", "-", "--onnx", network)
        assert (process.returncode, process.stdout) == (1, b"")
        assert process.stderr.startswith(b"trt-hspan: error: standard input: ")
        assert process.stderr.count(b"\n") == 1


def test_a_pipe_into_a_file_reports_as_files_do_and_leaves_nothing_else(
    run: CommandLine,
    tmp_path: Path,
    network: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_temporary_folder: Path,
) -> None:
    send(monkeypatch, picture(".png"))
    result = run(
        "upscale", "-", "-o", tmp_path / "b.tif", "--onnx", network, "--json", "--compare", "--tile", "8x8",
        "--tile-effect",
    )  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["input"] == "-"
    assert report["tile_effect"]["psnr_db"] > 0
    assert read_picture(tmp_path / "b.tif").pixels.shape == (12, 14, 3)
    assert read_picture(tmp_path / "b_compare.png").pixels.shape == (12, 36, 3)
    assert not list(own_temporary_folder.iterdir())


def test_a_large_picture_is_streamed_from_pipe_to_pipe(
    run: CommandLine,
    tmp_path: Path,
    network: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_temporary_folder: Path,
) -> None:
    monkeypatch.setattr(pictures, "STREAM_PIXELS", 100)
    data = picture(".png", 20, 24)
    send(monkeypatch, data)
    result = run("upscale", "-", "-o", tmp_path / "b.png", "--onnx", network, "--json")
    assert json.loads(result.out)["streamed"] is True, result.err

    sent = io.TextIOWrapper(io.BytesIO())
    send(monkeypatch, data)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", sent)
        assert run("upscale", "-", "-o", "-", "--onnx", network).code == 0
    assert isinstance(sent.buffer, io.BytesIO)
    assert sent.buffer.getvalue() == (tmp_path / "b.png").read_bytes()

    send(monkeypatch, data)
    refused = run("upscale", "-", "-o", "-", "--onnx", network, "--format", "bmp")
    assert (refused.code, refused.out) == (1, "")
    assert refused.error_line.startswith("trt-hspan: error: standard output.bmp: 20x24 pixels are too many")
    assert not list(own_temporary_folder.iterdir())


def test_what_does_not_go_with_a_pipe_is_refused(
    run: CommandLine, tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(monkeypatch, b"")
    (tmp_path / "a.mp4").touch()
    for words, message in [
        (("-", "a.png", "-o", "-"), "-: a pipe carries one picture"),
        (("a.png", "-o", "-", "--json"), "--json: does not go with a pipe"),
        (("a.png", "-o", "-", "--compare"), "--compare: does not go with a pipe"),
        (("-", "-o", tmp_path / "a.png", "--format", "jpg"), "--format: is for folders and pipes"),
        (("-", "-o", tmp_path / "a.png", "--crf", "20"), "--crf: is for videos"),
        ((tmp_path / "a.mp4", "-o", "-"), "a.mp4 is a video; name a file to write"),
        (("-", "-o", tmp_path / "b.mp4", "--compare"), "--compare: is for pictures"),
    ]:
        result = run("upscale", *words, "--onnx", network)
        assert result.code == 2, words
        assert message in result.error_line


def test_an_end_that_is_closed_or_a_terminal_is_an_error(
    run: CommandLine, tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("upscale", "-", "-o", tmp_path / "a.png", "--onnx", network)
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input: is closed" in run(*words).error_line
    send(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    result = run(*words)
    assert result.code == 2
    assert "standard input: is a terminal" in result.error_line


def test_too_little_memory_for_the_input_is_reported_with_what_to_do(
    run: CommandLine, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self")
    send(monkeypatch, picture(".png"))
    result = run("upscale", "-", "-o", "-", "--onnx", network)
    assert result.code == 1
    assert "needs a temporary folder" in result.error_line
    assert "set TMPDIR" in result.error_line
