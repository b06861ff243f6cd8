"""From a plan's bytes to an engine and its contexts, for both TensorRTs.

TensorRT-RTX compiles kernels when a context first meets a shape. They are kept in a runtime cache, and compiled before
the run goes on (EAGER): otherwise a CUDA graph would contain the slower kernels that stand in for them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from trt_hspan.engine.spec import Trait
from trt_hspan.engine.tensorrt_api import CollectedLog, collected_log, refusal, runtime_for
from trt_hspan.errors import HspanError
from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME

_BUILD_AGAIN = "build the engine again with trt-hspan build"
_LOG = logging.getLogger(__name__)

# EngineInvalidityDiagnostics of TensorRT-RTX -> what it means, and what to do.
_DIAGNOSES = {
    "VERSION_MISMATCH": ("was built by another TensorRT-RTX release", _BUILD_AGAIN),
    "UNSUPPORTED_CC": ("contains no code for this GPU", f"{_BUILD_AGAIN} and --target"),
    "OLD_CUDA_DRIVER": ("needs a newer NVIDIA driver", "install a newer driver"),
    "OLD_CUDA_RUNTIME": ("needs a newer CUDA runtime", "install a newer CUDA"),
    "INSUFFICIENT_GPU_MEMORY": ("does not fit into the GPU's memory", "free some, or take a smaller --max"),
    "MALFORMED_ENGINE": ("is not an engine of TensorRT-RTX, or damaged", _BUILD_AGAIN),
    "CUDA_ERROR": ("cannot be checked: CUDA fails", "see trt-hspan doctor"),
}


def engine_validity(trt: Any, runtime: Any, data: bytes, where: str) -> None:
    """Whether TensorRT-RTX can run a plan, without opening it. Other TensorRTs cannot say.

    What it cannot say, such as without a GPU (*measured* on 1.7.1: invalid, with no diagnosis), is no error.

    Raises:
        HspanError: it says why it cannot.
    """
    validity_of = getattr(runtime, "get_engine_validity", None)
    if validity_of is None:
        return
    validity, diagnosis = validity_of(data)
    if validity == trt.EngineValidity.VALID:
        return
    diagnoses = trt.EngineInvalidityDiagnostics.__members__
    reasons = [name for name, bit in diagnoses.items() if int(diagnosis) & int(bit)]
    if validity == trt.EngineValidity.SUBOPTIMAL:
        _LOG.warning("%s: runs here, but slower than it could: %s", where, ", ".join(reasons) or "no reason")
    elif reasons:
        what, next_step = _DIAGNOSES.get(reasons[0], (f"is invalid: {', '.join(reasons)}", _BUILD_AGAIN))
        raise HspanError(where, what, next_step)


class LoadedEngine:
    """A deserialized engine. `close` frees it; contexts made from it must be gone.

    Args:
        trt: the TensorRT module.
        data: the plan, checked against its manifest.
        where: the plan's name, for errors.
        traits: of the manifest.
        cache: data of the runtime cache, or None; TensorRT-RTX alone has one.

    Raises:
        OutOfMemoryError: its weights do not fit.
        HspanError: TensorRT refuses it, or its inputs and outputs are not this project's.
    """

    def __init__(
        self,
        trt: Any,
        data: bytes,
        where: str,
        *,
        traits: Collection[Trait] = (),
        cache: bytes | None = None,
    ) -> None:
        self.trt, self.where = trt, where
        self._config: Any = None
        self._cache: Any = None
        with collected_log(trt) as log:
            self._runtime = runtime_for(trt, traits)
            engine_validity(trt, self._runtime, data, where)
            self._engine = self._runtime.deserialize_cuda_engine(data)
            if self._engine is None:
                raise self._refusal("cannot be loaded", log)
        self._require_interface()
        self._profiles: tuple[Any, ...] = tuple(
            tuple(tuple(int(size) for size in dims) for dims in shapes)
            for shapes in (
                self._engine.get_tensor_profile_shape(INPUT_NAME, index)
                for index in range(self._engine.num_optimization_profiles)
            )
        )
        if hasattr(self._engine, "create_runtime_config") and hasattr(trt, "IRuntimeCache"):
            self._configure_rtx(cache)

    @property
    def profiles(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]:
        """The (N, 3, H, W) shapes min, opt, max of each profile."""
        return self._profiles

    def create_context(self, profile: int, stream_handle: int) -> Any:
        """An execution context for one profile, without memory for activations: that is the caller's to give.

        Executed on another stream, it must wait for this one first. Raises: HspanError, OutOfMemoryError.
        """
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with collected_log(self.trt) as log:
            if self._config is not None:
                context = self._engine.create_execution_context(self._config)
            else:
                context = self._engine.create_execution_context(strategy)
            if context is None:
                raise self._refusal("cannot create an execution context", log)
            if len(self._profiles) > 1:
                self._select(context, profile, stream_handle, log)
        return context

    def runtime_cache_data(self) -> bytes | None:
        """What TensorRT-RTX has compiled so far; None for other TensorRTs, or when there is nothing."""
        if self._cache is None:
            return None
        data = self._cache.serialize()
        return None if data is None or data.nbytes == 0 else bytes(data)

    def weights_bytes(self) -> int | None:
        """Size of the weights, where TensorRT says it."""
        statistic = getattr(self.trt, "EngineStat", None)
        if statistic is None:
            return None
        size = int(self._engine.get_engine_stat(statistic.TOTAL_WEIGHTS_SIZE))
        return size if size >= 0 else None

    def layer_information(self) -> str:
        """The engine's layers as TensorRT's JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Frees configuration, engine and runtime, in the order in which they depend on each other."""
        self._config = None
        self._cache = None
        self._engine = None
        self._runtime = None

    def _select(self, context: Any, profile: int, stream_handle: int, log: CollectedLog) -> None:
        raised = None
        try:
            selected = context.set_optimization_profile_async(profile, stream_handle)
        except (RuntimeError, ValueError) as error:
            selected, raised = False, str(error)
        if not selected:
            raise self._refusal(f"cannot select profile {profile}", log, raised=raised)

    def _configure_rtx(self, cache: bytes | None) -> None:
        trt = self.trt
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the session captures its own
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._cache = self._config.create_runtime_cache()
        if cache is not None and not self._cache.deserialize(cache):
            _LOG.info("%s: its runtime cache is of another GPU or driver; a new one is written", self.where)
        self._config.set_runtime_cache(self._cache)

    def _require_interface(self) -> None:
        engine = self._engine
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        if names != {INPUT_NAME, OUTPUT_NAME}:
            raise HspanError(
                self.where,
                f"its tensors are {', '.join(sorted(names))}, expected {INPUT_NAME} and {OUTPUT_NAME}",
                _BUILD_AGAIN,
            )
        for name in sorted(names):
            if engine.get_tensor_dtype(name) != self.trt.DataType.FLOAT:
                raise HspanError(self.where, f"its {name} is not float32", _BUILD_AGAIN)

    def _refusal(self, what: str, log: CollectedLog, *, raised: str | None = None) -> HspanError:
        memory = "free some of the GPU's memory"
        return refusal(self.where, what, log, _BUILD_AGAIN, memory, raised=raised)
