"""How long a new connection may take to send its first header; aiohttp itself waits for ever.

Later headers of a connection are under its keep-alive time, and bodies under the door's own.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from aiohttp import web

_REASON: Final = b'{"error": "the header of the request took too long to arrive"}'
_TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_REASON), _REASON)
)
_HEAD_END: Final = b"\r\n\r\n"
_BACKLOG: Final = 512


class PatientSite(web.SockSite):
    """A socket for an aiohttp runner, whose clients must finish their first header in time.

    `sock` is bound and not yet listening; `seconds` run from the connection to the end of its first header.
    """

    def __init__(self, runner: web.AppRunner, sock: socket.socket, seconds: float) -> None:
        super().__init__(runner, sock, backlog=_BACKLOG)
        self._seconds = seconds

    async def start(self) -> None:
        await web.BaseSite.start(self)
        factory = self._runner.server
        assert factory is not None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _FirstHeader(factory(), self._seconds), sock=self._sock, backlog=_BACKLOG
        )


class _FirstHeader(asyncio.Protocol):
    """Passes everything on to aiohttp's protocol, and hangs up when the first header does not end in time."""

    def __init__(self, inner: asyncio.Protocol, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds
        self._timer: asyncio.TimerHandle | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._hang_up, transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._timer is not None:
            seen = self._tail + data
            self._tail = seen[-3:]
            if _HEAD_END in seen:
                self._stop()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._inner.connection_lost(exc)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self, transport: asyncio.Transport) -> None:
        self._timer = None
        if not transport.is_closing():
            transport.write(_TOO_SLOW)
            transport.close()
