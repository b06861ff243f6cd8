from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.jetson_root import write_jetson_root
from support.small_engine import SmallEngine

from trt_hspan.graph import load_onnx
from trt_hspan.jetson.boards import board_from_name
from trt_hspan.jetson.network_cost import network_cost
from trt_hspan.jetson.plan import least_ms
from trt_hspan.machine import jetson as device
from trt_hspan.machine.jetson import device_from_root
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tiling import tile_plan


def test_boards_are_listed_with_their_published_figures(run: CommandLine) -> None:
    result = run("jetson", "boards", "--json")
    boards = {board["name"]: board for board in json.loads(result.out)["boards"]}
    assert boards["orin-nano-8g"]["memory_bytes"] == 8 << 30
    assert all(board["rates"]["source"] for board in boards.values())


def test_plan_shows_memory_tiles_and_floor(run: CommandLine, exported: ExportCache) -> None:
    model = exported("small_x4", precision="fp16")
    result = run(
        "jetson", "plan", "--board", "orin-nano-8g", "--size", "360x640", "--onnx", str(model), "--json"
    )
    plan = json.loads(result.out)
    assert plan["fits"] is True
    assert (plan["tile_height"], plan["tile_width"]) == (360, 640)
    assert plan["measured"] is False
    assert plan["memory_total_bytes"] == sum(plan["memory_bytes"].values())
    assert plan["floor_ms"] > 0


def test_the_published_network_is_planned_without_an_export(run: CommandLine) -> None:
    size = "width=640,height=360"
    result = run("jetson", "plan", "--board", "orin-nano-8g", "--size", size, "--scale", "2", "--json")
    plan = json.loads(result.out)
    assert plan["fits"] is True
    assert plan["memory_bytes"].keys() == {"weights", "activations", "workspace", "tensors", "reserved"}
    assert plan["floor_ms"] > 1000
    assert (plan["tile_height"], plan["tile_width"]) == (360, 640)


def test_plan_finds_the_board_that_it_runs_on(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = device_from_root(write_jetson_root(tmp_path))
    monkeypatch.setattr(device, "this_device", lambda: facts)
    result = run("jetson", "plan", "--board", "auto", "--size", "48x64", "--scale", "4", "--json")
    assert json.loads(result.out)["board"] == "orin-nano-8g"


def test_a_benchmark_stands_beside_the_boards_floor(run: CommandLine, small_engine: SmallEngine) -> None:
    words = ("jetson", "bench", small_engine.plan, "--board", "orin-nano-8g", "--size", "16x24")
    report = json.loads(run(*words, "--seconds", "0.05", "--json").out)
    (measured,) = report["measurements"]
    assert (measured["height"], measured["width"], measured["emulated"]) == (16, 24, True)
    cost = network_cost(load_onnx(small_engine.onnx))
    least = least_ms(cost, board_from_name("orin-nano-8g"), tile_plan(ImageSize(16, 24), None, 0))
    assert report["floors_ms"] == {"16x24": least}
    result = run(*words, "--seconds", "0.05")
    # What a CPU takes is no multiple of the board's floor; the column is the last, in a table of its own or not.
    assert re.search(r"x floor [^-]*│ +- │", result.out)
    assert "this machine, not the board" in result.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--size", "900x900"), 1, "--size 900x900"),
        (("--size", "900"), 2, "expected height x width"),
        (("--seconds", "0"), 2, "--seconds"),
        (("--board", "pi"), 2, "orin-nano-8g"),
        (("--device", "gpu"), 1, "cannot run on a GPU"),
    ],
)
def test_a_benchmark_that_cannot_be_is_one_line(
    run: CommandLine, small_engine: SmallEngine, words: tuple[str, ...], code: int, message: str
) -> None:
    result = run("jetson", "bench", small_engine.plan, "--board", "agx-thor", *words)
    assert result.code == code
    assert message in result.error_line


@pytest.mark.parametrize(
    ("words", "expected"), [(["boards", "--json"], '"orin-nano-8g"'), (["--version"], "trt-hspan ")]
)
def test_hspan_jetson_is_this_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    (entry,) = re.findall(r'^hspan-jetson = "([\w.]+):(\w+)"$', project.read_text(), re.MULTILINE)
    monkeypatch.setattr(sys, "argv", ["hspan-jetson", *words])
    with pytest.raises(SystemExit) as stopped:
        getattr(importlib.import_module(entry[0]), entry[1])()
    assert stopped.value.code == 0
    assert expected in capsys.readouterr().out


def test_plan_prints_a_table_that_says_it_measured_nothing(run: CommandLine, exported: ExportCache) -> None:
    model = exported("small_x4", precision="fp16")
    result = run("jetson", "plan", "--board", "agx-thor", "--size", "48x64", "--onnx", str(model))
    assert "48x64 -> 192x256" in result.out
    assert "not a" in result.out
    assert "whole picture" in result.out


def test_an_engine_with_a_function_body_is_no_jetson_engine(
    run: CommandLine, small_engine: SmallEngine
) -> None:
    result = run(
        "jetson", "plan", "--board", "orin-nano-8g", "--size", "48x64", "--engine", small_engine.plan
    )
    assert result.code == 1
    assert "--attention plugin" in result.error_line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--board", "pi", "--size", "48x64", "--scale", "2"), "orin-nano-8g"),
        (("--board", "agx-thor", "--size", "64", "--scale", "2"), "expected height x width"),
        (("--board", "agx-thor", "--size", "0x9", "--scale", "2"), "expected height x width"),
        (("--board", "agx-thor", "--size", "48x64"), "exactly one"),
        (("--board", "agx-thor", "--size", "48x64", "--scale", "5"), "expected 2, 3 or 4"),
        (
            ("--board", "agx-thor", "--size", "48x64", "--scale", "2", "--precision", "int8"),
            "fp32, fp16, bf16",
        ),
        (
            ("--board", "agx-thor", "--size", "48x64", "--onnx", "a.onnx", "--precision", "fp32"),
            "has its own",
        ),
        (("--board", "agx-thor", "--size", "48x1e3", "--scale", "2"), "expected height x width"),
        (("--board", "agx-thor", "--size", "\u0666x\u0664", "--scale", "2"), "expected height x width"),
        (("--board", "agx-thor", "--size", "48x64", "--scale", "2", "--engine", "e.plan"), "exactly one"),
    ],
)
def test_wrong_usage_is_one_line(run: CommandLine, arguments: tuple[str, ...], message: str) -> None:
    result = run("jetson", "plan", *arguments)
    assert result.code == 2
    assert message in result.error_line
