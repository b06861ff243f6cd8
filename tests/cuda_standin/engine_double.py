"""A double of TensorRT's runtime half, as far as a runner uses it: documented API only, on the stand-in driver.

It reads no engine: a "plan" is JSON that names an ONNX file and profiles. `execute_async_v3` puts a host function on
the caller's stream that runs the file under ONNX Runtime on the hidden host copies of the device buffers, so that
what comes out is a true picture if and only if upload, order, addresses, lifetimes, capture and download are right.
Like TensorRT it answers False and logs an error where it refuses; what would be undefined behavior there is noted in
`MISUSES`, which every test wants empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import gc
import json
import math
import types
import weakref
from typing import Any

import numpy as np
import onnxruntime

#: What a program did that TensorRT's documentation forbids and the real one would not catch.
MISUSES: list[str] = []
#: Calls in order, by name, of the objects whose order matters.
CALLS: list[str] = []
#: Plugin libraries that were registered.
LIBRARIES: list[str] = []
#: Shapes whose first execution during a capture fails, as a plug-in that allocates would make it.
UNCAPTURABLE: set[tuple[int, ...]] = set()
#: What `is_stream_capturable` answers, and `get_engine_validity`.
ANSWERS: dict[str, Any] = {}

_SCRATCH_BYTES_PER_PIXEL = 64
_FLOAT32_BYTES = 4
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self) -> None: ...


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class EngineInvalidityDiagnostics(enum.IntFlag):
    VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER, OLD_CUDA_RUNTIME = 1, 2, 4, 8
    INSUFFICIENT_GPU_MEMORY, MALFORMED_ENGINE, CUDA_ERROR = 16, 32, 64


class IRuntimeCache:
    """Holds the shapes that were compiled."""

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()
        self.accepted: bool | None = None

    def deserialize(self, blob: bytes) -> bool:
        try:
            self.shapes = {tuple(shape) for shape in json.loads(blob)}
        except ValueError:
            self.accepted = False
        else:
            self.accepted = True
        return self.accepted

    def serialize(self) -> memoryview:
        return memoryview(json.dumps(sorted(self.shapes)).encode())


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        CALLS.append("Runtime")
        self.logger = logger
        self.engine_host_code_allowed = False
        self.temporary_directory: str | None = None

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        CALLS.append("deserialize")
        if not _context_is_current():
            MISUSES.append("deserialize_cuda_engine without a current CUDA context")
        try:
            plan = json.loads(bytes(data).partition(b"\n")[0])
            if plan.get("has_code") and not self.engine_host_code_allowed:
                _error(self.logger, "IRuntime::deserializeCudaEngine: Error Code 6: host code is not allowed")
                return None
            return self._engine_class()(self, plan)
        except ValueError:
            _error(self.logger, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization")
            return None

    def _engine_class(self) -> type[ICudaEngine]:
        return ICudaEngine

    def __del__(self) -> None:
        CALLS.append("~Runtime")


class RtxRuntime(Runtime):
    def _engine_class(self) -> type[ICudaEngine]:
        return RtxEngine

    def get_engine_validity(self, data: bytes) -> tuple[EngineValidity, int]:
        return ANSWERS.get("validity", (EngineValidity.VALID, 0))


class ICudaEngine:
    def __init__(self, runtime: Runtime, plan: dict[str, Any]) -> None:
        self.runtime, self.plan = runtime, plan
        self.session = onnxruntime.InferenceSession(plan["onnx"], providers=["CPUExecutionProvider"])
        self.num_io_tensors = 2
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return self.plan.get("names", ["input", "output"])[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.plan.get("dtype", "FLOAT")]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.plan["profiles"][profile]]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        return self._context(strategy, None)

    def _context(self, strategy: Any, config: IRuntimeConfig | None) -> IExecutionContext | None:
        if ANSWERS.get("no context"):
            _error(self.runtime.logger, "Error Code 2: OutOfMemory (no further information)")
            return None
        CALLS.append("create_execution_context")
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            MISUSES.append(f"memory for the maximum of the profile: {strategy}")
        return IExecutionContext(self, config)

    def __del__(self) -> None:
        CALLS.append("~Engine")


class RtxEngine(ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(  # type: ignore[override]
        self, runtime_config: IRuntimeConfig | None = None
    ) -> IExecutionContext | None:
        assert runtime_config is not None
        context = self._context(runtime_config.strategy, runtime_config)
        if context is not None:
            context.is_stream_capturable = lambda stream: ANSWERS.get("capturable", True)  # type: ignore[attr-defined]
        return context


class IExecutionContext:
    """Refuses what TensorRT refuses: shapes outside the profile, missing memory, addresses or shapes.

    A captured graph belongs to the state that the context had: `changes` counts what ends that state.
    """

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None) -> None:
        self.engine, self.config, self.profile = engine, config, 0
        self.shape: tuple[int, ...] | None = None
        self.shape_is_new = True
        self.memory = (0, 0)
        self.addresses: dict[str, int] = {}
        self.changes = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if ANSWERS.get("profiles raise"):
            raise RuntimeError("Error in set optimization profile async.")
        if profile != self.profile:
            self.profile, self.shape, self.memory = profile, None, (0, 0)
            self.changes += 1
        return 0 <= profile < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        fits = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if not fits:
            return self._refuse(f"setInputShape: {shape} is outside of profile {self.profile}")
        if shape != self.shape:
            self.shape, self.shape_is_new, self.memory = shape, True, (0, 0)
            self.changes += 1
        return True

    def infer_shapes(self) -> list[str]:
        if ANSWERS.get("infer_shapes raises"):
            raise RuntimeError("infer_shapes error code: -1")
        return [] if self.shape else ["input"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self.shape is None:
            return (-1, 3, -1, -1)
        n, channels, height, width = self.shape
        return self.shape if name == "input" else (n, channels, 2 * height, 2 * width)

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shape is not None
        return _SCRATCH_BYTES_PER_PIXEL * self.shape[0] * self.shape[2] * self.shape[3]

    def set_device_memory(self, memory: int, size: int) -> None:
        self.changes += (memory, size) != self.memory
        self.memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.changes += memory != self.addresses.get(name)
        self.addresses[name] = memory
        return memory % 256 == 0 or self._refuse(f"setTensorAddress: {name} is not aligned")

    def execute_async_v3(self, stream: int) -> bool:
        if self.shape is None or self.addresses.keys() != {"input", "output"}:
            return self._refuse("enqueueV3: shape or address missing")
        needed = self.update_device_memory_size_for_shapes()
        if self.memory[1] < needed:
            return self._refuse(f"enqueueV3: needs {needed} bytes of memory, has {self.memory[1]}")
        driver, handle = _driver(), ctypes.c_void_p(stream)
        if self.shape_is_new or self.shape in UNCAPTURABLE:
            # The deferred part of a change of shape allocates: harmless, unless the stream is being captured.
            scratch = ctypes.c_uint64()
            if driver.cuMemAlloc_v2(ctypes.byref(scratch), ctypes.c_size_t(256)) != 0:
                return self._refuse("enqueueV3: Error Code 1: Cuda Runtime (operation not permitted)")
            driver.cuMemFree_v2(scratch)
            self.shape_is_new = False
        if self.config is not None and self.config.cache is not None:
            self.config.cache.shapes.add(self.shape)
        captured = ctypes.c_int()
        driver.cuStreamIsCapturing(handle, ctypes.byref(captured))
        function = _HOST_FUNCTION(_work(self, needed, captured=bool(captured.value)))
        _KEPT.append(function)
        return int(driver.cuLaunchHostFunc(handle, function, None)) == 0

    def _refuse(self, message: str) -> bool:
        _error(self.engine.runtime.logger, message)
        return False

    def __del__(self) -> None:
        CALLS.append("~Context")


_KEPT: list[Any] = []  # host functions live as long as graphs may call them


def _work(context: IExecutionContext, needed: int, *, captured: bool) -> Any:
    """What the engine does on the GPU, with shapes and addresses as they were when it was enqueued."""
    session, memory, addresses = context.engine.session, context.memory[0], dict(context.addresses)
    shape, output_shape = context.shape, context.get_tensor_shape("output")
    changes, owner = context.changes, weakref.ref(context)
    assert shape is not None

    def work(_: object) -> None:
        with contextlib.suppress(Exception):
            alive = owner()
            if alive is None:
                MISUSES.append(f"{shape}: its context was destroyed before it was executed")
            elif captured and alive.changes != changes:
                MISUSES.append(f"{shape}: a graph was replayed after its context had changed")
            del alive  # the caller alone decides when a context ends
            scratch = _host(memory, needed, "activation memory")
            source = _host(addresses["input"], _FLOAT32_BYTES * math.prod(shape), "input")
            target = _host(addresses["output"], _FLOAT32_BYTES * math.prod(output_shape), "output")
            batch = source.view(np.float32).reshape(shape).copy()
            scratch[:] = 0x5A  # activations overwrite whatever shares their memory
            target[:] = 0xFF
            (output,) = session.run(["output"], {"input": batch})
            target.view(np.float32).reshape(output_shape)[...] = output

    return work


def _host(address: int, size: int, what: str) -> Any:
    driver = _driver()
    driver.custandin_host.restype = ctypes.c_void_p
    pointer = driver.custandin_host(ctypes.c_uint64(address), ctypes.c_size_t(size))
    if not pointer:
        MISUSES.append(f"{what}: the engine ran on memory that is not there")
        raise ValueError(what)
    return np.frombuffer((ctypes.c_ubyte * size).from_address(pointer), np.uint8)


def _context_is_current() -> bool:
    context = ctypes.c_void_p()
    return _driver().cuCtxGetCurrent(ctypes.byref(context)) == 0 and bool(context)


def _error(logger: Any, message: str) -> None:
    logger.log(Severity.ERROR, message)


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def reset() -> None:
    """Forgets what earlier tests did and asked for; what their errors still hold ends first."""
    gc.collect()
    for memory in (MISUSES, CALLS, LIBRARIES, UNCAPTURABLE, ANSWERS):
        memory.clear()


class PluginRegistry:
    """Notes the libraries; none of their code runs."""

    all_creators: tuple[Any, ...] = ()

    def load_library(self, path: str) -> object:
        LIBRARIES.append(path)
        return object()


def module(name: str, version: str) -> types.ModuleType:
    """A module that looks like `tensorrt` or `tensorrt_rtx` to a runner."""
    module = types.ModuleType(name)
    shared = (ILogger, DataType, ExecutionContextAllocationStrategy)
    for member in shared:
        setattr(module, member.__name__, member)
    module.__version__ = version  # type: ignore[attr-defined]
    module.Runtime = Runtime  # type: ignore[attr-defined]
    module.get_plugin_registry = PluginRegistry  # type: ignore[attr-defined]
    if name == "tensorrt_rtx":
        module.Runtime = RtxRuntime  # type: ignore[attr-defined]
        rtx = (
            IRuntimeCache,
            CudaGraphStrategy,
            DynamicShapesKernelSpecializationStrategy,
            EngineValidity,
            EngineInvalidityDiagnostics,
        )
        for member in rtx:
            setattr(module, member.__name__, member)
    return module
