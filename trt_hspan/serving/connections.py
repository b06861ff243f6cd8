"""HTTP connections within limits: how many, how long a header may take, and how long a client may not read.

uvicorn, which speaks HTTP, leaves these to a proxy in front of it; a server that people start on their desk has none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any, ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trt_hspan.serving.events import log_event

#: Bytes of one request's line and headers.
HEADER_BYTES: Final = 32 << 10
# A body in more pieces than this must have pieces of some size: each costs time, whatever it contains.
_FREE_PIECES, _PIECE_BYTES = 1024, 256
# What the system keeps of an answer that is not read; *measured*, it would be several megabytes.
_SEND_BUFFER_BYTES: Final = 1 << 19
# A connection without a request for so long makes room for another, where there is none.
_IDLE_SECONDS: Final = 0.5
# What a refused client still sends is read and dropped for so long, so that it gets to read the refusal.
_LINGERING_SECONDS: Final = 2.0
_PHRASES: Final = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class _CountingConnection(h11.Connection):
    """h11's connection, which also counts the pieces of a body, remembers what was wrong, and copies no answer."""

    failure = ""
    _pieces = _bytes = 0

    def send(self, event: Any) -> Any:
        parts = self.send_with_data_passthrough(event)
        return parts[0] if parts and len(parts) == 1 else None if parts is None else b"".join(parts)

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._pieces = self._bytes = 0
                if {name for name, _ in event.headers} >= {b"transfer-encoding", b"content-length"}:
                    raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length")
            elif isinstance(event, h11.Data):
                self._pieces, self._bytes = self._pieces + 1, self._bytes + len(event.data)
                if self._pieces > _FREE_PIECES and self._bytes < _PIECE_BYTES * self._pieces:
                    raise h11.RemoteProtocolError("a body in too many small pieces")
        except h11.RemoteProtocolError as error:
            self.failure = str(error)
            raise
        return event


class LimitedProtocol(H11Protocol):
    """The protocol for uvicorn; a subclass sets its limits.

    Attributes:
        most: connections at a time; one that waits for a request gives way to a new one.
        seconds: for a header to arrive, and for a piece of an answer to be read.
    """

    most: int
    seconds: float
    _refused: ClassVar[set[LimitedProtocol]] = set()  # which may still be sending

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        logging.getLogger("uvicorn.error").setLevel(
            logging.CRITICAL
        )  # what it says is said here, with the reason
        self.conn = self._connection = _CountingConnection(h11.SERVER, HEADER_BYTES)
        self._idle_since = self.loop.time()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if len(self.connections) > self.most:
            now = self.loop.time()
            for other in self.connections:
                if (
                    isinstance(other, LimitedProtocol)
                    and other._is_idle
                    and now - other._idle_since > _IDLE_SECONDS
                ):
                    self.connections.discard(other)
                    other.transport.close()
                    break
            else:
                self._refuse(503, f"{self.most} connections are open; try again later")
                return
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self in self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.SEND_BODY:
            self._disarm("lingering")
        if not self._is_idle:
            self._disarm("header")
        elif "header" not in self._timers and self.timeout_keep_alive_task is None:
            self._expect_header()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # a refusal: the rest of the body is of no use
            self._arm("lingering", _LINGERING_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._arm("writing", self.seconds, self._abort, "it does not read its answer")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._disarm("writing")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._refused.discard(self)
        for name in list(self._timers):
            self._disarm(name)

    def send_400_response(self, msg: str) -> None:
        why = self._connection.failure or msg
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, f"no HTTP that can be read: {why}")
        else:
            self._abort(why)

    def _arm(self, name: str, seconds: float, *call: Any) -> None:
        self._timers[name] = self.loop.call_later(seconds, *call)

    def _disarm(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()

    def _expect_header(self) -> None:
        self._arm("header", self.seconds, self._refuse, 408, "the request's header took too long to arrive")

    def _abort(self, why: str) -> None:
        self._log("0", why)
        self.transport.abort()

    def _refuse(self, status: int, why: str) -> None:
        """An answer outside any request, and the end."""
        if self.transport.is_closing() or self in self._refused:
            return
        self._log(str(status), why)
        body = json.dumps({"error": " ".join(why.split())}).encode()
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        self.connections.discard(self)
        self.transport.write(head.encode() + body)
        if len(self._refused) < self.most:
            self._refused.add(self)
            self.transport.write_eof()
            self._arm("lingering", _LINGERING_SECONDS, self.transport.abort)
        else:
            self.transport.close()

    def _log(self, status: str, why: str) -> None:
        peer = self.client[0] if self.client else None
        log_event("connection", level=logging.WARNING, via="http", status=status, why=why[:200], peer=peer)
