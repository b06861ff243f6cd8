"""From ONNX bytes to a plan: parser, optimization profiles, builder options, the build."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from trt_hspan.engine.builder_log import figures_from_log
from trt_hspan.engine.manifest import IoTensor
from trt_hspan.engine.spec import OPTION_OF_TRAIT, EngineSpec, Trait
from trt_hspan.engine.tensorrt_api import (
    MODULE_OF,
    CollectedLog,
    collected_log,
    known_targets,
    progress_monitor,
    runtime_for,
    strongly_typed_network,
    tensorrt_logger,
)
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import error_from_os_error
from trt_hspan.machine.gpu import gpu_architectures
from trt_hspan.native.plugin import default_plugin_path
from trt_hspan.native.progress import BuildProgress, PhaseTracker

_T = TypeVar("_T")
Shape = tuple[int, ...]
Profiles = tuple[tuple[Shape, Shape, Shape], ...]

_FLAGS: dict[Trait, str] = {"version-compatible": "VERSION_COMPATIBLE", "refittable": "REFIT"}
_LEVELS: dict[Trait, str] = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}
_DTYPE_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_POLL_SECONDS = 0.05
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan and TensorRT's figures of it. `data` is a buffer; the rest is as in `EngineManifest`."""

    data: Any
    timing_cache: bytes | None
    io_tensors: tuple[IoTensor, ...]
    network_layer_counts: Mapping[str, int]
    engine_layer_counts: Mapping[str, int] | None
    activation_memory_bytes: tuple[int, ...] | None
    activation_memory_source: Literal["engine", "builder log"] | None
    weights_memory_bytes: int | None
    quantized_convolutions: int | None
    build_time_seconds: float


