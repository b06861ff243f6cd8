"""The GPUs at hand, from the driver alone: without CUDA toolkit and TensorRT, and without creating a context."""

from __future__ import annotations

import ctypes

from trt_hspan.errors import HspanError

# CUdevice_attribute values of the CUDA driver API (cuda.h).
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


def gpu_architectures() -> tuple[str, ...]:
    """Compute capabilities of the visible GPUs, such as ("sm_86",); empty without GPU or driver."""
    try:
        driver = _started_driver()
    except HspanError:
        return ()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(
        f"sm_{_attribute(driver, device, _COMPUTE_CAPABILITY_MAJOR)}"
        f"{_attribute(driver, device, _COMPUTE_CAPABILITY_MINOR)}"
        for device in range(count.value)
    )


def driver_cuda_version() -> str | None:
    """The newest CUDA version that the driver runs, such as "13.0"; None without; HspanError if it does not start."""
    driver, version = _started_driver(), ctypes.c_int(0)
    if driver is None:
        return None
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _started_driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    if code := int(driver.cuInit(0)):
        raise HspanError("driver", f"the driver does not start: CUDA error {code}")
    return driver


def _attribute(driver: ctypes.CDLL, index: int, attribute: int) -> int:
    device, value = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value
