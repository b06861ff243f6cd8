"""`trt-hspan upscale` on folders, odd files, and when it is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from support.command_line import CommandLine
from support.runner_doubles import NearestRunner
from support.small_networks import write_attention_network

from trt_hspan.cli.upscale import job
from trt_hspan.errors import HspanError
from trt_hspan.jobs.folders import Task, TaskReport, turn_in_folder
from trt_hspan.media.pictures import read_picture
from trt_hspan.media.writing import encode_image, write_picture
from trt_hspan.runtime import memory
from trt_hspan.upscaling import tile_size
from trt_hspan.upscaling.pictures import WriteOptions, upscale_picture_file
from trt_hspan.upscaling.upscaler import Upscaler


def pixels(height: int = 12, width: int = 14, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    random = np.random.default_rng(height)
    return random.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Scale 1, a second to load."""
    return write_attention_network(tmp_path / "network.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good pictures, and four files that are none."""
    root = tmp_path / "in"
    for name, picture in [
        ("a.png", pixels(dtype=np.uint16)),
        ("sub/gray.jpg", pixels(9, 9, 1)),
        ("sub/alpha.webp", pixels(9, 8, 4)),
        ("folder.png/one.png", pixels(1, 1)),
    ]:
        write_picture(root / name, picture)
    (root / "zero.png").touch()
    (root / "words.jpg").write_text("no picture")
    (root / "cut.png").write_bytes(encode_image(pixels(50, 50), ".png")[:3000])
    return root


def test_a_folder_with_bad_files_does_the_rest_and_reports_at_the_end(
    run: CommandLine, tmp_path: Path, folder: Path, network: Path
) -> None:
    out = tmp_path / "out"
    result = run("upscale", folder, "-o", out, "--onnx", network, "--json")
    assert result.code == 1
    lines = result.err.strip().splitlines()
    assert len(lines) == 3
    for name, line in zip(("cut.png", "words.jpg", "zero.png"), lines, strict=True):
        assert line.startswith(f"trt-hspan: error: {folder / name}: ")
    report = json.loads(result.out)
    assert (report["done"], report["skipped"], report["failed"]) == (4, 0, 3)
    assert {Path(entry["input"]).name for entry in report["files"] if entry["error"]} == {
        "cut.png",
        "words.jpg",
        "zero.png",
    }
    assert read_picture(out / "a.png").pixels.dtype == np.uint16
    assert read_picture(out / "sub" / "gray.jpg").pixels.shape == (9, 9, 1)
    assert read_picture(out / "sub" / "alpha.webp").pixels.shape == (9, 8, 4)
    assert read_picture(out / "folder.png" / "one.png").pixels.shape == (1, 1, 3)
    again = json.loads(run("upscale", folder, "-o", out, "--onnx", network, "--json").out)
    assert (again["done"], again["skipped"], again["failed"]) == (0, 4, 3)
    refused = run("upscale", folder / "a.png", "-o", out, "--onnx", network, "--tile", "16x16")
    assert refused.code == 1
    assert "was written with another network or other options; give --overwrite" in refused.err


def test_another_onnx_file_of_the_same_checkpoint_is_another_network(
    run: CommandLine, tmp_path: Path, network: Path
) -> None:
    write_picture(tmp_path / "in" / "a.png", pixels(9, 9))
    words = ("upscale", tmp_path / "in", "-o", tmp_path / "out", "--onnx")
    assert run(*words, network).code == 0
    copy = shutil.copy(network, tmp_path / "copy.onnx")
    assert json.loads(run(*words, copy, "--json").out)["skipped"] == 1
    model = onnx.load(network)
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    refused = run(*words, tmp_path / "other.onnx")
    assert refused.code == 1
    assert "was written with another network or other options" in refused.err


def test_a_comparison_never_replaces_an_input_or_another_result(
    run: CommandLine, tmp_path: Path, network: Path
) -> None:
    source = tmp_path / "in" / "a_compare.png"
    write_picture(source, pixels(9, 9))
    before = source.read_bytes()
    words = ("--onnx", network, "--compare")
    alone = run("upscale", source, "-o", source.with_name("a.png"), *words)
    assert alone.code == 2
    assert "is an input too; rename one of them" in alone.error_line
    assert source.read_bytes() == before
    assert [path.name for path in source.parent.iterdir()] == [source.name]
    write_picture(source.with_name("a.png"), pixels(9, 9))
    both = run("upscale", source.parent, "-o", tmp_path / "out", *words)
    assert both.code == 2
    assert "is another result too; rename one of them" in both.error_line
    assert not (tmp_path / "out").exists()
    with NearestRunner(scale=1) as runner, pytest.raises(HspanError, match="--compare would replace it"):
        upscale_picture_file(Upscaler(runner), source, source.with_name("a.png"), WriteOptions(compare=True))
    assert source.read_bytes() == before


def test_a_finished_folder_is_not_passed_off_as_compared(
    run: CommandLine, tmp_path: Path, network: Path
) -> None:
    write_picture(tmp_path / "in" / "a.png", pixels(9, 9))
    words = ("upscale", tmp_path / "in", "-o", tmp_path / "out", "--onnx", network)
    assert run(*words).code == 0
    refused = run(*words, "--compare")
    assert refused.code == 1
    assert "other options; give --overwrite" in refused.err
    assert run(*words, "--compare", "--overwrite").code == 0
    assert (tmp_path / "out" / "a_compare.png").is_file()


def test_a_pipe_among_the_files_is_reported_and_names_need_not_be_utf_8(
    run: CommandLine, tmp_path: Path, network: Path
) -> None:
    folder = tmp_path / "in"
    write_picture(folder / "good.png", pixels(9, 9))
    odd = folder / os.fsdecode(b"odd\xff.png")
    shutil.copy(folder / "good.png", odd)
    os.mkfifo(folder / "fifo.png")
    os.mkfifo(folder / "fifo.mp4")
    result = run("upscale", folder, "-o", tmp_path / "out", "--onnx", network)
    assert result.code == 1
    lines = result.err.strip().splitlines()
    assert len(lines) == 2
    assert all("is a pipe, a socket or a device, expected a file; copy it" in line for line in lines)
    assert (tmp_path / "out" / odd.name).read_bytes() == (tmp_path / "out" / "good.png").read_bytes()


def test_patterns_several_inputs_and_another_format(
    run: CommandLine, tmp_path: Path, folder: Path, network: Path
) -> None:
    out = tmp_path / "out"
    words = (folder / "a.png", folder / "sub" / "*.webp", "--format", "tif", "--compare")
    result = run("upscale", *words, "-o", out, "--onnx", network)
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == [
        "a.tif",
        "a_compare.png",
        "alpha.tif",
        "alpha_compare.png",
    ]
    assert read_picture(out / "a_compare.png").pixels.shape == (12, 14 + 8 + 14, 3)
    assert "done" in result.out


def test_cmyk_palette_and_interlaced_files_pass(run: CommandLine, tmp_path: Path, network: Path) -> None:
    Image.new("CMYK", (9, 8), (10, 90, 30, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(pixels()).quantize(16).save(tmp_path / "palette.png")
    for name in ("cmyk.jpg", "palette.png"):
        result = run("upscale", tmp_path / name, "-o", tmp_path / f"out_{name}", "--onnx", network)
        assert result.code == 0, result.err
        assert read_picture(tmp_path / f"out_{name}").pixels.shape[2] == 3


def test_memory_that_is_short_means_tiles_and_the_report_says_so(
    run: CommandLine, tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "a.png", pixels(40, 40))
    for module in (memory, tile_size):
        monkeypatch.setattr(module, "available_memory_bytes", lambda: 1000)
    words = upscale_words(tmp_path, network, "--overwrite")
    result = run(*words, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["tiles"] > 1
    assert report["tile_height"] < 40
    assert "attention sees one tile at a time" in run(*words).out
    line = run(*words, "--tile", "none").error_line
    assert "a.png: 40x40 pixels as a whole need about" in line
    assert "leave out --tile none" in line


def upscale_words(folder: Path, network: Path, *options: str) -> tuple[object, ...]:
    return ("upscale", folder / "a.png", "-o", folder / "b.png", "--onnx", network, *options)


def test_the_effect_of_tiles_is_measured(run: CommandLine, tmp_path: Path, network: Path) -> None:
    write_picture(tmp_path / "a.png", pixels(30, 30))
    words = upscale_words(tmp_path, network, "--tile-effect", "--json", "--overwrite")
    tiled = json.loads(run(*words, "--tile", "16x16", "--overlap", "4").out)
    assert 10 < tiled["tile_effect"]["psnr_db"] < 120
    assert tiled["tile_effect"]["max_abs_difference"] > 0
    whole = json.loads(run(*words).out)
    assert whole["tile_effect"] is None
    assert whole["why_no_tile_effect"] == "the picture was taken as a whole"


def test_official_protocol_shows_a_picture_that_is_too_small(
    run: CommandLine, tmp_path: Path, network: Path
) -> None:
    write_picture(tmp_path / "a.png", pixels(40, 40))
    words = upscale_words(tmp_path, network, "--protocol", "official", "--overwrite")
    assert json.loads(run(*words, "--json").out)["tiles"] == 4
    write_picture(tmp_path / "a.png", pixels(20, 20))
    assert "too small to be quartered" in run(*words).error_line


def test_a_picture_of_another_size_than_a_static_network_is_tiled(run: CommandLine, tmp_path: Path) -> None:
    network = write_attention_network(tmp_path / "a.onnx", shape=(1, 3, 20, 16))
    write_picture(tmp_path / "a.png", pixels(50, 9))
    words = upscale_words(tmp_path, network, "--overwrite")
    assert run(*words).code == 0
    assert read_picture(tmp_path / "b.png").pixels.shape == (50, 9, 3)
    assert "--tile 16x16: is 1x3x16x16, but" in run(*words, "--tile", "16x16").error_line


def test_options_for_files_that_are_not_there_are_wrong_usage(
    run: CommandLine, tmp_path: Path, network: Path
) -> None:
    write_picture(tmp_path / "a.png", pixels())
    (tmp_path / "v.mp4").touch()
    for source, target, option, message in [
        ("a.png", "b.png", ("--codec", "libx264"), "--codec: is for videos, and there is none"),
        ("a.png", "b.png", ("--crf", "9"), "--crf: is for videos"),
        ("v.mp4", "b.mp4", ("--quality", "9"), "--quality: is for pictures, and there is none"),
        ("v.mp4", "b.mp4", ("--compare",), "--compare: is for pictures"),
        ("v.mp4", "b.mp4", ("--codec", "nosuch"), "--codec: no encoder is named 'nosuch'"),
    ]:
        result = run("upscale", tmp_path / source, "-o", tmp_path / target, "--onnx", network, *option)
        assert result.code == 2
        assert message in result.error_line


def test_a_terminal_sees_share_throughput_and_time_left(
    run: CommandLine, tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal then
    monkeypatch.setenv("COLUMNS", "200")
    for index in range(3):
        write_picture(tmp_path / "in" / f"{index}.png", pixels())
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--onnx", network)
    assert result.code == 0
    for words in ("3 of 3: 2.png", "100%", "MP/s", "left"):
        assert words in result.err


# Other processes
# ----------------------------------------------------------------------------------------------


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "trt_hspan", "upscale", *map(str, words)]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_stopped_leaves_whole_files_and_goes_on_later(
    tmp_path: Path, network: Path, kind: signal.Signals
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    count = 60  # far more than are done between two looks at the folder
    for index in range(count):
        write_picture(source / f"{index:02}.png", pixels(100 + index, 90))
    process = subprocess.Popen(
        command(source, "-o", out, "--onnx", network, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("[0-9]*.png")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(kind)
    _, err = process.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.png")}
    assert 0 < len(finished) < count
    for path in out.glob("[0-9]*.png"):
        assert read_picture(path).pixels.shape[1] == 90
    if kind is not signal.SIGKILL:  # nobody can tidy up after that one
        assert process.returncode == 130
        assert b"interrupted; nothing half-written was left" in err
        assert {path.name for path in out.iterdir() if path.name[0] == "."} <= {".trt-hspan-journal.jsonl"}
    completed = subprocess.run(
        command(source, "-o", out, "--onnx", network, "--json"), capture_output=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    report = json.loads(completed.stdout)
    assert (report["done"] + report["skipped"], report["failed"]) == (count, 0)
    assert report["skipped"] == len(finished)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert len(list(out.glob("[0-9]*.png"))) == count
    assert not list(out.glob(".trt-hspan-*/"))  # what a killed run left half-written


def test_an_existing_result_is_replaced_on_request_only(
    run: CommandLine, tmp_path: Path, network: Path
) -> None:
    write_picture(tmp_path / "a.png", pixels())
    write_picture(tmp_path / "b.png", pixels(2, 2))
    before = (tmp_path / "b.png").read_bytes()
    result = run(*upscale_words(tmp_path, network))
    assert (result.code, result.error_line) == (
        1,
        f"trt-hspan: error: {tmp_path / 'b.png'}: exists; give --overwrite or another name",
    )
    assert (tmp_path / "b.png").read_bytes() == before
    assert run(*upscale_words(tmp_path, network, "--overwrite")).code == 0
    assert read_picture(tmp_path / "b.png").pixels.shape == (12, 14, 3)
    (tmp_path / "c_compare.png").touch()
    words = ("upscale", tmp_path / "a.png", "-o", tmp_path / "c.png", "--onnx", network, "--compare")
    assert "c_compare.png: exists" in run(*words).error_line


def test_a_folder_says_what_it_left_out_and_takes_files_by_content(
    run: CommandLine, tmp_path: Path, network: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.jfif").write_bytes(encode_image(pixels(), ".jpg"))
    (root / "b.pbm").write_bytes(b"P4\n8 2\n\x0f\xf0")
    (root / "c.mp4").write_bytes(encode_image(pixels(), ".png"))
    (root / "notes.txt").write_text("words")
    (root / "list.csv").write_text("1,2")
    words = ("upscale", root, "-o", tmp_path / "out", "--onnx", network)
    result = run(*words, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["left_out"] == [str(root / "list.csv"), str(root / "notes.txt")]
    assert {Path(f["output"]).name for f in report["files"]} == {"a.jfif", "b.png", "c.png"}
    assert read_picture(tmp_path / "out" / "b.png").pixels.shape == (2, 8, 1)
    again = run(*words)
    assert again.code == 0  # all files exist
    assert "2, neither pictures nor videos: list.csv, notes.txt" in again.out


def test_many_errors_that_are_alike_are_one_line(run: CommandLine, tmp_path: Path, network: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for index in range(50):
        (root / f"{index:02}.png").touch()
    (root / "words.jpg").write_text("no picture")
    result = run("upscale", root, "-o", tmp_path / "out", "--onnx", network)
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if "error" in line]
    assert len(lines) == 2
    assert "00.png: is empty (0 bytes)" in lines[0]
    assert lines[0].endswith("(and 49 more like it)")
    assert "words.jpg: not a picture" in lines[1]


def test_a_run_waits_for_another_one_on_its_folder(run: CommandLine, tmp_path: Path, network: Path) -> None:
    write_picture(tmp_path / "in" / "a.png", pixels())
    words = ("upscale", tmp_path / "in", "-o", tmp_path / "out", "--onnx", network)
    assert run(*words).code == 0
    with turn_in_folder(tmp_path / "out", lambda: None):
        command = [sys.executable, "-m", "trt_hspan", *map(str, words)]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert "out: another run is writing here" in second.stderr.readline()
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "skipped" in out


def test_the_time_that_is_left_is_right_within_a_fifth_after_the_first_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 tiles of 5 to 9 s on a clock of the test's, the first twice as slow; looked at each second between them."""
    now = [0.0]
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    write_picture(tmp_path / "a.png", pixels(10, 10))
    task = Task(source=tmp_path / "a.png", target=tmp_path / "out.png")
    progress = job.WorkProgress([task])
    (bar,) = progress._bar.tasks
    seconds = np.random.default_rng(9).uniform(5, 9, 80)
    seconds[0] *= 2
    ends = np.cumsum(seconds)
    shown = []
    now[0] = 1.0  # a clock that starts at 0 has not begun
    progress.begin(task)
    for second in np.arange(1, int(ends[-1])):
        now[0] = 1.0 + float(second)
        finished = int((ends <= second).sum())
        if finished > int((ends <= second - 1).sum()):
            progress.on_tile(finished, len(ends))
        if second > 60:
            hours, minutes, rest = map(int, str(bar.fields["left"]).split(":"))
            shown.append((3600 * hours + 60 * minutes + rest, ends[-1] - second))
    assert len(shown) > 400
    # One tile's mean beside the fifth: of the last few tiles nobody knows how long they take.
    assert [pair for pair in shown if abs(pair[0] - pair[1]) > 0.2 * pair[1] + 7] == []


def test_the_time_that_is_left_is_known_from_the_first_tile_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    write_picture(tmp_path / "a.png", pixels(10, 10))
    write_picture(tmp_path / "b.png", pixels(10, 30))
    tasks = [Task(source=tmp_path / name, target=tmp_path / "out" / name) for name in ("a.png", "b.png")]
    progress = job.WorkProgress(tasks)
    (bar,) = progress._bar.tasks
    assert str(bar.fields["left"]) == "-:--:--"
    progress.begin(tasks[0])
    now[0] += 40  # a tile may take longer than rich's window of 30 s
    progress.on_tile(1, 2)
    assert str(bar.fields["left"]) == "0:04:40"  # 50 of 400 pixels in 40 s
    now[0] += 100  # it counts down while the next tile is under way
    assert str(bar.fields["left"]) == "0:03:00"
    now[0] -= 100
    progress.end(TaskReport(task=tasks[0], outcome="done"))
    progress.begin(tasks[1])
    now[0] += 40
    progress.on_tile(1, 3)
    assert (
        str(bar.fields["left"]) == "0:00:53"
    )  # the first tile's 40 s do not count: 150 of 400 pixels in 40 s
    progress.end(TaskReport(task=tasks[1], outcome="done"))
    assert str(bar.fields["left"]) == "0:00:00"
