"""What NVIDIA's management library (NVML) tells of driver and GPUs. Owns the calls; None where there is no driver.

Function names and constants are those of nvml.h, which the driver brings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SM_CLOCK, _MEMORY_CLOCK = 1, 2
_TEMPERATURE_GPU = 0


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One GPU now. Clocks in MHz, memory in bytes; None for what it does not tell."""

    name: str
    total_bytes: int | None
    free_bytes: int | None
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_celsius: int | None


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def driver_version() -> str | None:
    """The NVIDIA driver's version, such as "580.65.06"; None without a driver."""
    with _nvml() as library:
        if library is None:
            return None
        text = ctypes.create_string_buffer(80)
        return text.value.decode() if library.nvmlSystemGetDriverVersion(text, 80) == 0 else None


def gpu_states() -> tuple[GpuState, ...]:
    """All GPUs, in nvidia-smi's order; empty without a driver."""
    with _nvml() as library:
        count = ctypes.c_uint(0)
        if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return ()
        return tuple(_state(library, index) for index in range(count.value))


def _state(library: ctypes.CDLL, index: int) -> GpuState:
    device = ctypes.c_void_p()
    library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
    name, memory = ctypes.create_string_buffer(96), _Memory()
    library.nvmlDeviceGetName(device, name, 96)
    known = library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0

    def number(function: str, selector: int) -> int | None:
        value = ctypes.c_uint(0)
        return value.value if getattr(library, function)(device, selector, ctypes.byref(value)) == 0 else None

    return GpuState(
        name=name.value.decode(),
        total_bytes=memory.total if known else None,
        free_bytes=memory.free if known else None,
        sm_clock_mhz=number("nvmlDeviceGetClockInfo", _SM_CLOCK),
        max_sm_clock_mhz=number("nvmlDeviceGetMaxClockInfo", _SM_CLOCK),
        memory_clock_mhz=number("nvmlDeviceGetClockInfo", _MEMORY_CLOCK),
        temperature_celsius=number("nvmlDeviceGetTemperature", _TEMPERATURE_GPU),
    )


@contextmanager
def _nvml() -> Iterator[ctypes.CDLL | None]:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        yield None
        return
    if library.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()
