"""CUDA graphs by stream capture, which PyCUDA lacks.

Capture, instantiation and launch are those of cuda.h, called through ctypes in the driver that PyCUDA uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

_SUCCESS: Final = 0
#: Uses of other keys, per place, after which a graph in a full cache gives way to another.
IDLE_USES: Final = 8
_THREAD_LOCAL: Final = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on calling CUDA


class CaptureError(Exception):
    """A graph could not be captured. `str` gives the step and CUDA's name of the error."""


class CudaGraph:
    """A captured graph, ready to be launched. It contains addresses: nothing that it uses may be freed before `free`.

    Attributes:
        output_shape: of the result that its launch gives.
        last_use: of its cache.
    """

    def __init__(self, handle: int, output_shape: tuple[int, ...], state: Any) -> None:
        self._handle, self._state = ctypes.c_void_p(handle), state
        self.output_shape = output_shape
        self.last_use = 0

    def launch(self, stream_handle: int) -> None:
        """Queues the graph on a stream. Raises: CaptureError when CUDA refuses."""
        _call("cuGraphLaunch", self._handle, ctypes.c_void_p(stream_handle))

    def free(self) -> None:
        """Destroys the graph; none of its launches may be under way."""
        if self._handle:
            _call("cuGraphExecDestroy", self._handle)
        self._handle, self._state = ctypes.c_void_p(), None


def capture_graph(
    stream_handle: int, enqueue: Callable[[], bool], output_shape: tuple[int, ...], state: Any
) -> CudaGraph:
    """Records what `enqueue` puts into a stream; none of it is executed.

    Args:
        stream_handle: not the legacy stream.
        enqueue: puts work into the stream and returns whether it could.
        output_shape: kept with the graph.
        state: kept until the graph is freed: the execution context that it belongs to.

    Raises:
        CaptureError: a call cannot be captured, `enqueue` returns False, or CUDA is out of memory.
            The stream is out of capture in any case.
    """
    stream, graph, executable = ctypes.c_void_p(stream_handle), ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
    try:
        accepted = enqueue()
    except BaseException:
        with contextlib.suppress(CaptureError):
            _call("cuStreamEndCapture", stream, ctypes.byref(graph))
        _destroy(graph)
        raise
    try:
        _call("cuStreamEndCapture", stream, ctypes.byref(graph))
        if not accepted:
            raise CaptureError("TensorRT refused to enqueue during the capture")
        _call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    finally:
        _destroy(graph)
    return CudaGraph(executable.value or 0, output_shape, state)


class GraphCache:
    """At most `capacity` graphs. A key gets one when it is used again; the one not used for longest gives way.

    A full cache takes a new graph only when the oldest was idle for `IDLE_USES * capacity` uses. So however many keys
    take turns, at most one use in `IDLE_USES` captures, and most of the graphs that are there go on being launched.

    Args:
        capacity: at least 1.
        wait: called before a graph is destroyed; returns when no launch is under way.
    """

    def __init__(self, capacity: int, wait: Callable[[], object]) -> None:
        self._capacity, self._wait = capacity, wait
        self._graphs: OrderedDict[Hashable, CudaGraph] = OrderedDict()
        self._candidates: OrderedDict[Hashable, None] = OrderedDict()
        self._uses = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def use(self, key: Hashable) -> CudaGraph | None:
        """The key's graph, if there is one; counts the use."""
        self._uses += 1
        graph = self._graphs.get(key)
        if graph is not None:
            graph.last_use = self._uses
            self._graphs.move_to_end(key)
        return graph

    def worth_capturing(self, key: Hashable) -> bool:
        """Whether a key without a graph was used not long ago, and the cache would take a graph; notes the key."""
        was_used = key in self._candidates
        self._candidates[key] = None
        self._candidates.move_to_end(key)
        idle_uses = IDLE_USES * self._capacity
        if len(self._candidates) > idle_uses:
            self._candidates.popitem(last=False)
        if len(self) < self._capacity:
            return was_used
        oldest = next(iter(self._graphs.values()))
        return was_used and self._uses - oldest.last_use > idle_uses

    def keep(self, key: Hashable, graph: CudaGraph) -> None:
        """Takes in the graph of a key in use."""
        if len(self) == self._capacity:
            self._wait()
            self._graphs.popitem(last=False)[1].free()
        graph.last_use = self._uses
        self._graphs[key] = graph

    def clear(self) -> None:
        """Destroys all graphs: an address in them is about to change."""
        if self._graphs:
            self._wait()
        while self._graphs:
            self._graphs.popitem()[1].free()


def _destroy(graph: ctypes.c_void_p) -> None:
    if graph:
        with contextlib.suppress(CaptureError):
            _call("cuGraphDestroy", graph)


def _call(name: str, *arguments: object) -> None:
    driver = _driver()
    code = int(getattr(driver, name)(*arguments))
    if code != _SUCCESS:
        text = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(text))
        raise CaptureError(f"{name}: {(text.value or b'error %d' % code).decode()}")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
