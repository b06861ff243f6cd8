"""`trt-hspan upscale` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.golden import GOLDEN, GoldenNetwork
from support.permissions import read_only
from support.small_engine import SmallEngine
from support.small_networks import write_attention_network

from trt_hspan.errors import OutOfMemoryError
from trt_hspan.machine.gpu import gpu_architectures
from trt_hspan.media.pictures import read_image
from trt_hspan.media.pixels import image_from_tensor, tensor_from_image
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime import torch_runner
from trt_hspan.runtime.torch_runner import TorchRunner

needs_no_gpu = pytest.mark.skipif(bool(gpu_architectures()), reason="a GPU would run the engine itself")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    write_picture(folder / "in.png", np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8))
    return folder / "in.png"


def upscaled_reference(network: GoldenNetwork, picture: Path) -> np.ndarray:
    with TorchRunner(network.checkpoint, res_scale=network.res_scale) as runner:
        return image_from_tensor(runner.run(tensor_from_image(read_image(picture))))


def test_checkpoint_runs_in_pytorch(
    run: CommandLine, picture: Path, tmp_path: Path, small_x4: GoldenNetwork
) -> None:
    target = tmp_path / "out.png"
    (tmp_path / ".trt-hspan-abcd0123").mkdir()  # of a run that was killed
    result = run(
        *("upscale", picture, "-o", target, "--checkpoint", small_x4.checkpoint),
        *("--res-scale", small_x4.res_scale, "--json"),
    )
    assert result.code == 0, result.err
    assert list(tmp_path.glob(".*")) == []
    report = json.loads(result.out)
    assert (report["output_height"], report["output_width"]) == (64, 80)
    assert report["backend"].startswith("PyTorch")
    assert report["emulated"] is False
    np.testing.assert_array_equal(read_image(target), upscaled_reference(small_x4, picture))


def test_checkpoint_runs_on_the_gpu_in_tiles_and_falls_back_to_smaller_ones(
    run: CommandLine, picture: Path, tmp_path: Path, small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GPU whose memory holds 300 pixels; the arithmetic is this CPU's."""
    monkeypatch.setattr(torch_runner, "gpu_device", lambda index, where: torch.device("cpu"))
    infer = TorchRunner.infer

    def in_little_memory(self: TorchRunner, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        if batch.shape[2] * batch.shape[3] > 300:
            raise OutOfMemoryError(self.where, "the GPU has not enough memory", "give smaller tiles")
        return infer(self, batch)

    monkeypatch.setattr(TorchRunner, "infer", in_little_memory)
    target = tmp_path / "out.png"
    words = ["upscale", picture, "-o", target, "--checkpoint", small_x4.checkpoint, "--device", "gpu:1"]
    report = json.loads(run(*words, "--precision", "fp16", "--json").out)
    assert report["backend"].endswith(" on the GPU 1, FP16")
    assert report["precision"] == "fp16"
    assert read_image(target).shape == (64, 80, 3)


def test_checkpoint_runs_in_bf16_where_the_processor_can(
    run: CommandLine, picture: Path, tmp_path: Path, small_x4: GoldenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: True)
    words = ["upscale", picture, "-o", tmp_path / "out.png", "--checkpoint", small_x4.checkpoint]
    words += ["--res-scale", small_x4.res_scale, "--precision", "bf16", "--json"]
    report = json.loads(run(*words).out)
    assert report["precision"] == "bf16"
    difference = read_image(tmp_path / "out.png").astype(int) - upscaled_reference(small_x4, picture)
    assert 0 < np.abs(difference).max() < 26  # tenths at most
    assert np.abs(difference).mean() < 2
    (tmp_path / "out.png").unlink()
    monkeypatch.setattr(torch_runner, "has_bf16_instructions", lambda device: False)
    refused = run(*words)
    assert refused.code == 1
    assert "no BF16 instructions" in refused.error_line
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "fp16"], "--precision: got 'fp16'"),
        (["--precision", "bf16", "--onnx", "a.onnx"], "--precision: is for --checkpoint"),
        (["--plugin", "p.so"], "--plugin: is for engines"),
        (["--plugin", "p.so", "--onnx", "a.onnx"], "--plugin: is for engines"),
    ],
)
def test_options_of_other_networks_are_wrong_usage(
    run: CommandLine, picture: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    result = run("upscale", picture, "-o", tmp_path / "out.png", *words)
    assert result.code == 2
    assert message in result.error_line


def test_a_plugin_library_that_is_none_is_reported_even_where_it_is_not_needed(
    run: CommandLine, picture: Path, tmp_path: Path, small_engine: SmallEngine
) -> None:
    words = ["upscale", picture, "-o", tmp_path / "out.png", "--engine", small_engine.plan, "--plugin"]
    assert "there is no plugin library here" in run(*words, tmp_path / "none.so").error_line
    assert "is no shared library" in run(*words, picture).error_line


def test_onnx_file_runs_under_onnxruntime_and_gives_the_same_picture(
    run: CommandLine, picture: Path, tmp_path: Path, small_x4: GoldenNetwork, exported: ExportCache
) -> None:
    target = tmp_path / "out.png"
    result = run("upscale", picture, "-o", target, "--onnx", exported("small_x4"), "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["backend"].startswith("ONNX Runtime")
    assert report["emulated"] is False  # FP32 is the CPU's own
    assert report["precision"] == "fp32"
    # Within 1e-4 before rounding to 1/255: a value close to a half may fall the other way.
    difference = read_image(target).astype(int) - upscaled_reference(small_x4, picture)
    assert np.abs(difference).max() <= 1
    assert np.count_nonzero(difference) < 0.05 * difference.size


@needs_no_gpu
def test_engine_without_a_gpu_says_that_it_is_emulated_and_why(
    run: CommandLine, picture: Path, tmp_path: Path, small_engine: SmallEngine
) -> None:
    result = run("upscale", picture, "-o", tmp_path / "out.jpg", "--engine", small_engine.plan)
    assert result.code == 0, result.err
    for words in ("FP16, emulated on CPU", "no NVIDIA GPU with a driver here"):
        assert words in result.out
    assert read_image(tmp_path / "out.jpg").shape == (64, 80, 3)


_BLOCKING = """
import sys
for name in ("torch", "polygraphy", "tensorrt", "tensorrt_rtx"):
    sys.modules[name] = None  # importing it fails, and looking for it finds nothing
from trt_hspan.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("kind", ["--onnx", "--engine"])
def test_needs_no_torch_for_onnx_files_and_engines(
    picture: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "--onnx":
        network = write_attention_network(tmp_path / "a.onnx", precision="fp16")
    elif gpu_architectures():
        pytest.skip("a GPU would run the engine itself, which needs Polygraphy")
    else:
        network = request.getfixturevalue("small_engine").plan
    words = ["upscale", picture, "-o", tmp_path / "out.png", kind, network]
    completed = subprocess.run(
        [sys.executable, "-c", _BLOCKING, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "out.png").exists()


def test_table_names_the_backend(run: CommandLine, picture: Path, tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "a.onnx", precision="bf16")
    result = run("upscale", picture, "-o", tmp_path / "out.png", "--onnx", network)
    assert result.code == 0, result.err
    for words in ("Upscaled in.png", "ONNX Runtime", "BF16, emulated on CPU"):
        assert words in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "hspan-x4", "--onnx", "a.onnx"], "--checkpoint --onnx: expected at most one"),
        (["--tile", "12by9"], "--tile: got '12by9', expected auto, none, one number or HxW"),
        (["--tile", "²x²"], "--tile: got '²x²', expected auto, none, one number or HxW"),
        (["--tile", "0x9"], "--tile: got '0x9', expected auto, none, one number or HxW"),
        (["--tile", "32x32", "--overlap", "17"], "--overlap: 17 pixels are more than half of the tile 32x32"),
        (["--tile", "none", "--overlap", "8"], "--overlap: is for tiles, and --tile none makes none"),
        (["--overlap", "-1"], "--overlap: -1 pixels make no sense"),
        (["--protocol", "chop"], "--protocol: got 'chop', expected one of tiles, official"),
        (["--protocol", "official", "--tile", "64x64"], "has its own tiles and margins"),
        (["--official-min-size", "9000"], "--official-min-size: is for --protocol official"),
        (["--format", "gif"], "--format: got 'gif', expected one of png"),
        (["--format", "png"], "--format: is for folders and pipes"),
        (["--quality", "0"], "--quality"),
        (["--crf", "99"], "--crf: got 99, expected 0 to 63"),
        (["-o", "out.mp4"], "in.png is a picture, this is a video's name"),
        (["--onnx", "a.plan"], "--onnx: got a.plan, expected a file that ends in .onnx"),
        (["--engine", "a.onnx"], "--engine: got a.onnx, expected a file that ends in .plan"),
        (["--checkpoint", "a.onnx"], "--checkpoint: got a.onnx, which is no checkpoint; use --onnx"),
        (["--onnx", "a.onnx", "--res-scale", "0.2"], "--res-scale: is for --checkpoint"),
        (["--onnx", "a.onnx", "-o", "out.xyz"], "out.xyz: cannot tell the format"),
        (["--checkpoint", str(GOLDEN / "small_x4.pt"), "--res-scale", "-1"], "'--res-scale'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: CommandLine, picture: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    result = run("upscale", picture, "-o", tmp_path / "out.png", *words)
    assert result.code == 2
    assert message in result.error_line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def failing(run: CommandLine, tmp_path: Path, *words: object) -> str:
    """The error line of a command that must fail with exit code 1 and leave no picture."""
    result = run("upscale", "-o", tmp_path / "out.png", *words)
    assert result.code == 1, result.out
    assert result.out == ""
    assert not (tmp_path / "out.png").exists()
    return result.error_line


def test_input_that_is_no_picture_is_one_line(run: CommandLine, tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "a.onnx")
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "empty.png").touch()
    for source, message in [
        (tmp_path / "a.txt", "a.txt: not a picture"),
        (tmp_path / "empty.png", "empty.png: is empty"),
        (tmp_path / "none.png", "none.png: no such file"),
    ]:
        assert message in failing(run, tmp_path, source, "--onnx", network)


def test_network_that_is_none_is_one_line(run: CommandLine, tmp_path: Path, picture: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not onnx")
    assert "a.onnx: not an ONNX" in failing(run, tmp_path, picture, "--onnx", tmp_path / "a.onnx")
    assert "no such file" in failing(run, tmp_path, picture, "--onnx", tmp_path / "none.onnx")
    assert "no such file" in failing(run, tmp_path, picture, "--engine", tmp_path / "none.plan")
    (tmp_path / "a.pt").write_bytes(b"not torch")
    assert "not a PyTorch checkpoint" in failing(run, tmp_path, picture, "--checkpoint", tmp_path / "a.pt")
    assert "did you mean the preset hspan-x4?" in failing(run, tmp_path, picture, "--checkpoint", "hspan-x44")


def test_folder_that_cannot_be_written_is_reported_before_the_work(
    run: CommandLine, tmp_path: Path, picture: Path
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    with read_only(folder):
        result = run("upscale", picture, "-o", folder / "out.png", "--checkpoint", "none.pt")
    assert result.code == 1
    assert "no permission to write" in result.error_line
