"""What this machine is: processors, versions, clocks, and the memory that a piece of work takes."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

_STATUS: Final = Path("/proc/self/status")
_CPUINFO: Final = Path("/proc/cpuinfo")


def machine_facts() -> dict[str, Any]:
    """The machine that a benchmark ran on: processor, GPUs, versions."""
    from trt_hspan.machine.nvml import driver_version, gpu_states
    from trt_hspan.version import __version__

    packages = ("numpy", "onnxruntime", "openvino", "torch", "tensorrt", "tensorrt_rtx", "pycuda")
    return {
        "processor": next(iter(_cpuinfo("model name")), platform.processor() or platform.machine()),
        "processors": usable_processors(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "trt_hspan": __version__,
        "versions": {name: installed_version(name) for name in packages},
        "nvidia_driver": driver_version(),
        "gpus": [asdict(state) for state in gpu_states()],
    }


def usable_processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def installed_version(package: str) -> str | None:
    """The version of an installed Python package; None when it is not installed, or says no version."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class PeakMemory:
    """How far resident memory rises in a `with` block above its value at the beginning."""

    bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        from trt_hspan.machine.memory import return_freed_memory

        return_freed_memory()  # what earlier runs left in the allocator would hide what this block needs
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
            self._before: int | None = _kilobytes("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self.bytes = max(0, _kilobytes("VmHWM") - self._before) * 1024


def _kilobytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def clock_states() -> dict[str, Any]:
    """Clocks now: of the processors in MHz, and of each GPU."""
    from trt_hspan.machine.nvml import gpu_states

    mhz = [float(value) for value in _cpuinfo("cpu MHz")]
    return {
        "cpu_mhz": round(statistics.fmean(mhz)) if mhz else None,
        "gpus": [
            {
                "sm_mhz": state.sm_clock_mhz,
                "memory_mhz": state.memory_clock_mhz,
                "celsius": state.temperature_celsius,
            }
            for state in gpu_states()
        ],
    }


def sums_int8_exactly() -> bool:
    """Whether the processor adds up products of 8-bit integers without saturation: VNNI, AMX, Arm's dot products."""
    flags = {flag for line in (*_cpuinfo("flags"), *_cpuinfo("Features")) for flag in line.split()}
    return any(flag.endswith("_vnni") or flag in ("amx_int8", "asimddp") for flag in flags)


def _cpuinfo(name: str) -> list[str]:
    """A value of every processor that Linux lists; empty where it lists none."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(name)]
