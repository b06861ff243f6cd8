"""Picture files read and written in processes of their own, with limits of memory and time.

A file that makes a decoder crash, hang or grow costs the request that it came with; the process is replaced. The
processes import neither torch nor TensorRT, hold no file but their socket, and end with the server. On the socket, a
message is the length of its header (4 bytes), the header (JSON), and the buffers whose sizes the header lists.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.serving.events import log_event

#: Of a result: by the name that a client gives.
SUFFIXES: Final = {
    "png": ".png",
    "jpeg": ".jpg",
    "jpg": ".jpg",
    "webp": ".webp",
    "bmp": ".bmp",
    "tiff": ".tif",
}
#: Pictures of more pixels leave one process to the others.
LARGE_PIXELS: Final = 1 << 20
# For libraries, threads, and what a decoder needs beside pixels.
_ROOM_BYTES: Final = 192 << 20
_HEADER_BYTES: Final = 1 << 16
# Seconds for any picture, and pixels that every further second stands for.
_SECONDS, _PIXELS_A_SECOND = 10.0, 1 << 21


Buffer = bytes | bytearray | memoryview
_Answer = tuple[dict[str, Any], Sequence[Buffer]]


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
    """

    def __init__(self, count: int, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Condition()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._count = max(1, count)
        self._large = threading.BoundedSemaphore(max(1, count - 1))
        self._closed = False
        self.replaced = 0
        self._idle.append(self._started())

    def size(self, data: Buffer) -> tuple[int, int]:
        """Height and width by the file's header. Raises: HspanError as `media.pictures.open_picture`."""
        with self._process() as process:
            reply, _ = process.ask({"do": "size", "memory": 2 * len(data)}, [data], self._seconds)
            return _side(reply, "height"), _side(reply, "width")

    def decode(self, data: Buffer, *, pixels: int) -> DecodedPicture:
        """The picture in a file, of at most so many `pixels`.

        Raises:
            HspanError: it is damaged, larger, or no picture.
            DecoderError: the process failed; another picture gets a new one.
        """
        seconds = self._seconds + pixels / _PIXELS_A_SECOND
        memory = 2 * len(data) + 24 * pixels
        with self._turn(pixels), self._process() as process:
            reply, buffers = process.ask(
                {"do": "decode", "pixels": pixels, "memory": memory}, [data], seconds, most=8 * pixels
            )
        height, width, channels = (_side(reply, name) for name in ("height", "width", "channels"))
        dtype = np.uint16 if reply.get("deep") is True else np.uint8
        if len(buffers) != 2 or len(buffers[0]) != height * width * channels * np.dtype(dtype).itemsize:
            raise DecoderError("it gave other pixels than it said")
        array = np.frombuffer(buffers[0], dtype).reshape(height, width, channels)
        return DecodedPicture(pixels=array, description=bytes(buffers[1]))

    def encode(self, pixels: npt.NDArray[Any], description: bytes, kind: str) -> bytearray:
        """The bytes of a file. Raises: HspanError as `media.writing.encode_image`; DecoderError as `decode`."""
        count = pixels.shape[0] * pixels.shape[1]
        facts = {"shape": pixels.shape, "deep": pixels.dtype == np.uint16, "suffix": SUFFIXES[kind]}
        flat = memoryview(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)
        seconds = self._seconds + count / _PIXELS_A_SECOND
        with self._turn(count), self._process() as process:
            _, results = process.ask(
                {"do": "encode", **facts, "memory": 5 * pixels.nbytes},
                [flat, description],
                seconds,
                most=2 * pixels.nbytes + _ROOM_BYTES,
            )
        if len(results) != 1:
            raise DecoderError("it gave no file")
        return results[0]

    def pids(self) -> list[int]:
        """Of the processes that there are."""
        with self._lock:
            return [process.pid for process in self._all]

    def close(self) -> None:
        """Ends the processes."""
        with self._lock:
            self._closed = True
            processes = list(self._all)
            self._all.clear()
        for process in processes:
            process.end()

    @contextlib.contextmanager
    def _turn(self, pixels: int) -> Iterator[None]:
        if pixels <= LARGE_PIXELS or self._count == 1:
            yield
            return
        with self._large:
            yield

    @contextlib.contextmanager
    def _process(self) -> Iterator[_Process]:
        process = self._taken()
        healthy = False
        try:
            yield process
            healthy = True
        except HspanError:
            healthy = True  # the process said so, and lives
            raise
        finally:
            with self._lock:
                if healthy and not self._closed:
                    self._idle.append(process)
                else:
                    self._all.discard(process)
                self._lock.notify()
            if not healthy:
                self._replace(process)

    def _taken(self) -> _Process:
        with self._lock:
            while True:
                if self._closed:
                    raise DecoderError("the server stops")
                while self._idle:
                    process = self._idle.pop()
                    if process.is_alive():
                        return process
                    self._all.discard(process)
                    self.replaced += 1
                    log_event("decoder-died", level=logging.WARNING, pid=process.pid)
                    process.end()
                if len(self._all) < self._count:
                    return self._started()
                self._lock.wait()

    def _started(self) -> _Process:
        process = _Process()
        self._all.add(process)
        return process

    def _replace(self, process: _Process) -> None:
        process.end()
        with self._lock:
            if not self._closed:
                self.replaced += 1
                if len(self._all) < self._count:
                    self._idle.append(self._started())
                    self._lock.notify()


class _Process:
    """One process and the server's end of its socket."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        environment = {"VIPS_CONCURRENCY": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, header: dict[str, Any], buffers: Sequence[Buffer], seconds: float, *, most: int = 0
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """One question and its answer, whose buffers have at most `most` bytes and a header's worth."""
        deadline = time.monotonic() + seconds
        try:
            _send(self._socket, {**header, "seconds": seconds}, buffers, deadline)
            reply, results = _receive(self._socket, most + (1 << 24), deadline)
        except TimeoutError:
            raise DecoderError(f"it took longer than {seconds:.0f} s") from None
        except (OSError, EOFError, ValueError) as error:
            code = self._code()
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
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _side(reply: dict[str, Any], name: str) -> int:
    value = reply.get(name)
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise DecoderError(f"its {name} makes no sense")
    return value


def _send(
    sock: socket.socket,
    header: dict[str, Any],
    buffers: Sequence[Buffer],
    deadline: float | None,
) -> None:
    head = json.dumps({**header, "sizes": [len(buffer) for buffer in buffers]}).encode()
    for part in (struct.pack("!I", len(head)) + head, *buffers):
        _limit(sock, deadline)
        sock.sendall(part)


def _receive(
    sock: socket.socket, most: int, deadline: float | None
) -> tuple[dict[str, Any], list[bytearray]]:
    (length,) = struct.unpack("!I", _exactly(sock, 4, deadline))
    if length > _HEADER_BYTES:
        raise ValueError("a header that is too long")
    header = json.loads(_exactly(sock, length, deadline))
    sizes = header["sizes"] if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("no sizes")
    if sum(sizes) > most:
        raise ValueError("more bytes than were expected")
    return header, [_exactly(sock, size, deadline) for size in sizes]


def _exactly(sock: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        _limit(sock, deadline)
        count = sock.recv_into(view[at:])
        if not count:
            raise EOFError("the other end is closed")
        at += count
    return data


def _limit(sock: socket.socket, deadline: float | None) -> None:
    """What is done next on the socket ends by the deadline."""
    if deadline is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)


def _size(_: dict[str, Any], buffers: list[bytearray]) -> _Answer:
    from trt_hspan.media.pictures import open_picture

    size = open_picture(bytes(buffers[0])).size
    return {"height": size.height, "width": size.width}, []


def _decode(header: dict[str, Any], buffers: list[bytearray]) -> _Answer:
    from trt_hspan.media.pictures import open_picture, whole_picture

    opened = open_picture(bytes(buffers[0]))
    if opened.size.pixels > header["pixels"]:
        raise HspanError("picture", f"has {opened.size} pixels, more than {header['pixels']} in all")
    picture = whole_picture(opened)
    pixels = np.ascontiguousarray(picture.pixels)
    height, width, channels = pixels.shape
    facts = {"height": height, "width": width, "channels": channels, "deep": pixels.dtype == np.uint16}
    description = pickle.dumps((picture.metadata, picture.format))
    return facts, [pixels.reshape(-1).view(np.uint8).data, description]


def _encode(header: dict[str, Any], buffers: list[bytearray]) -> _Answer:
    from trt_hspan.media.pictures import Picture
    from trt_hspan.media.writing import encode_image

    metadata, name = pickle.loads(buffers[1])  # of one of these processes; the server passes it on unread
    pixels = np.frombuffer(buffers[0], np.uint16 if header["deep"] else np.uint8).reshape(header["shape"])
    picture = Picture(pixels=pixels, metadata=metadata, format=name)
    return {}, [encode_image(picture, header["suffix"])]


_ACTIONS: Final[dict[str, Callable[[dict[str, Any], list[bytearray]], _Answer]]] = {
    "size": _size,
    "decode": _decode,
    "encode": _encode,
}


def _work(sock: socket.socket) -> None:
    """The process: one question after the other, until the server is gone."""
    import resource

    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when; it may be about to finish
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

    while True:
        try:
            header, buffers = _receive(sock, 1 << 40, None)
        except (EOFError, OSError):
            return
        signal.setitimer(
            signal.ITIMER_REAL, header["seconds"] + 1
        )  # ends this process, also without a server
        results: Sequence[Buffer]
        try:
            limit_memory(header["memory"])
            answer, results = _ACTIONS[header["do"]](header, buffers)
        except HspanError as error:
            words = [error.where, error.what, error.next_step or ""]
            answer, results = {"error": words, "usage": isinstance(error, UsageError)}, []
        except MemoryError:
            answer, results = (
                {"error": ["picture", "needs more memory than a picture of its size may", ""]},
                [],
            )
        del buffers
        try:
            _send(sock, answer, results, None)
        except OSError:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        limit_memory(None)  # what comes next is the server's own, of any size
        del results


if __name__ == "__main__":
    _work(socket.socket(fileno=int(sys.argv[1])))
