"""The GPUs at hand, from the driver alone: without CUDA toolkit and TensorRT, and without creating a context."""

from __future__ import annotations

import ctypes

# CUdevice_attribute values of the CUDA driver API (cuda.h).
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


def gpu_architectures() -> tuple[str, ...]:
    """Compute capabilities of the visible GPUs, such as ("sm_86",); empty without GPU or driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(
        f"sm_{_attribute(driver, device, _COMPUTE_CAPABILITY_MAJOR)}"
        f"{_attribute(driver, device, _COMPUTE_CAPABILITY_MINOR)}"
        for device in range(count.value)
    )


def _attribute(driver: ctypes.CDLL, index: int, attribute: int) -> int:
    device, value = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value
