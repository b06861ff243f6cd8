"""Picture files read and written in processes of their own, with limits of memory and time.

A file that makes a decoder crash, hang or grow costs the request that it came with; the process is replaced. The
processes import neither torch nor TensorRT, hold no file but their socket, and end with their parent. On the socket, a
message is the length of its header (4 bytes), the header (JSON), and the buffers whose sizes the header lists.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError

#: Pictures of more pixels leave one process to the others.
LARGE_PIXELS: Final = 1 << 20
#: Pictures of at most so many are decoded as soon as they are opened: asking twice takes longer.
SMALL_PIXELS: Final = 1 << 16
# For libraries, threads, and what a decoder needs beside pixels.
_ROOM_BYTES: Final = 192 << 20
_HEADER_BYTES: Final = 1 << 16
# Of an answer beside what its question expects: a picture's metadata.
_SPARE_BYTES: Final = 1 << 24
# Seconds for any picture, and pixels that every further second stands for.
_SECONDS, _PIXELS_A_SECOND = 10.0, 1 << 21

Buffer = bytes | bytearray | memoryview
_Message = tuple[dict[str, Any], Sequence[Buffer]]


@dataclass(frozen=True, kw_only=True)
class DecodedPicture:
    """Pixels (H, W, C) uint8 or uint16 as in `media.pictures.Picture`; `description` is what `encode` writes beside."""

    pixels: npt.NDArray[Any]
    description: bytes


class DecoderError(Exception):
    """A decoder that crashed, hung, or said what makes no sense; `killed` when somebody else ended it."""

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class DecoderPool:
    """Some processes, one picture at a time each. Its methods block, and may be called from any thread.

    Args:
        count: of processes; the first is started now, others when it is busy.
        seconds: for any picture; large ones get more.
        on_death: called with the process ID of one that ended before its time.
    """

    def __init__(
        self, count: int, *, seconds: float = _SECONDS, on_death: Callable[[int], None] | None = None
    ) -> None:
        self._seconds, self._on_death = seconds, on_death
        self._large = threading.BoundedSemaphore(max(1, count - 1))
        self._all: set[_Process] = set()
        self._closed = False
        self.replaced = 0
        # The last that was given back is the next that is taken: one that was never started waits longest.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count - 1):
            self._idle.put(None)
        self._idle.put(self._started())

    def opened(
        self, data: Buffer, *, pixels: int = SMALL_PIXELS
    ) -> tuple[tuple[int, int], DecodedPicture | None]:
        """Height and width by the file's header, and the picture itself where these are at most so many `pixels`.

        Raises:
            HspanError: it is damaged, or no picture.
            DecoderError: the process failed; another picture gets a new one.
        """
        question = {"do": "decode", "pixels": pixels, "memory": 2 * len(data) + 24 * pixels}
        reply, buffers = self._ask(question, [data], pixels=pixels, most=8 * pixels)
        height, width = size = _side(reply, "height"), _side(reply, "width")
        if not buffers:
            return size, None
        dtype = np.uint16 if reply.get("deep") is True else np.uint8
        shape = height, width, _side(reply, "channels")
        if len(buffers) != 2 or len(buffers[0]) != math.prod(shape) * np.dtype(dtype).itemsize:
            raise DecoderError("it gave other pixels than it said")
        array = np.frombuffer(buffers[0], dtype).reshape(shape)
        return size, DecodedPicture(pixels=array, description=bytes(buffers[1]))

    def decode(self, data: Buffer, *, pixels: int) -> DecodedPicture:
        """The picture in a file, of at most so many `pixels`. Raises: as `opened`; HspanError: it is larger."""
        size, picture = self.opened(data, pixels=pixels)
        if picture is None:
            raise HspanError("picture", f"has {size[0]}x{size[1]} pixels, more than {pixels} in all")
        return picture

    def encode(self, pixels: npt.NDArray[Any], description: bytes, suffix: str) -> Buffer:
        """The bytes of a file. Raises: HspanError as `media.writing.encode_image`; DecoderError as `decode`."""
        facts = {"shape": pixels.shape, "deep": pixels.dtype == np.uint16, "suffix": suffix}
        flat = memoryview(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)
        _, results = self._ask(
            {"do": "encode", **facts, "memory": 5 * pixels.nbytes},
            [flat, description],
            pixels=pixels.shape[0] * pixels.shape[1],
            most=2 * pixels.nbytes + _ROOM_BYTES,
        )
        if len(results) != 1:
            raise DecoderError("it gave no file")
        return results[0]

    def pids(self) -> list[int]:
        """Of the processes that there are."""
        return [process.pid for process in list(self._all)]

    def close(self) -> None:
        """Ends the processes."""
        self._closed = True
        for process in list(self._all):
            process.end()

    def _ask(
        self, question: dict[str, Any], data: list[Buffer], *, pixels: int = 0, most: int = 0
    ) -> _Message:
        """The answer of one process, or of another if somebody killed the first."""
        seconds = self._seconds + pixels / _PIXELS_A_SECOND
        with self._large if pixels > LARGE_PIXELS else contextlib.nullcontext():
            try:
                with self._process() as process:
                    return process.ask(question, data, seconds, most=most)
            except DecoderError as error:
                if not error.killed:
                    raise
            with self._process() as process:
                return process.ask(question, data, seconds, most=most)

    @contextlib.contextmanager
    def _process(self) -> Iterator[_Process]:
        process = self._idle.get()
        try:
            if process is None or not process.is_alive():
                process = self._renewed(process)
            yield process
        except DecoderError:
            process = None if self._closed else self._renewed(process)
            raise
        finally:
            self._idle.put(process)

    def _renewed(self, process: _Process | None) -> _Process:
        if process is not None:
            process.end()
            self._all.discard(process)
            self.replaced += 1
            if self._on_death is not None and not self._closed:
                self._on_death(process.pid)
        return self._started()

    def _started(self) -> _Process:
        if self._closed:
            raise DecoderError("no more pictures are read")
        process = _Process()
        self._all.add(process)
        return process


class _Process:
    """One process and this end of its socket."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        for end in (self._socket, theirs):  # as much as the system allows: who sends waits less often
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._stream = self._socket.makefile("rwb")
        environment = {"VIPS_CONCURRENCY": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **environment},
            )
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: dict[str, Any], data: list[Buffer], seconds: float, *, most: int) -> _Message:
        """One question and its answer, whose buffers have at most `most` bytes and some to spare.

        The process ends itself when it works for longer than `seconds`; one that is stopped is given up here.
        """
        self._socket.settimeout(seconds)
        try:
            _send(self._stream, {**question, "seconds": seconds}, data)
            reply, results = _receive(self._stream, most + _SPARE_BYTES)
        except TimeoutError:
            raise DecoderError(f"it took longer than {seconds:.0f} s") from None
        except (OSError, EOFError, ValueError) as error:
            code = self._code()
            if code == -signal.SIGALRM:
                raise DecoderError(f"it took longer than {seconds:.0f} s") from None
            words = f"it broke off: {error}" if code is None else f"it ended with code {code}"
            raise DecoderError(words, killed=code == -signal.SIGKILL) from None
        if "error" in reply:
            where, what, next_step = (str(word)[:500] for word in reply["error"])
            kind = UsageError if reply.get("usage") is True else HspanError
            raise kind(where, what, next_step or None)
        return reply, results

    def _code(self) -> int | None:
        """With which code the process ended, which has just closed its socket."""
        try:
            return self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError, ValueError):  # what was not sent is of no use
            self._stream.close()
        self._socket.close()


