"""What NVML reports, through a double of the module pynvml."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from trt_hspan.machine.nvml import GpuState, driver_version, gpu_states


class NvmlError(Exception):
    """Stands in for pynvml.NVMLError."""


class Nvml:
    """Two GPUs: a card, and one that shares main memory and reports neither memory nor the memory's clock."""

    NVMLError = NvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *, starts: bool = True) -> None:
        self.starts = starts
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.starts:
            raise NvmlError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, device: int) -> str:  # noqa: N802
        return ("NVIDIA L4", "NVIDIA Thor")[device]

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:  # noqa: N802
        if device == 1:
            raise NvmlError("Not Supported")
        return SimpleNamespace(total=24 << 30, free=20 << 30, used=4 << 30)

    def nvmlDeviceGetClockInfo(self, device: int, clock: int) -> int:  # noqa: N802
        if (device, clock) == (1, self.NVML_CLOCK_MEM):
            raise NvmlError("Not Supported")
        return {self.NVML_CLOCK_SM: 1000, self.NVML_CLOCK_MEM: 6250}[clock]

    def nvmlDeviceGetMaxClockInfo(self, device: int, clock: int) -> int:  # noqa: N802
        return 2040

    def nvmlDeviceGetTemperature(self, device: int, sensor: int) -> int:  # noqa: N802
        return 41


def use(monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> Nvml:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    return nvml


def test_driver_and_gpus_are_reported_and_the_library_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = use(monkeypatch, Nvml())
    assert driver_version() == "580.65.06"
    assert gpu_states() == (
        GpuState(
            name="NVIDIA L4",
            total_bytes=24 << 30,
            free_bytes=20 << 30,
            sm_clock_mhz=1000,
            max_sm_clock_mhz=2040,
            memory_clock_mhz=6250,
            temperature_celsius=41,
        ),
        GpuState(
            name="NVIDIA Thor",
            total_bytes=None,
            free_bytes=None,
            sm_clock_mhz=1000,
            max_sm_clock_mhz=2040,
            memory_clock_mhz=None,
            temperature_celsius=41,
        ),
    )
    assert nvml.open == 0


def test_without_a_driver_there_is_nothing_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Nvml(starts=False))
    assert driver_version() is None
    assert gpu_states() == ()


def test_the_real_library_has_every_name_that_is_used() -> None:
    import pynvml

    for name in vars(Nvml):
        assert name.startswith("__") or hasattr(pynvml, name), name
