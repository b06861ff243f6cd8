"""The driver and the GPUs as NVIDIA's management library (NVML) reports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One GPU now. Clocks in MHz, memory in bytes; None for what it does not report."""

    name: str
    total_bytes: int | None
    free_bytes: int | None
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_celsius: int | None


def driver_version() -> str | None:
    """The NVIDIA driver's version, such as "580.65.06"; None without a driver."""
    with _nvml() as nvml:
        return None if nvml is None else nvml.nvmlSystemGetDriverVersion()


def gpu_states() -> tuple[GpuState, ...]:
    """All GPUs, in nvidia-smi's order; empty without a driver."""
    with _nvml() as nvml:
        return (
            () if nvml is None else tuple(_state(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        )


def _state(nvml: ModuleType, index: int) -> GpuState:
    device = nvml.nvmlDeviceGetHandleByIndex(index)

    def reported(query: Callable[..., Any], *arguments: int) -> Any:
        try:
            return query(device, *arguments)
        except nvml.NVMLError:  # GPUs that share main memory report none of their own, for example
            return None

    memory = reported(nvml.nvmlDeviceGetMemoryInfo)
    return GpuState(
        name=nvml.nvmlDeviceGetName(device),
        total_bytes=None if memory is None else memory.total,
        free_bytes=None if memory is None else memory.free,
        sm_clock_mhz=reported(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        max_sm_clock_mhz=reported(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=reported(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        temperature_celsius=reported(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
    )


@contextmanager
def _nvml() -> Iterator[ModuleType | None]:
    """The library, started; None where there is no driver, or one that does not start."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
