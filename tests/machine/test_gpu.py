"""Asking the driver for GPUs: a double of libcuda with the calls that are used."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from trt_hspan.errors import HspanError
from trt_hspan.machine import gpu


class Driver:
    """Two GPUs, of compute capability 8.6 and 12.0."""

    init_result = 0
    capabilities = ((8, 6), (12, 0))

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init_result

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.capabilities)
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13000
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = self.capabilities[device.value][{75: 0, 76: 1}[attribute]]
        return 0


def test_the_architectures_of_all_gpus_are_reported_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert gpu.gpu_architectures() == ("sm_86", "sm_120")
    assert gpu.driver_cuda_version() == "13.0"


def test_a_driver_that_does_not_start_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    driver.init_result = 100  # CUDA_ERROR_NO_DEVICE
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert gpu.gpu_architectures() == ()
    with pytest.raises(HspanError, match="the driver does not start: CUDA error 100"):
        gpu.driver_cuda_version()


def test_no_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.gpu_architectures() == ()
    assert gpu.driver_cuda_version() is None
