"""Memory that grows, and errors of CUDA in one line, on a PyCUDA of numpy; `test_tensorrt_on_standin` has another."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.machine.gpu import advice_for_cuda_message
from trt_hspan.runtime import cuda_device
from trt_hspan.runtime.cuda_device import CudaDevice, DeviceBuffer, PinnedArray


class Allocation:
    """Device memory at an address."""

    def __init__(self, address: int, log: list[str]) -> None:
        self.address, self.log = address, log

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.log.append(f"free {self.address}")


class CudaError(Exception): ...


class CudaMemoryError(CudaError): ...


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What PyCUDA is asked for."""
    calls: list[str] = []

    def mem_alloc(size: int) -> Allocation:
        calls.append(f"alloc {size}")
        return Allocation(len(calls) * 256, calls)

    def pagelocked_empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        calls.append(f"pin {shape}")

        class Whole(np.ndarray):
            base = SimpleNamespace(free=lambda: calls.append("unpin"))

        return np.zeros(shape, dtype).view(Whole)

    driver = SimpleNamespace(
        mem_alloc=mem_alloc, pagelocked_empty=pagelocked_empty, Error=CudaError, MemoryError=CudaMemoryError
    )
    monkeypatch.setattr(cuda_device, "pycuda_driver", lambda: driver)
    return calls


def test_device_memory_grows_by_freeing_first_and_never_shrinks(log: list[str]) -> None:
    buffer = DeviceBuffer()
    assert (buffer.address, buffer.size_bytes) == (0, 0)
    assert not buffer.reserve(0)
    assert buffer.reserve(100)
    assert (buffer.address, buffer.size_bytes) == (256, 100)
    assert [buffer.reserve(size) for size in (100, 7, 101)] == [False, False, True]
    assert log == ["alloc 100", "free 256", "alloc 101"]
    buffer.free()
    buffer.free()
    assert (buffer.address, buffer.size_bytes) == (0, 0)
    assert log[3:] == ["free 768"]


def test_pinned_memory_is_an_array_of_the_shape_in_use(log: list[str]) -> None:
    pinned = PinnedArray()
    assert (pinned.size_bytes, pinned.array.size) == (0, 0)
    for shape in ((1, 3, 4, 5), (1, 3, 2, 2), (3, 4, 5), (1, 3, 4, 6)):
        pinned.reserve(shape)
        assert pinned.array.shape == shape
        assert pinned.array.dtype == np.float32
    assert pinned.size_bytes == 4 * 3 * 4 * 6
    assert log == ["pin (60,)", "unpin", "pin (72,)"]
    pinned.free()
    pinned.free()
    assert log[3:] == ["unpin"]
    assert (pinned.size_bytes, pinned.array.size) == (0, 0)


def test_errors_of_cuda_are_one_line(log: list[str]) -> None:
    device = CudaDevice(0, "net.plan")
    line = r"^net\.plan: failed: out of GPU or pinned memory; use smaller"
    with pytest.raises(OutOfMemoryError, match=line), device.translate_errors("failed"):
        raise CudaMemoryError
    line = r"^net\.plan: failed: cuLaunch: odd; see trt-hspan doctor$"
    with pytest.raises(HspanError, match=line), device.translate_errors("failed"):
        raise CudaError("cuLaunch: odd")
    with pytest.raises(KeyError), device.translate_errors("failed"):
        raise KeyError


def opened(monkeypatch: pytest.MonkeyPatch, *, count: int, integrated: int, index: int = 0) -> Any:
    flags = SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=2)
    gpu = SimpleNamespace(
        name=lambda: "a GPU", compute_capability=lambda: (8, 7), get_attribute=lambda attribute: integrated
    )
    made = SimpleNamespace(count=lambda: count)
    driver = SimpleNamespace(
        init=lambda: None,
        Device=type("Device", (), {"count": staticmethod(made.count), "__new__": lambda cls, index: gpu}),
        device_attribute=SimpleNamespace(INTEGRATED=18),
        event_flags=flags,
        Event=lambda flags: flags,
        Stream=lambda flags: flags,
        Error=CudaError,
        MemoryError=CudaMemoryError,
    )
    monkeypatch.setattr(cuda_device, "pycuda_driver", lambda: driver)
    monkeypatch.setattr(cuda_device, "_primary_context", lambda index: None)
    device = CudaDevice(index, "net.plan")
    device.open()
    return device


@pytest.mark.parametrize("integrated", [0, 1])
def test_events_of_an_integrated_gpu_leave_the_processor_to_others(
    monkeypatch: pytest.MonkeyPatch, integrated: int
) -> None:
    device = opened(monkeypatch, count=1, integrated=integrated)
    assert (device.name, device.architecture) == ("a GPU", "sm_87")
    assert device.event() == 2 | integrated
    assert device.event(timing=True) == integrated
    assert device.stream() == 1  # CU_STREAM_NON_BLOCKING


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch, count=2, integrated=0, index=1).architecture == "sm_87"
    with pytest.raises(HspanError, match=r"^gpu:2: no such GPU, this machine has 2; take --device gpu:0$"):
        opened(monkeypatch, count=2, integrated=0, index=2)


def test_a_message_that_is_understood_says_what_to_do(log: list[str]) -> None:
    device = CudaDevice(0, "net.plan")
    with pytest.raises(HspanError) as refused, device.translate_errors("failed"):
        raise CudaError("cuInit failed: no CUDA-capable device is detected")
    meaning, next_step = advice_for_cuda_message("no CUDA-capable device is detected") or ("", "")
    assert str(refused.value) == (
        f"net.plan: failed: {meaning} (cuInit failed: no CUDA-capable device is detected); {next_step}"
    )


def test_free_and_total_memory_are_in_this_order() -> None:
    device = CudaDevice(0, "net.plan")
    device._driver = SimpleNamespace(mem_get_info=lambda: (3.0, 8.0))
    assert device.memory_bytes() == (3, 8)


def test_a_pycuda_that_does_not_load_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("pycuda")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "driver.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')")
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(
        HspanError, match=r"^PyCUDA: does not load: libcuda\.so\.1: .*; install the NVIDIA driver"
    ):
        cuda_device.pycuda_driver()
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(HspanError, match=r"^PyCUDA: is not installed; "):
        cuda_device.pycuda_driver()
