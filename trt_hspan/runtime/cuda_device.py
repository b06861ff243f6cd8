"""One GPU through PyCUDA: context, memory, streams, events.

TensorRT works in the device's primary context, so that is the one used here.
"""

from __future__ import annotations

import atexit
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from trt_hspan.errors import HspanError, OutOfMemoryError
from trt_hspan.machine.gpu import advice_for_cuda_message
from trt_hspan.machine.install_advice import install_advice
from trt_hspan.runtime.runner import Float32Array

_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING: no implicit waiting for the legacy stream


class CudaDevice:
    """A GPU and its primary context. `open` before use; what it allocates must be freed inside `current`.

    Args:
        index: in CUDA's order.
        where: what runs on it; errors name it.
    """

    def __init__(self, index: int, where: str) -> None:
        self.index, self.where = index, where
        self._driver: Any = None
        self._context: Any = None
        self.name = ""
        self.architecture = ""
        self._is_integrated = False

    def open(self) -> None:
        """Takes the device's primary context.

        Raises:
            HspanError: PyCUDA is not installed or finds no driver, there is no such GPU, or CUDA refuses.
        """
        driver = pycuda_driver()
        with self.translate_errors("CUDA cannot start"):
            driver.init()
            count = driver.Device.count()
        if self.index >= count:
            raise HspanError(
                f"gpu:{self.index}", f"no such GPU, this machine has {count}", "take --device gpu:0"
            )
        with self.translate_errors("CUDA cannot open the GPU"):
            device = driver.Device(self.index)
            self.name = str(device.name())
            major, minor = device.compute_capability()
            self.architecture = f"sm_{major}{minor}"
            self._is_integrated = device.get_attribute(driver.device_attribute.INTEGRATED) != 0
            self._context = _primary_context(self.index)
        self._driver = driver

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the context current in this thread for the block."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    @contextmanager
    def translate_errors(self, what: str) -> Iterator[None]:
        """Turns PyCUDA's exceptions into one line.

        Raises:
            OutOfMemoryError: device or pinned memory is used up.
            HspanError: anything else that CUDA refuses.
        """
        driver = pycuda_driver()
        try:
            yield
        except driver.MemoryError as error:
            raise OutOfMemoryError(
                self.where, f"{what}: out of GPU or pinned memory", "use smaller tiles or a smaller batch"
            ) from error
        except driver.Error as error:
            meaning, next_step = advice_for_cuda_message(str(error)) or ("", "see trt-hspan doctor")
            cause = f"{meaning} ({error})" if meaning else str(error)
            raise HspanError(self.where, f"{what}: {cause}", next_step) from error

    def stream(self) -> Any:
        """A stream that does not wait for the legacy one."""
        return self._driver.Stream(_NON_BLOCKING)

    def event(self, *, timing: bool = False) -> Any:
        """An event; only one with `timing` gives times.

        Whoever waits for it on an integrated GPU, which shares power with the processor, leaves that to others.
        """
        flags = self._driver.event_flags
        chosen = flags.DEFAULT if timing else flags.DISABLE_TIMING
        return self._driver.Event(chosen | flags.BLOCKING_SYNC if self._is_integrated else chosen)

    def upload(self, target: DeviceBuffer, source: PinnedArray, stream: Any) -> None:
        """Queues a copy of the pinned array to the device."""
        self._driver.memcpy_htod_async(target.address, source.array, stream)

    def download(self, target: PinnedArray, source: DeviceBuffer, stream: Any) -> None:
        """Queues a copy of the device buffer's beginning to the pinned array."""
        self._driver.memcpy_dtoh_async(target.array, source.address, stream)

    def memory_bytes(self) -> tuple[int, int]:
        """(free, total) of the GPU; to be called inside `current`."""
        free, total = self._driver.mem_get_info()
        return int(free), int(total)


class DeviceBuffer:
    """Device memory that grows and never shrinks; empty until the first `reserve`."""

    def __init__(self) -> None:
        self._memory: Any = None
        self.size_bytes = 0

    @property
    def address(self) -> int:
        """Where it lies; 0 while it is empty. CUDA aligns allocations to at least 256 bytes."""
        return 0 if self._memory is None else int(self._memory)

    def reserve(self, size_bytes: int) -> bool:
        """Makes sure of this size; the contents are lost when it grows. Returns whether the address has changed.

        The old memory is given back first, so that both need not fit at a time.
        """
        if size_bytes <= self.size_bytes:
            return False
        self.free()
        self._memory = pycuda_driver().mem_alloc(size_bytes)
        self.size_bytes = size_bytes
        return True

    def free(self) -> None:
        """Gives the memory back; nothing may be using it."""
        if self._memory is not None:
            self._memory.free()
        self._memory, self.size_bytes = None, 0


class PinnedArray:
    """Pinned host memory that grows and never shrinks, seen as a float32 array of the shape in use."""

    def __init__(self) -> None:
        self._whole: Any = None
        self.array: Float32Array = np.empty(0, np.float32)

    @property
    def size_bytes(self) -> int:
        """What is allocated."""
        return 0 if self._whole is None else int(self._whole.nbytes)

    def reserve(self, shape: tuple[int, ...]) -> None:
        """Makes `array` one of this shape; its contents are undefined."""
        count = math.prod(shape)
        if self._whole is None or count > self._whole.size:
            self.free()
            self._whole = pycuda_driver().pagelocked_empty((count,), np.float32)
        if self.array.shape != shape:
            self.array = self._whole[:count].reshape(shape)

    def free(self) -> None:
        """Gives the memory back; no copy may be under way."""
        self.array = np.empty(0, np.float32)
        if self._whole is not None:
            self._whole.base.free()
        self._whole = None


@functools.cache
def _primary_context(index: int) -> Any:
    """Kept until the process ends, as TensorRT's CUDA runtime keeps it anyway: PyCUDA cannot release one cleanly
    (*measured* with 2026.1: `detach` leaves it on the thread's stack of contexts, its destructor warns).
    """
    context = pycuda_driver().Device(index).retain_primary_context()
    atexit.register(context.detach)
    return context


def pycuda_driver() -> Any:
    """PyCUDA's driver module.

    Raises:
        HspanError: PyCUDA is not installed, or the NVIDIA driver that it links to is not.
    """
    try:
        import pycuda.driver
    except ModuleNotFoundError as error:
        raise HspanError("PyCUDA", "is not installed", install_advice("pycuda")) from error
    except ImportError as error:
        raise HspanError(
            "PyCUDA", f"does not load: {error}", "install the NVIDIA driver, or PyCUDA again"
        ) from error
    return pycuda.driver
