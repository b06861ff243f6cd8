"""What a machine says of itself in reports."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from trt_hspan.machine import facts, nvml
from trt_hspan.machine.facts import (
    PeakMemory,
    clock_states,
    installed_version,
    machine_facts,
    sums_int8_exactly,
    usable_processors,
)
from trt_hspan.machine.nvml import GpuState

GPU = GpuState(
    name="GPU",
    total_bytes=9,
    free_bytes=8,
    sm_clock_mhz=1000,
    max_sm_clock_mhz=2000,
    memory_clock_mhz=3000,
    temperature_celsius=40,
)


def test_versions_are_those_of_what_is_installed() -> None:
    assert installed_version("numpy") == np.__version__
    assert installed_version("no-such-package") is None


def test_processors_are_those_that_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_processors() == machine_facts()["processors"] == 1
    finally:
        os.sched_setaffinity(0, before)


def test_gpus_and_their_clocks_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpu_states", lambda: (GPU,))
    monkeypatch.setattr(nvml, "driver_version", lambda: "580.1")
    found = machine_facts()
    assert (found["nvidia_driver"], found["gpus"][0]["total_bytes"]) == ("580.1", 9)
    assert found["versions"]["numpy"] == np.__version__
    assert clock_states()["gpus"] == [{"sm_mhz": 1000, "memory_mhz": 3000, "celsius": 40}]


@pytest.mark.parametrize(("values", "mean"), [(["1000.4", "2001.2"], 1501), ([], None)])
def test_the_clock_is_the_mean_of_all_processors(
    monkeypatch: pytest.MonkeyPatch, values: list[str], mean: int | None
) -> None:
    monkeypatch.setattr(facts, "_cpuinfo", lambda name: values if name == "cpu MHz" else [])
    assert clock_states()["cpu_mhz"] == mean


def test_the_processor_is_the_first_that_linux_lists_else_what_python_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: Maker: 9000\n\nprocessor\t: 1\nmodel name\t: other\n")
    monkeypatch.setattr(facts, "_CPUINFO", listed)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert machine_facts()["processor"] == "Maker: 9000"
    listed.unlink()
    assert machine_facts()["processor"] == "arm"
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert machine_facts()["processor"] == "aarch64"


@pytest.mark.parametrize(
    ("line", "exact"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni", True),
        ("flags\t\t: avx_vnni fpu", True),
        ("flags\t\t: fpu amx_int8 avx2", True),
        ("Features\t: fp asimddp", True),
        ("flags\t\t: fpu avx2 vnni_other", False),
        ("bugs\t\t: avx_vnni", False),
    ],
)
def test_sums_of_int8_are_exact_where_an_instruction_for_them_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, exact: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(facts, "_CPUINFO", tmp_path / "cpuinfo")
    assert sums_int8_exactly() is exact


@pytest.mark.parametrize(("peak_kib", "taken"), [(5000, 2000 * 1024), (2999, 0)])
def test_the_peak_is_counted_from_what_was_resident_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peak_kib: int, taken: int
) -> None:
    status = tmp_path / "status"
    status.write_text("VmPeak:\t    9 kB\nVmHWM:\t    9 kB\nVmRSS:\t    3000 kB\n")
    monkeypatch.setattr(facts, "_STATUS", status)
    with PeakMemory() as peak:
        status.write_text(f"VmHWM:\t    {peak_kib} kB\nVmRSS:\t    1 kB\n")
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this kernel does not let a process reset its peak")
    assert peak.bytes == taken


def test_where_nothing_tells_the_peak_it_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(facts, "_STATUS", tmp_path / "none")
    with PeakMemory() as peak:
        pass
    assert peak.bytes is None


def test_the_peak_is_what_a_block_takes_and_gives_back() -> None:
    size = 64 << 20
    with PeakMemory() as peak:
        np.ones(size, np.uint8)
    with PeakMemory() as small:
        pass
    if peak.bytes is None:
        pytest.skip("this kernel does not let a process reset its peak")
    assert small.bytes is not None
    # Within 16 MiB, which Python and the allocator may take or give back beside it.
    assert abs(peak.bytes - size) < 16 << 20
    assert small.bytes < 16 << 20
