"""HTTP connections within limits: how many, how long a header may take, and how long a client may not read.

uvicorn, which speaks HTTP, leaves these to a proxy in front of it; a server that people start on their desk has none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any, Final

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


def limited_protocol(*, connections: int, seconds: float) -> type[H11Protocol]:
    """The protocol class for uvicorn.

    Args:
        connections: at a time; one that waits for a request gives way to a new one.
        seconds: for a header to arrive, and for a piece of an answer to be read.
    """
    logging.getLogger("uvicorn.error").setLevel(
        logging.CRITICAL
    )  # what it says is said here, with the reason
    return type("LimitedProtocol", (_LimitedProtocol,), {"most": connections, "seconds": seconds})


class _CountingConnection(h11.Connection):
    """h11's connection, which also counts the pieces of a body and remembers what was wrong."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, HEADER_BYTES)
        self.failure = ""
        self._pieces = self._bytes = 0

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._pieces = self._bytes = 0
            elif isinstance(event, h11.Data):
                self._pieces, self._bytes = self._pieces + 1, self._bytes + len(event.data)
                if self._pieces > _FREE_PIECES and self._bytes < _PIECE_BYTES * self._pieces:
                    raise h11.RemoteProtocolError("a body in too many small pieces")
        except h11.RemoteProtocolError as error:
            self.failure = str(error)
            raise
        return event


class _LimitedProtocol(H11Protocol):
    most: int
    seconds: float
    conn: _CountingConnection

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.conn = _CountingConnection()
        self._idle_since = self.loop.time()
        self._header_timer: asyncio.TimerHandle | None = None
        self._writing_timer: asyncio.TimerHandle | None = None
        self._lingering_timer: asyncio.TimerHandle | None = None

    @property
    def gives_way(self) -> bool:
        """Whether no request has been under way for a while."""
        return self.is_idle and self.loop.time() - self._idle_since > _IDLE_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if len(self.connections) > self.most:
            others = [
                each for each in self.connections if isinstance(each, _LimitedProtocol) and each is not self
            ]
            idle = next((each for each in others if each.gives_way), None)
            if idle is not None:
                self.connections.discard(idle)
                idle.transport.close()
            else:
                self._refuse(503, f"{len(others)} connections are open; try again later")
                return
        self._arm_header()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.SEND_BODY:
            _cancel(self._lingering_timer)
        if not self.is_idle:
            _cancel(self._header_timer)
            self._header_timer = None
        elif self._header_timer is None and self.timeout_keep_alive_task is None:
            self._arm_header()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # a refusal: the rest of the body is of no use
            self._lingering_timer = self.loop.call_later(_LINGERING_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing_timer = self.loop.call_later(self.seconds, self._abort, "it does not read its answer")

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._writing_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._header_timer, self._lingering_timer, self._writing_timer):
            _cancel(timer)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, f"no HTTP that can be read: {self.conn.failure or msg}")
        else:
            self._abort(self.conn.failure or msg)

    def _arm_header(self) -> None:
        self._header_timer = self.loop.call_later(
            self.seconds, self._refuse, 408, "the request's header took too long to arrive"
        )

    def _abort(self, why: str) -> None:
        self._tell(0, why)
        self.transport.abort()

    def _refuse(self, status: int, why: str) -> None:
        """An answer outside any request, and the end."""
        self._tell(status, why)
        if self.transport.is_closing():
            return
        body = json.dumps({"error": " ".join(why.split())}).encode()
        phrase = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}[status]
        lines = [
            f"HTTP/1.1 {status} {phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(["Retry-After: 1"] if status == 503 else []),
            "Connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _tell(self, status: int, why: str) -> None:
        log_event(
            "connection",
            level=logging.WARNING,
            via="http",
            status=str(status),
            why=why[:200],
            peer=self.client[0] if self.client else None,
        )


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