def build_plan(
    trt: Any,
    spec: EngineSpec,
    model: bytes,
    profiles: Profiles,
    *,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuiltPlan:
    """Builds in a thread of its own, so that Ctrl-C reaches Python and stops the build at its next step.

    Args:
        model: a serialized ONNX model with all weights inside.
        profiles: min, opt and max shape of the one input, for each profile; empty for a network without dynamic
            dimensions.

    Raises:
        HspanError: the parser or the builder failed; the line is TensorRT's.
        KeyboardInterrupt: after the build has stopped.
    """
    tracker = PhaseTracker()

    def poll() -> None:
        if on_progress is not None:
            on_progress(tracker.progress)

    def built() -> BuiltPlan:
        with collected_log(trt) as log:
            return _call_in_thread(
                lambda: _build(trt, spec, model, profiles, tracker=tracker, log=log),
                poll=poll,
                cancel=tracker.cancel,
            )

    if trt.__name__ in _FAILED:
        _FAILED.discard(trt.__name__)
        with contextlib.suppress(HspanError):  # it comes again, from the build that counts
            built()
    return built()


# Flavors whose last build in this process failed. Measured, TensorRT-RTX 1.7.1: the first build after one that its
# compiler refused leaves the quantized convolutions unfused without a message, the second is correct. So the first
# is discarded.
_FAILED: set[str] = set()


def _build(
    trt: Any, spec: EngineSpec, model: bytes, profiles: Profiles, *, tracker: PhaseTracker, log: CollectedLog
) -> BuiltPlan:
    logger = tensorrt_logger(trt)
    builder = trt.Builder(logger)
    network = strongly_typed_network(trt, builder)
    monitor = progress_monitor(trt, tracker)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        what, next_step = _parser_error(parser, log)
        raise HspanError(spec.output, f"TensorRT cannot read this model: {what}", next_step)
    config = _config(trt, builder, network, spec, profiles=profiles, log=log)
    config.progress_monitor = monitor
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if plan is None:
        _FAILED.add(trt.__name__)
        raise HspanError(
            spec.output,
            f"TensorRT built no engine: {log.first_error or 'it did not say why'}",
            _advice(trt, spec, network, log.first_error or ""),
        )
    layers = Counter(network.get_layer(index).type.name for index in range(network.num_layers))
    figures = figures_from_log(log.figures)
    count = max(1, len(profiles))
    from_engine = _activation_memory_from_engine(trt, plan, count, spec.traits)
    from_log = figures.activation_memory_bytes
    source: Literal["engine", "builder log"] | None = "engine" if from_engine is not None else "builder log"
    memory = from_engine
    if memory is None and len(from_log) == count:
        memory = from_log
    return BuiltPlan(
        data=plan,
        timing_cache=None if spec.timing_cache is None else bytes(config.get_timing_cache().serialize()),
        io_tensors=_io_tensors(network),
        network_layer_counts=dict(sorted(layers.items())),
        engine_layer_counts=figures.engine_layer_counts,
        activation_memory_bytes=memory,
        activation_memory_source=None if memory is None else source,
        weights_memory_bytes=figures.weights_memory_bytes,
        quantized_convolutions=figures.quantized_convolutions,
        build_time_seconds=round(seconds, 3),
    )


def _config(
    trt: Any, builder: Any, network: Any, spec: EngineSpec, *, profiles: Profiles, log: CollectedLog
) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    for pool, mib in (("WORKSPACE", spec.workspace_mib), ("TACTIC_DRAM", spec.tactic_dram_mib)):
        if mib is not None:
            config.set_memory_pool_limit(getattr(trt.MemoryPoolType, pool), mib << 20)
    if spec.optimization_level is not None:
        config.builder_optimization_level = spec.optimization_level
    _set_traits(trt, config, spec)
    if spec.timing_cache is not None:
        _set_timing_cache(config, spec.timing_cache)
    if spec.targets:
        capabilities = known_targets(trt)
        config.num_compute_capabilities = len(spec.targets)
        for index, target in enumerate(spec.targets):
            if not config.set_compute_capability(capabilities[target], index):
                raise HspanError("--target", f"TensorRT refuses {target}: {log.first_error}")
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise HspanError(spec.output, f"TensorRT refuses these shapes: {log.first_error}")
    return config


def _set_traits(trt: Any, config: Any, spec: EngineSpec) -> None:
    for trait in spec.traits & _FLAGS.keys():
        config.set_flag(getattr(trt.BuilderFlag, _FLAGS[trait]))
    for trait in spec.traits & _LEVELS.keys():
        level = getattr(trt.HardwareCompatibilityLevel, _LEVELS[trait], None)
        if level is None:
            raise UsageError(
                OPTION_OF_TRAIT[trait],
                f"TensorRT {trt.__version__} cannot do that",
                "leave it out, or take a newer one",
            )
        config.hardware_compatibility_level = level
    if "embedded-plugin" in spec.traits:
        config.plugins_to_serialize = [str((spec.plugin or default_plugin_path()).resolve())]


def _set_timing_cache(config: Any, path: Path) -> None:
    """Times of another GPU or release are of no use: TensorRT refuses them, and measures anew."""
    try:
        times = path.read_bytes()
    except FileNotFoundError:
        times = b""
    except OSError as error:
        raise error_from_os_error(path, error, action="read") from error
    cache = config.create_timing_cache(times)
    if cache is None or not config.set_timing_cache(cache, False):
        _LOG.warning("the timing cache is of another GPU or TensorRT, or damaged; a new one is measured")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _parser_error(parser: Any, log: CollectedLog) -> tuple[str, str | None]:
    """What the parser does not read, and the next step."""
    if parser.num_errors == 0:
        return log.first_error or "it did not say why", None
    error = parser.get_error(0)
    node, operator, reason = error.node_name(), error.node_operator(), error.desc()
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    if "Plugin not found" in reason:  # as it says of any operator that is none of its own
        step = "write that part of the network with other operations"
        return f"node {node}: it has no operator {operator}{more}", step
    return f"{f'node {node} ({operator}): ' if operator else ''}{reason}{more}", None


def _advice(trt: Any, spec: EngineSpec, network: Any, error: str) -> str:
    if trt.__name__ == MODULE_OF["tensorrt-rtx"] and "refittable" in spec.traits:
        return (
            "build it where there is a GPU, which TensorRT-RTX 1.7 wants for this, or leave out --refittable"
        )
    if (node := _low_node_in(network, error)) is not None:
        return f"keep that node in float32: --keep-fp32 {shlex.quote(node)}"
    return "see its messages with --verbose" + (
        "" if spec.workspace_mib is None else ", or raise --workspace-mib"
    )


def _low_node_in(network: Any, error: str) -> str | None:
    """The node in FP16 or BF16 that an error names; of several names the longest."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    named = [
        layer.name
        for layer in layers
        if re.search(rf"(?<![\w./]){re.escape(layer.name)}(?![\w./])", error)
        and layer.get_output(0).dtype.name in ("HALF", "BF16")
    ]
    return max(named, key=len, default=None)


def _io_tensors(network: Any) -> tuple[IoTensor, ...]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return tuple(
        IoTensor(
            name=tensor.name,
            dtype=_DTYPE_NAMES.get(tensor.dtype.name, tensor.dtype.name.lower()),
            shape=tuple(tensor.shape),
            mode="input" if index < len(inputs) else "output",
        )
        for index, tensor in enumerate([*inputs, *outputs])
    )


def _activation_memory_from_engine(
    trt: Any, plan: Any, profiles: int, traits: frozenset[Trait]
) -> tuple[int, ...] | None:
    """What the engine itself needs for each profile, or None where it is not to be opened.

    TensorRT's engine is for the GPU at hand. TensorRT-RTX's may be for another one, and opening one that contains a
    plugin is something that NVIDIA does not document.
    """
    if trt.__name__ != MODULE_OF["tensorrt"] or not gpu_architectures():
        return None
    engine = runtime_for(trt, traits).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    return tuple(int(engine.get_device_memory_size_for_profile_v2(index)) for index in range(profiles))


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """A list that Ctrl-C appends to, where it would raise KeyboardInterrupt; other handlers stay, other threads have
    none."""
    noted: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _call_in_thread(work: Callable[[], _T], *, poll: Callable[[], None], cancel: Callable[[], None]) -> _T:
    """Runs `work` in a thread while this one polls; when this one is interrupted, cancels and waits for the end.

    Waits for an event and never in `Thread.join`: interrupted there, Python 3.10 and 3.11 take the thread for dead.
    Ctrl-C is noted and raised at the end: a KeyboardInterrupt that comes in a finalizer or a callback is only printed.
    """
    results: list[_T] = []
    failures: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again in the calling thread
            failures.append(error)
        finally:
            ended.set()

    with _interrupts_noted() as noted:
        threading.Thread(target=run, name="tensorrt-build").start()
        try:
            while not ended.wait(_POLL_SECONDS):
                if noted:
                    cancel()
                poll()
            poll()
        except BaseException:
            cancel()
            while not ended.is_set():
                with contextlib.suppress(KeyboardInterrupt):  # the build is stopping already
                    ended.wait()
            raise
    if noted:
        raise KeyboardInterrupt
    if failures:
        raise failures[0]
    return results[0]
