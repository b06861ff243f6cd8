"""CUDA graphs by stream capture, which PyCUDA lacks.

Capture, instantiation and launch are those of cuda.h, called through ctypes in the driver that PyCUDA uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

_SUCCESS: Final = 0
_THREAD_LOCAL: Final = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on calling CUDA


class CaptureError(Exception):
    """A graph could not be captured. `str` gives the step and CUDA's name of the error."""


class CudaGraph:
    """A captured graph, ready to be launched. It contains addresses: nothing that it uses may be freed before `free`.

    Attributes:
        output_shape: of the result that its launch gives.
    """

    def __init__(self, handle: int, output_shape: tuple[int, ...]) -> None:
        self._handle = ctypes.c_void_p(handle)
        self.output_shape = output_shape

    def launch(self, stream_handle: int) -> None:
        """Queues the graph on a stream. Raises: CaptureError when CUDA refuses."""
        _call("cuGraphLaunch", self._handle, ctypes.c_void_p(stream_handle))

    def free(self) -> None:
        """Destroys the graph; none of its launches may be under way."""
        if self._handle:
            _call("cuGraphExecDestroy", self._handle)
        self._handle = ctypes.c_void_p()


def capture_graph(
    stream_handle: int, enqueue: Callable[[], bool], output_shape: tuple[int, ...]
) -> CudaGraph:
    """Records what `enqueue` puts into a stream; none of it is executed.

    Args:
        stream_handle: not the legacy stream.
        enqueue: puts work into the stream and returns whether it could.
        output_shape: kept with the graph.

    Raises:
        CaptureError: a call cannot be captured, `enqueue` returns False, or CUDA is out of memory.
            The stream is out of capture in any case.
    """
    stream, graph, executable = ctypes.c_void_p(stream_handle), ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
    accepted = False
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
    return CudaGraph(executable.value or 0, output_shape)


class GraphCache:
    """The graphs used last, at most `capacity` of them; the one not used for longest gives way.

    Args:
        capacity: 0 keeps none.
        wait: called before a graph is destroyed; returns when no launch is under way.
    """

    def __init__(self, capacity: int, wait: Callable[[], object]) -> None:
        self._capacity, self._wait = capacity, wait
        self._graphs: OrderedDict[Hashable, CudaGraph | None] = OrderedDict()

    def __len__(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def seen(self, key: Hashable) -> bool:
        """Whether the key was used before, and not so long ago that it was forgotten; notes the use."""
        was_seen = key in self._graphs
        self._put(key, self._graphs.get(key))
        return was_seen

    def get(self, key: Hashable) -> CudaGraph | None:
        """The key's graph, if there is one."""
        return self._graphs.get(key)

    def keep(self, key: Hashable, graph: CudaGraph) -> None:
        """Takes a graph in."""
        self._put(key, graph)

    def clear(self) -> None:
        """Destroys all graphs: an address in them is about to change."""
        if len(self):
            self._wait()
        while self._graphs:
            _, graph = self._graphs.popitem()
            if graph is not None:
                graph.free()

    def _put(self, key: Hashable, graph: CudaGraph | None) -> None:
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        while len(self._graphs) > self._capacity:
            _, oldest = self._graphs.popitem(last=False)
            if oldest is not None:
                self._wait()
                oldest.free()


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
