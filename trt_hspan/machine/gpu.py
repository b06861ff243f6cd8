"""The driver and its GPUs, asked without CUDA toolkit, TensorRT or a context; what CUDA's errors mean."""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal

from trt_hspan.errors import HspanError

# CUdevice_attribute values of the CUDA driver API (cuda.h).
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76

_NO_DEVICE, _UNKNOWN = 100, 999
# As TensorRT says it: "CUDA initialization failure with error: 35".
_QUOTED_CODE: Final = re.compile(r"CUDA[ a-z]* error:? (\d+)")
_NO_DRIVER: Final = HspanError(
    "GPU", "no NVIDIA GPU with a driver here", "install the driver (nvidia-smi must list the GPU)"
)

#: cudaError_t, which the driver's CUresult shares from 100 on -> CUDA's own words, what it means here, what to do.
_CUDA_ERRORS: Final[dict[int, tuple[str, str, str]]] = {
    int(code): tuple(texts)
    for code, texts in json.loads(
        resources.files(__package__).joinpath("cuda_errors.json").read_text(encoding="utf-8")
    ).items()
}


DriverState = Literal["ready", "no driver", "no GPU", "failed"]


@dataclass(frozen=True, kw_only=True)
class GpuDriver:
    """What the NVIDIA driver says.

    Attributes:
        state: a driver and GPUs ("ready"), no driver, no GPU, or a query that failed.
        cuda_version: the newest CUDA that it runs, such as (13, 0); None where there is no driver.
        architectures: compute capabilities of the visible GPUs in CUDA's order, such as ("sm_86",).
        error: in any other state than "ready", what is wrong and what to do.
    """

    state: DriverState
    cuda_version: tuple[int, int] | None = None
    architectures: tuple[str, ...] = ()
    error: HspanError | None = None


def gpu_driver() -> GpuDriver:
    """Asks the driver. Raises nothing: what keeps GPUs from being used is its `error`."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return GpuDriver(state="no driver", error=_NO_DRIVER)
    number, count = ctypes.c_int(), ctypes.c_int()
    version = None  # may be asked before cuInit, and even where that fails
    if driver.cuDriverGetVersion(ctypes.byref(number)) == 0:
        version = (number.value // 1000, number.value % 1000 // 10)
    try:
        _check(driver.cuInit(0))
        _check(driver.cuDeviceGetCount(ctypes.byref(count)))
        _check(0 if count.value else _NO_DEVICE)
        architectures = tuple(_architecture(driver, index) for index in range(count.value))
    except _QueryError as error:
        state: DriverState = "no GPU" if error.code == _NO_DEVICE else "failed"
        return GpuDriver(state=state, cuda_version=version, error=cuda_error("GPU", error.code))
    return GpuDriver(state="ready", cuda_version=version, architectures=architectures)


def gpu_architectures() -> tuple[str, ...]:
    """Compute capabilities of the visible GPUs, such as ("sm_86",); empty where none can be used."""
    return gpu_driver().architectures


def require_answers() -> None:
    """Raises HspanError where the driver is there and a query fails: that is no machine without a GPU."""
    driver = gpu_driver()
    if driver.state == "failed" and driver.error is not None:
        raise driver.error


def cuda_error(where: str, code: int) -> HspanError:
    """The error for a code that a call of CUDA's runtime or driver returned.

    Example:
        >>> str(cuda_error("GPU", 999))[:66]
        'GPU: cannot be used: the driver fails for an unknown reason (CUDA '
    """
    if code == _NO_DEVICE:
        _, what, next_step = _CUDA_ERRORS[code]
        return HspanError(where, what, next_step)
    words, what, next_step = _CUDA_ERRORS.get(code, ("", "a query failed", "see what nvidia-smi says"))
    named = f"CUDA error {code}" + (f", {words.rstrip('.')}" if words else "")
    return HspanError(where, f"cannot be used: {what} ({named})", next_step)


def advice_for_cuda_message(message: str) -> tuple[str, str] | None:
    """What a log line or exception means that quotes an error of CUDA's, and what to do; None for all others."""
    match = _QUOTED_CODE.search(message)
    for code, (words, what, next_step) in _CUDA_ERRORS.items():
        if (match and int(match[1]) == code) or (code != _UNKNOWN and words.rstrip(".") in message):
            return what, next_step
    return None


class _QueryError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _check(code: int) -> None:
    if code != 0:
        raise _QueryError(code)


def _architecture(driver: ctypes.CDLL, index: int) -> str:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(driver.cuDeviceGet(ctypes.byref(device), index))
    for value, attribute in ((major, _COMPUTE_CAPABILITY_MAJOR), (minor, _COMPUTE_CAPABILITY_MINOR)):
        _check(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
    return f"sm_{major.value}{minor.value}"
