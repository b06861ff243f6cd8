"""Refusing a run that would fill the memory, by what Linux says is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.machine import memory as machine_memory
from trt_hspan.runtime import memory


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces /proc and /sys by files in a folder that is empty at first."""
    monkeypatch.setattr(machine_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine_memory, "_CGROUPS", ((tmp_path / "memory.max", tmp_path / "memory.current"),))
    return tmp_path


def test_this_machine_says_what_it_has() -> None:
    available = memory.available_memory_bytes()
    assert available is not None
    assert 1 << 20 < available < 1 << 50


def test_the_machines_available_memory_is_read(linux: Path) -> None:
    (linux / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable:    5000 kB\n")
    assert memory.available_memory_bytes() == 5000 * 1024


def test_a_containers_limit_counts_when_it_is_tighter(linux: Path) -> None:
    (linux / "meminfo").write_text("MemAvailable: 5000 kB\n")
    (linux / "memory.max").write_text("3000000\n")
    (linux / "memory.current").write_text("1000000\n")
    assert memory.available_memory_bytes() == 2_000_000
    (linux / "memory.current").write_text("4000000\n")
    assert memory.available_memory_bytes() == 0
    (linux / "memory.max").write_text("max\n")
    assert memory.available_memory_bytes() == 5000 * 1024


def test_nothing_is_refused_where_nobody_says(linux: Path) -> None:
    assert memory.available_memory_bytes() is None
    memory.require_memory(NearestRunner(memory=1 << 60), (1, 3, 9, 9), "a.png")


def test_a_run_that_would_obviously_not_fit_is_refused_in_one_line(linux: Path) -> None:
    (linux / "meminfo").write_text("MemAvailable: 4000000 kB\n")
    runner = NearestRunner(memory=4_096_000_001)
    with pytest.raises(HspanError) as caught:
        memory.require_memory(runner, (1, 3, 200, 300), "a.png")
    assert str(caught.value) == (
        "a.png: 200x300 pixels as a whole need about 4.1 GB of memory under numpy, 4.1 GB are available; "
        "give a smaller picture"
    )
    runner.memory -= 1
    memory.require_memory(runner, (1, 3, 200, 300), "a.png")
