"""Kernels kept beside a plan: they come back for the same plan and release, and for nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest

from trt_hspan.runtime.runtime_cache import read_runtime_cache, runtime_cache_path, write_runtime_cache

FACTS = {"plan_sha256": "1" * 64, "tensorrt_version": "1.7.1"}


@pytest.mark.parametrize("data", [b"kernels\nof several\n\nlines", b""])
def test_data_come_back_for_the_same_plan_and_release_alone(tmp_path: Path, data: bytes) -> None:
    path = runtime_cache_path(tmp_path / "net.plan")
    assert path == tmp_path / "net.runtime_cache"
    assert write_runtime_cache(path, data, **FACTS)
    assert read_runtime_cache(path, **FACTS) == data
    for name in FACTS:
        assert read_runtime_cache(path, **{**FACTS, name: "other"}) is None


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"x" + data, lambda data: b"", lambda data: b"[]\n"]
)
def test_damaged_data_are_not_used_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    path = tmp_path / "net.runtime_cache"
    write_runtime_cache(path, b"kernels", **FACTS)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.INFO):
        assert read_runtime_cache(path, **FACTS) is None
    assert "of another plan or release, or damaged" in caplog.text


def test_a_file_that_cannot_be_read_or_written_costs_time_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_runtime_cache(tmp_path / "none", **FACTS) is None
    assert caplog.text == ""
    assert read_runtime_cache(tmp_path, **FACTS) is None
    assert "cannot be read" in caplog.text
    assert not write_runtime_cache(tmp_path, b"kernels", **FACTS)
    assert "the runtime cache is not kept" in caplog.text


def test_the_first_line_says_what_the_data_are_of(tmp_path: Path) -> None:
    """Files that earlier versions wrote stay readable while the number of the format is 1."""
    path = tmp_path / "net.runtime_cache"
    write_runtime_cache(path, b"kernels\n", **FACTS)
    line, _, data = path.read_bytes().partition(b"\n")
    assert json.loads(line) == {"format": 1, **FACTS, "sha256": hashlib.sha256(b"kernels\n").hexdigest()}
    assert data == b"kernels\n"
