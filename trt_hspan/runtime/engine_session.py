"""An opened engine at work: contexts, buffers, streams, graphs, and what must wait for what.

Upload, compute and download have a stream each; a batch in flight has a slot of buffers of its own, so that with
three slots one batch is uploaded while the one before it is computed and the one before that is downloaded.
Device and pinned memory grow to the largest shape that was run, not to the profile's maximum, and once the shapes
repeat nothing is allocated any more. All contexts share one buffer for activations: they run on one stream.

A CUDA graph is for one shape in one slot. It belongs to the state of the context that it is captured from, so it has
a context of its own, whose shape and addresses stay; ordinary executions share a context for each profile. It is
captured when the pair is used again, after an ordinary execution, because TensorRT finishes a change of shape inside
`execute_async_v3`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from trt_hspan.engine.tensorrt_api import collected_log, refusal
from trt_hspan.errors import HspanError
from trt_hspan.graph import INPUT_NAME, OUTPUT_NAME
from trt_hspan.runtime.cuda_device import CudaDevice, DeviceBuffer, PinnedArray
from trt_hspan.runtime.cuda_graph import CaptureError, GraphCache, capture_graph
from trt_hspan.runtime.runner import Float32Array

Shape = tuple[int, ...]

#: Batches in flight in `run_many`: one each in upload, compute and download.
PIPELINE_SLOTS: Final = 3
#: Graphs kept, each with a context: four shapes in each of the slots, of which `run` has one more.
GRAPH_CAPACITY: Final = 4 * (PIPELINE_SLOTS + 1)
_FLOAT32_BYTES: Final = 4
_SMALLER_TILES: Final = "use smaller tiles or a smaller batch"

_LOG = logging.getLogger(__name__)


class OpenedEngine(Protocol):
    """What a session needs of `engine_loading.LoadedEngine`."""

    trt: Any
    where: str

    @property
    def profiles(self) -> tuple[tuple[Shape, Shape, Shape], ...]: ...

    def create_context(self, profile: int, stream_handle: int) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """GPU time of one batch by CUDA events, in milliseconds."""

    upload_ms: float
    compute_ms: float
    download_ms: float


@dataclass(frozen=True, kw_only=True)
class SessionMemory:
    """What a session has allocated, in bytes; weights are not in it."""

    activation_bytes: int
    io_device_bytes: int
    pinned_bytes: int


@dataclass
class _Slot:
    """The buffers of one batch in flight, and the events at the ends of its stages."""

    index: int
    events: dict[str, Any]
    source: PinnedArray = field(default_factory=PinnedArray)
    target: PinnedArray = field(default_factory=PinnedArray)
    device_source: DeviceBuffer = field(default_factory=DeviceBuffer)
    device_target: DeviceBuffer = field(default_factory=DeviceBuffer)

    def free(self) -> None:
        for memory in (self.source, self.target, self.device_source, self.device_target):
            memory.free()


class EngineSession:
    """Executes batches on an engine. Made, used and closed with the device's context current or not, by any thread.

    Args:
        engine: the engine; it must outlive the session.
        device: an open device; it must outlive the session.
        use_graphs: whether shapes that repeat are replayed as CUDA graphs.
        timing: whether `last_times` is filled; costs events with time stamps.

    Attributes:
        capture_failures: shape -> why it has no graph. Each is logged as a warning too.
        last_times: of the batch collected last, or None without `timing`.
    """

    def __init__(
        self, engine: OpenedEngine, device: CudaDevice, *, use_graphs: bool = True, timing: bool = False
    ) -> None:
        self._engine, self._device, self._use_graphs, self._timing = engine, device, use_graphs, timing
        self._lock = threading.RLock()
        self._contexts: dict[int, Any] = {}
        self._streams: dict[str, Any] = {}
        self._slots: list[_Slot] = []
        self._activations = DeviceBuffer()
        self._graphs = GraphCache(GRAPH_CAPACITY, self._wait)
        self._piping = False
        self.capture_failures: dict[Shape, str] = {}
        self.graph_launches = 0
        self.last_times: StageTimes | None = None

    def open(self) -> None:
        """Makes streams, events and the contexts. Raises: HspanError when TensorRT or CUDA refuses."""
        with self._device.current(), self._device.translate_errors("CUDA refuses"):
            for stage in ("upload", "compute", "download"):
                self._streams[stage] = self._device.stream()
            ends = ("uploaded", "computed", "downloaded")
            begins = ("upload", "compute", "download") if self._timing else ()
            for index in range(1 + PIPELINE_SLOTS):
                events = {name: self._device.event(timing=self._timing) for name in (*ends, *begins)}
                self._slots.append(_Slot(index, events))
            for profile in range(len(self._engine.profiles)):
                self._contexts[profile] = self._engine.create_context(
                    profile, self._streams["compute"].handle
                )
            self._wait()

    def close(self) -> None:
        """Waits for what is under way and frees everything. What fails is logged, and the rest is still freed."""
        if not self._streams:
            return
        with self._lock, self._device.current():
            _attempt(self._wait)
            _attempt(self._graphs.clear)
            self._contexts.clear()
            while self._slots:
                _attempt(self._slots.pop().free)
            _attempt(self._activations.free)
            self._streams.clear()

    @property
    def graph_count(self) -> int:
        """CUDA graphs that are kept."""
        return len(self._graphs)

    @property
    def memory(self) -> SessionMemory:
        """What is allocated now."""
        slots = self._slots
        return SessionMemory(
            activation_bytes=self._activations.size_bytes,
            io_device_bytes=sum(s.device_source.size_bytes + s.device_target.size_bytes for s in slots),
            pinned_bytes=sum(s.source.size_bytes + s.target.size_bytes for s in slots),
        )

    def profile_for(self, shape: Shape) -> int | None:
        """The profile that takes the shape, the one with the smallest maximum if several do; None if none does."""
        fitting = [
            (math.prod(high), index)
            for index, (low, _, high) in enumerate(self._engine.profiles)
            if len(shape) == len(low)
            and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        ]
        return min(fitting)[1] if fitting else None

    def run(self, batch: Float32Array) -> Float32Array:
        """Executes one C-contiguous batch and waits for it.

        Raises:
            RuntimeError: the session is closed.
            OutOfMemoryError, HspanError: TensorRT or CUDA refuses.
        """
        with self._lock:
            slot = self._slot(0)
            self._submit(slot, batch)
            return self._collect(slot)

    def run_many(self, batches: Iterable[Float32Array]) -> Iterator[Float32Array]:
        """Executes batches in order, up to three in flight; see `Runner.run_many`.

        Raises:
            RuntimeError: another `run_many` of this session has not ended yet, or the session was closed.
            OutOfMemoryError, HspanError: as `run`.
        """
        with self._lock:
            if self._piping:
                raise RuntimeError("one run_many at a time: exhaust or close the one before")
            self._piping = True
        waiting: list[_Slot] = []
        try:
            for number, batch in enumerate(batches):
                slot = self._slot(1 + number % PIPELINE_SLOTS)
                if slot in waiting:
                    yield self._collect(waiting.pop(0))
                self._submit(slot, batch)
                waiting.append(slot)
            while waiting:
                yield self._collect(waiting.pop(0))
        finally:
            self._piping = False
            if waiting and self._streams:
                with self._device.current(), contextlib.suppress(HspanError):
                    self._wait()

    def _slot(self, index: int) -> _Slot:
        with self._lock:
            self._require_open()
            return self._slots[index]

    def _require_open(self) -> None:
        """Another thread may have closed the session since, or a `run_many` have been left half-way."""
        if not self._slots:
            raise RuntimeError("the runner is not active: use it in a `with` block")

    def _submit(self, slot: _Slot, batch: Float32Array) -> None:
        """Queues upload, compute and download of a batch in an idle slot."""
        with (
            self._lock,
            self._device.current(),
            self._device.translate_errors("failed on the GPU"),
            collected_log(self._engine.trt) as log,
        ):
            self._require_open()
            launch = self._prepare(slot, batch.shape, log)
            slot.source.array[...] = batch
            upload, compute, download = (self._streams[name] for name in ("upload", "compute", "download"))
            self._begin(slot, "upload", upload)
            self._device.upload(slot.device_source, slot.source, upload)
            slot.events["uploaded"].record(upload)
            compute.wait_for_event(slot.events["uploaded"])
            self._begin(slot, "compute", compute)
            launch()
            slot.events["computed"].record(compute)
            download.wait_for_event(slot.events["computed"])
            self._begin(slot, "download", download)
            self._device.download(slot.target, slot.device_target, download)
            slot.events["downloaded"].record(download)

    def _collect(self, slot: _Slot) -> Float32Array:
        """Waits for a slot and copies its result out."""
        with self._lock, self._device.current(), self._device.translate_errors("failed on the GPU"):
            self._require_open()
            slot.events["downloaded"].synchronize()
            if self._timing:
                events = slot.events
                self.last_times = StageTimes(
                    upload_ms=events["upload"].time_till(events["uploaded"]),
                    compute_ms=events["compute"].time_till(events["computed"]),
                    download_ms=events["download"].time_till(events["downloaded"]),
                )
            return slot.target.array.copy()

    def _begin(self, slot: _Slot, stage: str, stream: Any) -> None:
        if self._timing:
            slot.events[stage].record(stream)

    def _prepare(self, slot: _Slot, shape: Shape, log: Any) -> Callable[[], None]:
        """Reserves a slot's memory for a shape and returns what puts its execution into the compute stream."""
        profile = self.profile_for(shape)
        if profile is None:
            raise HspanError(self._engine.where, f"no profile of the engine takes {_text(shape)}")
        key = (shape, slot.index)
        graph = self._graphs.use(key) if self._use_graphs else None
        if graph is not None:
            slot.source.reserve(shape)
            slot.target.reserve(graph.output_shape)
            return lambda: self._launch(graph)
        own = self._context_of_graph(key, profile) if self._use_graphs else None
        context = own or self._contexts[profile]
        output_shape = self._bind(context, slot, shape, log)
        slot.source.reserve(shape)
        slot.target.reserve(output_shape)

        def execute() -> None:
            self._check(context.execute_async_v3(self._streams["compute"].handle), "cannot execute", log)
            if own is not None:
                self._capture(key, own, output_shape, log)

        return execute

    def _context_of_graph(self, key: tuple[Shape, int], profile: int) -> Any:
        """A context for a graph of this key, or None where none is to be captured."""
        if key[0] in self.capture_failures or not self._graphs.worth_capturing(key):
            return None
        try:
            return self._engine.create_context(profile, self._streams["compute"].handle)
        except HspanError as error:
            self._note_failure(key[0], error.what)
            return None

    def _bind(self, context: Any, slot: _Slot, shape: Shape, log: Any) -> Shape:
        """Sets a context's shape, memory and addresses; returns the output's shape."""
        self._check(context.set_input_shape(INPUT_NAME, shape), f"refuses the shape {_text(shape)}", log)
        raised = None
        try:
            missing = context.infer_shapes()
        except (RuntimeError, ValueError) as error:  # of the binding, where shape inference itself fails
            missing, raised = [OUTPUT_NAME], str(error)
        output_shape = tuple(int(size) for size in context.get_tensor_shape(OUTPUT_NAME))
        if missing or min(output_shape, default=0) < 1:
            what = f"cannot infer the output's shape for {_text(shape)}"
            raise refusal(
                self._engine.where, what, log, "build the engine again", _SMALLER_TILES, raised=raised
            )
        needed = int(context.update_device_memory_size_for_shapes())
        self._grow(self._activations, needed)
        self._grow(slot.device_source, _FLOAT32_BYTES * math.prod(shape))
        self._grow(slot.device_target, _FLOAT32_BYTES * math.prod(output_shape))
        context.set_device_memory(self._activations.address, self._activations.size_bytes)
        for name, buffer in ((INPUT_NAME, slot.device_source), (OUTPUT_NAME, slot.device_target)):
            self._check(context.set_tensor_address(name, buffer.address), f"refuses memory for {name}", log)
        return output_shape

    def _grow(self, buffer: DeviceBuffer, size_bytes: int) -> None:
        """Graphs and batches in flight use the old address, so both end before it is freed."""
        if size_bytes > buffer.size_bytes:
            self._wait()
            self._graphs.clear()
            buffer.reserve(size_bytes)

    def _launch(self, graph: Any) -> None:
        try:
            graph.launch(self._streams["compute"].handle)
        except CaptureError as error:
            raise HspanError(self._engine.where, f"cannot launch its CUDA graph: {error}") from error
        self.graph_launches += 1

    def _capture(self, key: tuple[Shape, int], context: Any, output_shape: Shape, log: Any) -> None:
        """Makes the graph for later runs. A failure is kept and logged, and this shape goes on without a graph."""
        handle = self._streams["compute"].handle
        capturable = getattr(context, "is_stream_capturable", None)  # of TensorRT-RTX alone
        try:
            if capturable is not None and not capturable(handle):
                raise CaptureError("TensorRT says that the context cannot be captured")
            graph = capture_graph(
                handle, lambda: bool(context.execute_async_v3(handle)), output_shape, context
            )
        except CaptureError as error:
            self._note_failure(key[0], ": ".join(filter(None, (str(error), log.first_error))))
            self._wait()  # for the execution before: its context ends here
        else:
            self._graphs.keep(key, graph)

    def _note_failure(self, shape: Shape, reason: str) -> None:
        self.capture_failures[shape] = reason
        where = self._engine.where
        _LOG.warning("%s: no CUDA graph for %s, it runs without one: %s", where, _text(shape), reason)

    def _check(self, accepted: bool, what: str, log: Any) -> None:
        if not accepted:
            raise refusal(self._engine.where, what, log, None, _SMALLER_TILES)

    def _wait(self) -> None:
        with self._device.translate_errors("failed on the GPU"):
            for stream in self._streams.values():
                stream.synchronize()


def _attempt(action: Callable[[], object]) -> None:
    """One step of the clean-up: after a failed kernel CUDA refuses every call, and that was reported already."""
    try:
        action()
    except Exception as error:  # noqa: BLE001
        _LOG.info("while closing: %s", error)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
