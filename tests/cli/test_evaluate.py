"""`trt-hspan evaluate` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.command_line import CommandLine
from support.runner_doubles import NearestRunner
from support.synthetic_pictures import picture

from trt_hspan.evaluation.resize import downscale
from trt_hspan.media.writing import write_picture
from trt_hspan.runtime import opening


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three toy sets; a double stands for every network that is opened."""
    monkeypatch.setattr(opening, "open_runner", lambda *_, **__: NearestRunner(source_sha256="a"))
    for index, name in enumerate(("Set5", "Set14", "B100")):
        high = picture(136, 160, seed=index)
        write_picture(tmp_path / "data" / name / "HR" / "cat.png", high)
        write_picture(tmp_path / "data" / name / "LR_bicubic/X4/catx4.png", downscale(high, 4))
    return tmp_path / "data"


def test_several_sets_stand_in_one_table_and_in_the_files(
    run: CommandLine, data: Path, tmp_path: Path
) -> None:
    files = tmp_path / "r.json", tmp_path / "r.md"
    words = ("--data", data, "--sets", "B100", "Set5", "--json", files[0], "--markdown", files[1])
    result = run("evaluate", "net.pt", *words)
    assert (result.code, result.err) == (0, "")
    report = json.loads(files[0].read_text())
    assert [measured["name"] for measured in report["sets"]] == ["B100", "Set5"]
    table = [line.split() for line in result.out.splitlines() if line.startswith("│ B100 ")][-1]
    quality, bicubic = report["sets"][0]["quality"], report["sets"][0]["bicubic"]
    cells = [f"{quality['psnr_y_db']:.3f}", f"{quality['ssim_y']:.4f}"]
    cells += [f"{bicubic['psnr_y_db']:.3f}", f"{bicubic['ssim_y']:.4f}"]
    assert [cell for cell in table if cell != "│"][:6] == ["B100", "1", *cells]
    page = files[1].read_text()
    assert page.startswith("nearest at scale 4, numpy, FP32, protocol official.\n")
    assert f"| B100 | 1 | {' | '.join(cells)} |" in page
    assert f"| cat | 34x40 | {' | '.join(cells)} |" in page
    assert run("evaluate", "--sets", "Set14", "Set5", "--data", data, "net.pt").code == 0


def test_remarks_stand_below_the_tables(run: CommandLine, data: Path, tmp_path: Path) -> None:
    for folder in ("HR/cat.png", "LR_bicubic/X4/catx4.png"):
        side = 136 if folder.startswith("HR") else 34
        write_picture(data / "Set5" / folder, np.full((side, side, 3), 99, np.uint8))
    result = run("evaluate", "net.pt", "--data", data, "--sets", "Set5", "--markdown", tmp_path / "r.md")
    assert "Set5/cat: restored exactly" in result.out
    assert result.out.count(" exact ") == 4  # network and bicubic, of the picture and of its set
    assert (
        "\n- Set5/cat: restored exactly, so it is not in the mean PSNR-Y\n" in (tmp_path / "r.md").read_text()
    )


def test_at_scale_1_the_input_is_what_stands_beside(
    run: CommandLine, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_runner", lambda *_, **__: NearestRunner(scale=1))
    write_picture(data / "Set5/LR_bicubic/X1/catx1.png", picture(136, 160, seed=7))
    head = run("evaluate", "net.pt", "--data", data, "--sets", "Set5").out.splitlines()[1]
    assert [cell.strip() for cell in head.split("┃")][2:7] == ["size", "PSNR-Y", "SSIM", "input", "its SSIM"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "chop"], "--protocol: got 'chop', expected official, whole or tiles"),
        (["--tile", "24"], "--tile: is for --protocol tiles"),
        (["--protocol", "tiles", "--tile", "0"], "--tile: got '0x0'"),
        (["--json", "a", "--markdown", "a"], "--markdown: a is the file of --json"),
        (["--plugin", "p.so"], "--plugin: is for engines"),
    ],
)
def test_wrong_usage_is_exit_code_2(run: CommandLine, data: Path, words: list[str], message: str) -> None:
    result = run("evaluate", "net.pt", "--data", data, *words)
    assert result.code == 2
    assert message in result.error_line


def test_a_residual_scale_is_for_checkpoints(run: CommandLine, data: Path) -> None:
    result = run("evaluate", "net.onnx", "--data", data, "--res-scale", "0.1")
    assert result.code == 2
    assert "--res-scale: is for checkpoints; ONNX files and engines have theirs" in result.error_line


def test_bad_data_is_one_line_and_leaves_nothing_behind(run: CommandLine, data: Path, tmp_path: Path) -> None:
    words = ("--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md")
    for folder, message in ((data / "none", "none: no such folder"), (tmp_path / "data/Set5/HR/..", "")):
        result = run("evaluate", "net.pt", "--data", folder, "--sets", "Set99", *words)
        assert result.code == 1
        assert (message or "contains no set Set99") in result.error_line
    assert not any(tmp_path.glob("r.*"))


def test_networks_that_cannot_be_opened_are_one_line(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_text("words")
    for name, message in (("none.pt", "no such file"), ("broken.pt", "not a PyTorch checkpoint")):
        result = run("evaluate", tmp_path / name, "--data", tmp_path)
        assert result.code == 1
        assert message in result.error_line
