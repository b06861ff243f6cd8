"""What a machine says of itself in reports."""

from __future__ import annotations

import os

import numpy as np
import pytest

from trt_hspan.machine import facts, nvml
from trt_hspan.machine.facts import (
    PeakMemory,
    clock_states,
    installed_version,
    machine_facts,
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
    assert machine_facts()["processor"]  # what Python says where Linux lists none


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
