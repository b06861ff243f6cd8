from __future__ import annotations

import json

import pytest
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.small_engine import SmallEngine


def test_boards_are_listed_with_their_published_figures(run: CommandLine) -> None:
    done = run("jetson", "boards", "--json")
    boards = {board["name"]: board for board in json.loads(done.out)["boards"]}
    assert boards["orin-nano-8g"]["memory_bytes"] == 8 << 30
    assert all(board["rates"]["source"] for board in boards.values())


def test_plan_tells_memory_tiles_and_floor(run: CommandLine, exported: ExportCache) -> None:
    model = exported("small_x4", precision="fp16")
    done = run(
        "jetson", "plan", "--board", "orin-nano-8g", "--size", "640x360", "--onnx", str(model), "--json"
    )
    plan = json.loads(done.out)
    assert plan["fits"] is True
    assert (plan["tile_width"], plan["tile_height"]) == (640, 360)
    assert plan["measured"] is False
    assert plan["memory_total_bytes"] == sum(plan["memory_bytes"].values())
    assert plan["floor_ms"] > 0


def test_plan_prints_a_table_that_says_it_measured_nothing(run: CommandLine, exported: ExportCache) -> None:
    model = exported("small_x4", precision="fp16")
    done = run("jetson", "plan", "--board", "agx-thor", "--size", "64x48", "--onnx", str(model))
    assert "64x48 -> 256x192" in done.out
    assert "not a" in done.out
    assert "whole picture" in done.out


def test_an_engine_with_a_function_body_is_no_jetson_engine(
    run: CommandLine, small_engine: SmallEngine
) -> None:
    done = run("jetson", "plan", "--board", "orin-nano-8g", "--size", "64x48", "--engine", small_engine.plan)
    assert done.code == 1
    assert "--attention plugin" in done.error_line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--board", "pi", "--size", "64x48", "--scale", "2"), "orin-nano-8g"),
        (("--board", "agx-thor", "--size", "64", "--scale", "2"), "WIDTHxHEIGHT"),
        (("--board", "agx-thor", "--size", "0x9", "--scale", "2"), "WIDTHxHEIGHT"),
        (("--board", "agx-thor", "--size", "64x48"), "exactly one"),
        (("--board", "agx-thor", "--size", "64x48", "--scale", "5"), "expected 2, 3 or 4"),
    ],
)
def test_wrong_usage_is_one_line(run: CommandLine, arguments: tuple[str, ...], part: str) -> None:
    done = run("jetson", "plan", *arguments)
    assert done.code == 2
    assert part in done.error_line