def _side(reply: dict[str, Any], name: str) -> int:
    value = reply.get(name)
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise DecoderError(f"its {name} makes no sense")
    return value


def _send(stream: io.BufferedRWPair, header: dict[str, Any], buffers: Sequence[Buffer]) -> None:
    head = json.dumps({**header, "sizes": [len(buffer) for buffer in buffers]}).encode()
    for part in (struct.pack("!I", len(head)), head, *buffers):
        stream.write(part)
    stream.flush()


def _receive(stream: io.BufferedRWPair, most: int) -> _Message:
    """A message whose buffers have at most `most` bytes. Raises: ValueError, EOFError, OSError."""
    (length,) = struct.unpack("!I", _exactly(stream, 4))
    if length > _HEADER_BYTES:
        raise ValueError("a header that is too long")
    header = json.loads(_exactly(stream, length))
    sizes = header["sizes"] if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("no sizes")
    if sum(sizes) > most:
        raise ValueError("more bytes than were expected")
    return header, [_exactly(stream, size) for size in sizes]


def _exactly(stream: io.BufferedRWPair, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the other end is closed")
    return data


def _decode(question: dict[str, Any], buffers: Sequence[Buffer]) -> _Message:
    from trt_hspan.media.pictures import open_picture, whole_picture

    opened = open_picture(bytes(buffers[0]))
    if opened.size.pixels > question["pixels"]:
        return {"height": opened.size.height, "width": opened.size.width}, []
    picture = whole_picture(opened)
    pixels = np.ascontiguousarray(picture.pixels)
    height, width, channels = pixels.shape
    facts = {"height": height, "width": width, "channels": channels, "deep": pixels.dtype == np.uint16}
    description = pickle.dumps((picture.metadata, picture.format))
    return facts, [pixels.reshape(-1).view(np.uint8).data, description]


def _encode(question: dict[str, Any], buffers: Sequence[Buffer]) -> _Message:
    from trt_hspan.media.pictures import Picture
    from trt_hspan.media.writing import encode_image

    metadata, name = pickle.loads(buffers[1])  # of one of these processes; the parent passes it on unread
    dtype = np.uint16 if question["deep"] else np.uint8
    pixels = np.frombuffer(buffers[0], dtype).reshape(question["shape"])
    return {}, [encode_image(Picture(pixels=pixels, metadata=metadata, format=name), question["suffix"])]


_ACTIONS: Final[dict[str, Callable[[dict[str, Any], Sequence[Buffer]], _Message]]] = {
    "decode": _decode,
    "encode": _encode,
}


def _work(stream: io.BufferedRWPair) -> None:
    """The process: one question after the other, until the parent is gone."""
    import resource

    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when; it may be about to finish
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    from trt_hspan.media.vips import has_vips

    has_vips()  # loads it, before memory is counted
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: PTH123, SIM115

    def limit_memory(more: int | None) -> None:
        limit = resource.RLIM_INFINITY if more is None else own + _ROOM_BYTES + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    with contextlib.suppress(EOFError, OSError):
        while True:
            question, buffers = _receive(stream, 1 << 40)
            signal.setitimer(
                signal.ITIMER_REAL, question["seconds"]
            )  # ends this process, with or without a parent
            results: Sequence[Buffer] = []
            try:
                limit_memory(question["memory"])
                answer, results = _ACTIONS[question["do"]](question, buffers)
            except HspanError as error:
                words = [error.where, error.what, error.next_step or ""]
                answer = {"error": words, "usage": isinstance(error, UsageError)}
            except MemoryError:
                answer = {"error": ["picture", "needs more memory than a picture of its size may", ""]}
            del buffers
            _send(stream, answer, results)
            signal.setitimer(signal.ITIMER_REAL, 0)
            limit_memory(None)  # what comes next is the parent's own, of any size
            del results


if __name__ == "__main__":
    _work(socket.socket(fileno=int(sys.argv[1])).makefile("rwb"))
