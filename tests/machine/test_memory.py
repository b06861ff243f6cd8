"""Refusing a run that would fill the memory, by what Linux says is left."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.runner_doubles import NearestRunner

from trt_hspan.errors import HspanError
from trt_hspan.machine import memory as machine_memory
from trt_hspan.machine.memory import array_of_own_pages, keep_freed_memory, return_freed_memory
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


@pytest.mark.parametrize("shape", [(2, 3), (0, 5), (1,)])
def test_an_array_of_own_pages_is_one_of_zeros_that_can_be_written(shape: tuple[int, ...]) -> None:
    array = array_of_own_pages(shape, np.float32)
    np.testing.assert_array_equal(array, np.zeros(shape, np.float32), strict=True)
    array += 1
    assert (array == 1).all()


def test_an_array_that_no_memory_can_hold_is_refused() -> None:
    with pytest.raises(MemoryError, match=r"not enough memory for \(1152921504606846976, 1\) uint16"):
        array_of_own_pages((1 << 60, 1), np.uint16)


class Libc:
    """Notes what is asked of glibc's allocator."""

    def __init__(self) -> None:
        self.options: dict[int, int] = {}
        self.trimmed: list[int] = []

    def mallopt(self, parameter: int, value: int) -> None:
        self.options[parameter] = value

    def malloc_trim(self, pad: int) -> None:
        self.trimmed.append(pad)


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    double = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: double)
    return double


def test_freed_memory_is_kept_by_the_options_that_the_c_library_names(libc: Libc) -> None:
    header = Path("/usr/include/malloc.h")
    if not header.is_file():
        pytest.skip("the C library's headers are not installed")
    named = dict(re.findall(r"#define (M_\w+)\s+(-\d+)", header.read_text()))
    keep_freed_memory()
    # No block of its own for a large array, none given back below 2 GiB, and one arena that grows by 256 MiB.
    wanted = {"M_MMAP_MAX": 0, "M_TRIM_THRESHOLD": 2**31 - 1, "M_TOP_PAD": 256 << 20, "M_ARENA_MAX": 1}
    assert libc.options == {int(named[name]): value for name, value in wanted.items()}


def test_all_freed_memory_is_returned(libc: Libc) -> None:
    return_freed_memory()
    assert libc.trimmed == [0]


def test_another_system_or_c_library_is_left_alone(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    return_freed_memory()
    assert (libc.options, libc.trimmed) == ({}, [])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # musl has neither function
    keep_freed_memory()
    return_freed_memory()
