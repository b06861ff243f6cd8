"""A GPU, its driver and an opened engine in numpy, in this process: what a session asks of them, and in which order.

Real PyCUDA on a driver in C, with streams that run later, is in `tests/cuda_standin`. Here everything is done at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trt_hspan.errors import HspanError
from trt_hspan.runtime import cuda_device, engine_session
from trt_hspan.runtime.cuda_device import CudaDevice
from trt_hspan.runtime.cuda_graph import CaptureError
from trt_hspan.runtime.engine_session import EngineSession

Shape = tuple[int, ...]


class CudaError(Exception): ...


class CudaMemoryError(CudaError): ...


class Allocation:
    """Device memory: bytes at an address."""

    def __init__(self, driver: DriverDouble, size: int) -> None:
        self.driver, self.address = driver, 256 * (1 + driver.allocations)
        driver.allocations += 1
        driver.memory[self.address] = np.zeros(size, np.uint8)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        del self.driver.memory[self.address]


class Stream:
    """Does everything at once; its handle is its number."""

    def __init__(self, driver: DriverDouble) -> None:
        driver.streams += 1
        self.handle, self.driver = driver.streams, driver

    def synchronize(self) -> None:
        self.driver.log.append(f"wait for stream {self.handle}")
        if self.driver.fails_to_wait:
            raise CudaError("cuStreamSynchronize failed: an illegal memory access was encountered")

    def wait_for_event(self, event: Event) -> None:
        self.driver.log.append(f"stream {self.handle} waits")


class Event:
    """Notes the stream that it was recorded on, and when; milliseconds are records."""

    def __init__(self, driver: DriverDouble) -> None:
        self.driver, self.time = driver, -1

    def record(self, stream: Stream) -> None:
        self.driver.log.append(f"record on {stream.handle}")
        self.time = self.driver.log.count(f"record on {stream.handle}")

    def synchronize(self) -> None:
        assert self.time > 0

    def time_till(self, later: Event) -> float:
        return float(later.time - self.time)


class DriverDouble:
    """PyCUDA's driver module, as far as a session uses it."""

    Error, MemoryError = CudaError, CudaMemoryError
    event_flags = SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=2)

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.allocations = self.streams = self.pinned = 0
        self.log: list[str] = []
        self.fails_to_wait = False

    def mem_alloc(self, size: int) -> Allocation:
        return Allocation(self, size)

    def pagelocked_empty(self, shape: Shape, dtype: type) -> Any:
        self.pinned += 1

        def free() -> None:
            self.pinned -= 1

        class Pinned(np.ndarray):
            base = SimpleNamespace(free=free)

        return np.zeros(shape, dtype).view(Pinned)

    def memcpy_htod_async(self, address: int, array: np.ndarray, stream: Stream) -> None:
        self.log.append(f"upload on {stream.handle}")
        data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.memory[address][: len(data)] = data

    def memcpy_dtoh_async(self, array: np.ndarray, address: int, stream: Stream) -> None:
        self.log.append(f"download on {stream.handle}")
        size = math.prod(array.shape)
        array[...] = self.memory[address][: 4 * size].view(np.float32).reshape(array.shape)

    def Stream(self, flags: int) -> Stream:  # noqa: N802
        return Stream(self)

    def Event(self, flags: int) -> Event:  # noqa: N802
        return Event(self)


class ContextDouble:
    """Repeats every pixel in a square of 2x2."""

    def __init__(self, engine: EngineDouble, profile: int) -> None:
        self.engine, self.profile = engine, profile
        self.shape: Shape = ()
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self.shape = shape
        return "shape" not in self.engine.refuses

    def infer_shapes(self) -> list[str]:
        if "infer" in self.engine.refuses:
            raise RuntimeError("infer_shapes error code: -1")
        return ["output"] if "missing" in self.engine.refuses else []

    def get_tensor_shape(self, name: str) -> Shape:
        if "output shape" in self.engine.refuses:
            return self.engine.refuses["output shape"]
        n, channels, height, width = self.shape
        return (n, channels, 2 * height, 2 * width)

    def update_device_memory_size_for_shapes(self) -> int:
        return 64 * math.prod(self.shape)

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name not in self.engine.refuses

    def execute_async_v3(self, stream: int) -> bool:
        self.engine.executions.append((self.profile, stream))
        address, size = self.memory
        assert len(self.engine.driver.memory[address]) == size >= 64 * math.prod(self.shape)
        memory, count = self.engine.driver.memory, math.prod(self.shape)
        batch = memory[self.addresses["input"]][: 4 * count].view(np.float32).reshape(self.shape)
        output = batch.repeat(2, 2).repeat(2, 3)
        target = memory[self.addresses["output"]]
        target[: 16 * count] = np.frombuffer(output.tobytes(), np.uint8)[: len(target)]
        return "execution" not in self.engine.refuses


class EngineDouble:
    """An opened engine; `refuses` names what it does not do."""

    where = "net.plan"

    def __init__(self, driver: DriverDouble, profiles: tuple[tuple[Shape, Shape, Shape], ...]) -> None:
        severities = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)
        self.trt: Any = ModuleType("tensorrt")
        self.trt.ILogger = type("ILogger", (), {"Severity": severities})
        self.driver, self.profiles = driver, profiles
        self.contexts: list[ContextDouble] = []
        self.executions: list[tuple[int, int]] = []
        self.refuses: dict[str, Any] = {}

    def create_context(self, profile: int, stream_handle: int) -> ContextDouble:
        if "context" in self.refuses:
            raise HspanError(self.where, "cannot create an execution context")
        self.contexts.append(ContextDouble(self, profile))
        return self.contexts[-1]


class GraphDouble:
    """Executes its context again."""

    def __init__(self, context: ContextDouble, output_shape: Shape, log: list[str]) -> None:
        self.context, self.output_shape, self.last_use, self.log = context, output_shape, 0, log
        self.refused = False

    def launch(self, stream_handle: int) -> None:
        if self.refused:
            raise CaptureError("cuGraphLaunch: CUDA_ERROR_UNKNOWN")
        self.log.append("launch")
        self.context.execute_async_v3(stream_handle)

    def free(self) -> None:
        self.log.append("free graph")


class GpuDouble:
    """A session on it all; `captures` says why a capture fails."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *profiles: tuple[Shape, Shape], **options: bool
    ) -> None:
        self.driver = DriverDouble()
        monkeypatch.setattr(cuda_device, "pycuda_driver", lambda: self.driver)
        self.engine = EngineDouble(self.driver, tuple((low, low, high) for low, high in profiles))
        self.device = CudaDevice(0, "net.plan")
        self.device._driver = self.driver
        self.current = 0
        self.device._context = SimpleNamespace(push=lambda: self._push(1), pop=lambda: self._push(-1))
        self.captures: Exception | None = None
        self.graphs: list[GraphDouble] = []
        monkeypatch.setattr(engine_session, "capture_graph", self._capture)
        self.session = EngineSession(self.engine, self.device, **options)

    def _push(self, count: int) -> None:
        self.current += count

    def _capture(
        self, stream: int, enqueue: Callable[[], bool], output_shape: Shape, context: ContextDouble
    ) -> GraphDouble:
        if self.captures is not None:
            raise self.captures
        self.graphs.append(GraphDouble(context, output_shape, self.driver.log))
        return self.graphs[-1]
