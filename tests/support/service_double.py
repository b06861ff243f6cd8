"""A server's inside without ports, processes and a real network, and requests to its HTTP side."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from support.runner_doubles import NearestRunner
from trt_hspan.media import decoders
from trt_hspan.media.decoders import Buffer, DecoderPool
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.serving.app import Application
from trt_hspan.serving.limits import ServerLimits
from trt_hspan.serving.service import Service
from trt_hspan.upscaling.scheduler import Model


class InProcessPool(DecoderPool):
    """Reads and writes pictures in this process, which has replaced three others."""

    def __init__(self) -> None:
        self.replaced = 3

    def _ask(self, question: dict[str, Any], data: list[Buffer], *, pixels: int = 0, most: int = 0) -> Any:
        return decoders._ACTIONS[question["do"]](question, data)


class HeldRunner(NearestRunner):
    """Doubles pixels, and waits for `go` before each run but the first, which opens it."""

    def __init__(self) -> None:
        super().__init__(scale=2)
        self.go, self.has_begun = threading.Event(), threading.Event()

    def infer(self, batch: Float32Array) -> Float32Array:
        if self.calls:
            self.has_begun.set()
            assert self.go.wait(20)
        return super().infer(batch)


@contextmanager
def service_of(
    runner: Callable[[], NearestRunner] = lambda: NearestRunner(scale=2), **limits: int
) -> Iterator[Service]:
    """A service of the network "net", version 5."""
    model = Model([runner], name="net", version=5)
    model.open()
    try:
        yield Service(model, InProcessPool(), ServerLimits(**limits))
    finally:
        model.close()


@dataclass
class Answer:
    """What was sent; `pieces` are the body's messages."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    more: list[bool] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class Client:
    """One HTTP request of 1.2.3.4 in the running loop; it sends its parts, and then waits, or leaves when told to."""

    def __init__(
        self,
        application: Application,
        method: str,
        target: str,
        parts: Sequence[bytes],
        headers: dict[str, str],
    ) -> None:
        path, _, query = target.partition("?")
        lines = {"host": "localhost:8000", **headers}
        self._scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
            "client": ("1.2.3.4", 5),
        }
        self._application, self._parts = application, [*parts]
        self.ends = True  # whether the last part is said to be the last
        self.leaves = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.answer = Answer()

    async def ask(self) -> Answer:
        await self._application(self._scope, self._receive, self._send)
        await asyncio.sleep(0)
        return self.answer

    async def _receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            return {
                "type": "http.request",
                "body": part,
                "more_body": bool(self._parts) or not self.ends,
            }
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.answer.status = message["status"]
            self.answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        await self.reads.wait()
        self.answer.pieces.append(bytes(message.get("body", b"")))
        self.answer.more.append(message.get("more_body", False))


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Lets the loop go on until something is so."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, "it does not come"
        await asyncio.sleep(0.001)


def asked(
    application: Application, method: str, target: str, *parts: bytes, headers: dict[str, str] | None = None
) -> Answer:
    """The answer to one request whose client waits for it."""

    async def ask() -> Answer:
        return await Client(application, method, target, parts or (b"",), headers or {}).ask()

    return asyncio.run(ask())
