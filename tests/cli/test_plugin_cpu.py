"""`trt-hspan plugin build --cpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import CommandLine

from trt_hspan.native.build import build_cpu_library
from trt_hspan.native.cpu_attention import LIBRARY_VARIABLE


def test_prints_what_the_library_is(run: CommandLine) -> None:
    path = build_cpu_library().path
    result = run("plugin", "build", "--cpu", "--json")
    report = json.loads(result.out)
    assert report["path"] == str(path)
    assert report["compiled"] is False
    assert report["instruction_sets"]
    assert len(report["source_sha256"]) == 64


def test_gpu_options_do_not_go_with_it(run: CommandLine) -> None:
    result = run("plugin", "build", "--cpu", "--arch", "86")
    assert result.code == 2
    assert result.error_line.startswith("trt-hspan: error: --arch: is for the plugin")


def test_output_that_cannot_be_written_is_reported_before_compiling(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    result = run("plugin", "build", "--cpu", "-o", tmp_path)
    assert result.code == 1
    assert "is a folder" in result.error_line
