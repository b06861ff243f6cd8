"""The server's HTTP side: who may ask, what is asked, and the answer. Limits of connections are in `connections`."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import zlib
from base64 import b64encode
from collections.abc import Awaitable, Sequence
from importlib import resources
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trt_hspan.serving.decoders import SUFFIXES, Buffer
from trt_hspan.serving.events import log_event
from trt_hspan.serving.limits import Budget, RefusedError, Reservation, too_slow
from trt_hspan.serving.service import GoneError, Service, stopping
from trt_hspan.serving.v2 import (
    JSON_LENGTH_HEADER,
    SERVER_METADATA,
    Interface,
    body_from_output,
    call_from_body,
)

_T = TypeVar("_T")
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_CONTENT_TYPES: Final = {kind: f"image/{'jpeg' if kind == 'jpg' else kind}" for kind in SUFFIXES}
# Anybody may ask these: what answers them is no secret, and who watches a server has no token.
_OPEN_PATHS: Final = ("/", "/v2/health/live", "/v2/health/ready")
_QUIET: Final = ("/v2/health/", "/metrics", "/progress/")
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9-]{8,64}", re.ASCII)
# Of an answer that is handed to the connection at a time.
_PIECE_BYTES: Final = 1 << 20
# After which an answer that is still being read may give way.
_SENDING_SECONDS: Final = 10.0
_GONE: Final = 499  # in the log and the metrics only


class Access:
    """Who may ask: by the name that the server is called by, the page that asks, and the token.

    A browser sends a page's requests wherever the page says; only their Origin and Host tell that it is not this
    server's own. Source: "DNS rebinding", and RFC 6750 for the token.

    Args:
        names: further names of this server.
        token: which HTTP and gRPC clients must give; None is none.
    """

    def __init__(self, names: Sequence[str] = (), token: str | None = None) -> None:
        self._names = {name.lower().strip("[]") for name in (*LOOPBACK_NAMES, *names)}
        self._token = None if token is None else f"Bearer {token}".encode()

    def check_token(self, given: str | bytes | None) -> None:
        """Raises: RefusedError, 401, unless it is the Authorization that is expected."""
        if self._token is None:
            return
        actual = given.encode("utf-8", "replace") if isinstance(given, str) else given or b""
        if not hmac.compare_digest(actual, self._token):
            raise RefusedError(401, "give this server's token: Authorization: Bearer TOKEN")

    def check_names(self, host: str, origin: str | None) -> None:
        """Raises: RefusedError, 403, for another Host or Origin than this server's."""
        if self._name(f"//{host}") not in self._names:
            raise RefusedError(403, f"Host {host[:100]!r} is not this server; allow it with --allow-host")
        if origin is not None and self._name(origin) not in self._names:
            raise RefusedError(403, f"pages of {origin[:100]!r} may not ask; allow it with --allow-host")

    @staticmethod
    def _name(url: str) -> str:
        try:
            return (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:
            return ""


def application(service: Service, access: Access, *, page: bool) -> ASGIApp:
    """The ASGI application."""
    return _Guard(_Routes(service, page=page).router(), service, access)


class _Guard:
    """Around every request: who may ask, one line of the log, and an answer whatever happens."""

    def __init__(self, app: ASGIApp, service: Service, access: Access) -> None:
        self._app, self._service, self._access = app, service, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        status = size = 0
        why: str | None = None

        async def noting(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                # HTTP does not care; scripts that look for Inference-Header-Content-Length do.
                message["headers"] = [(key.title(), value) for key, value in message["headers"]]
            size += len(message.get("body", b""))
            await send(message)

        self._service.under_way += 1
        scope["app"] = self  # lets the router raise what is no path, and no method of one
        try:
            try:
                self._check(scope)
                try:
                    await self._app(scope, receive, noting)
                except HTTPException as error:
                    words = {404: "no such path; see /v2", 405: f"does not take {scope['method'][:20]}"}
                    raise RefusedError(
                        error.status_code,
                        f"{scope['path'][:100]}: {words.get(error.status_code, error.detail)}",
                    ) from None
            except RefusedError as error:
                why = error.message
                if status:
                    raise  # uvicorn ends the connection
                await _refusal(error)(scope, receive, noting)
            except (ClientDisconnect, GoneError):
                status, why = _GONE, "the client has left"
            except Exception as error:  # noqa: BLE001  # the boundary: the server goes on
                why = f"{type(error).__name__}: {error}"
                if not status:
                    await _refusal(RefusedError(500, f"unexpected {type(error).__name__}"))(
                        scope, receive, noting
                    )
        except asyncio.CancelledError:
            status, why = _GONE, "the server ends"
            raise
        finally:
            self._service.under_way -= 1
            self._service.metrics.requests.labels("http", str(status)).inc()
            path = scope["path"]
            log_event(
                "request",
                level=logging.DEBUG if path.startswith(_QUIET) and status < 400 else logging.INFO,
                via="http",
                method=scope["method"],
                path=path[:200],
                status=str(status),
                bytes_out=size,
                ms=1000 * (time.perf_counter() - started),
                peer=scope["client"][0] if scope["client"] else None,
                why=why,
            )

    def _check(self, scope: Scope) -> None:
        headers = Request(scope).headers
        self._access.check_names(headers.get("host", ""), headers.get("origin"))
        if scope["path"] not in _OPEN_PATHS:
            self._access.check_token(headers.get("authorization"))
        if scope["method"] == "POST":
            self._service.admit()


class _Routes:
    def __init__(self, service: Service, *, page: bool) -> None:
        self._service = service
        self._page = _page() if page else None

    def router(self) -> Router:
        model = "/v2/models/{model}"
        routes = [
            Route("/upscale", self._upscale, methods=["POST"]),
            Route("/progress/{identifier}", self._progress),
            Route("/metrics", self._metrics),
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/models/stats", self._statistics),
            Route("/v2/repository/index", self._index, methods=["POST"]),
        ]
        for start in (model, model + "/versions/{version}"):
            routes += [
                Route(start, self._metadata),
                Route(f"{start}/ready", self._model_ready),
                Route(f"{start}/stats", self._statistics),
                Route(f"{start}/infer", self._infer, methods=["POST"]),
            ]
        if self._page is not None:
            routes.append(Route("/", self._show_page))
        return Router(routes, redirect_slashes=False)

    async def _upscale(self, request: Request) -> Response:
        """A picture file in, a picture file out: what curl and the page use."""
        started = time.perf_counter()
        kind = request.query_params.get("format", "png").lower()
        model = request.query_params.get("model", self._service.image_name)
        if model != self._service.image_name:
            raise _no_model(model)
        if kind not in SUFFIXES:
            raise RefusedError(400, f"format is {kind[:40]!r}, expected one of {', '.join(SUFFIXES)}")
        identifier = request.headers.get("x-request-id")
        if identifier is not None and not _IDENTIFIER.fullmatch(identifier):
            raise RefusedError(400, "X-Request-ID: expected a UUID")
        progress = self._service.follow(identifier)
        try:
            async with _Body(request, self._service) as body:
                data: list[Buffer] = [await body.read()]
                result = await _while_there(
                    request, self._service.upscaled_picture(data, kind, body.held, progress=progress)
                )
        except BaseException:
            progress.state = "failed"
            raise
        milliseconds = 1000 * (time.perf_counter() - started)
        return _Pieces(
            self._service.work,
            [result],
            media_type=_CONTENT_TYPES[kind],
            headers={"Server-Timing": f"upscale;dur={milliseconds:.1f}", "X-Content-Type-Options": "nosniff"},
        )

    async def _infer(self, request: Request) -> Response:
        name, interface = self._model_of(request)
        service = self._service
        async with _Body(request, service) as body:
            call = call_from_body(await body.read(), request.headers.get(JSON_LENGTH_HEADER), interface)
            version = service.model.version
            output = await _while_there(request, service.inferred(call, body.held))
        head, rest = body_from_output(call, name, version, interface, output)
        if rest is None:
            return _Pieces(service.work, [head], media_type="application/json")
        return _Pieces(
            service.work,
            [head, rest],
            media_type="application/octet-stream",
            headers={"Inference-Header-Content-Length": str(len(head))},
        )

    def _model_of(self, request: Request) -> tuple[str, Interface]:
        """The model that the path names. Raises: RefusedError, 404."""
        name = request.path_params["model"]
        version = request.path_params.get("version", "")
        interface = self._service.interfaces.get(name)
        if interface is None or version not in ("", str(self._service.model.version)):
            raise _no_model(f"{name} version {version}" if version else name)
        return name, interface

    async def _server(self, _: Request) -> Response:
        return JSONResponse(SERVER_METADATA)

    async def _live(self, _: Request) -> Response:
        return Response()

    async def _ready(self, _: Request) -> Response:
        return self._readiness()

    async def _model_ready(self, request: Request) -> Response:
        self._model_of(request)
        return self._readiness()

    def _readiness(self) -> Response:
        if self._service.is_ready():
            return Response()
        why = (
            stopping() if self._service.draining else RefusedError(503, "no inference succeeded for a minute")
        )
        return _refusal(why)

    async def _metadata(self, request: Request) -> Response:
        name, interface = self._model_of(request)
        return JSONResponse(interface.metadata(name, self._service.model.version))

    async def _statistics(self, request: Request) -> Response:
        only = self._model_of(request)[0] if "model" in request.path_params else None
        return JSONResponse({"model_stats": self._service.statistics(only)})

    async def _index(self, _: Request) -> Response:
        return JSONResponse(self._service.index())

    async def _progress(self, request: Request) -> Response:
        progress = self._service.progress(request.path_params["identifier"])
        if progress is None:
            raise RefusedError(404, "no request of this name is known")
        return JSONResponse(progress.as_dict(), headers={"Cache-Control": "no-store"})

    async def _metrics(self, _: Request) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _show_page(self, _: Request) -> Response:
        assert self._page is not None
        text, policy = self._page
        return Response(
            text,
            media_type="text/html",
            headers={
                "Content-Security-Policy": policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",
            },
        )


class _Body:
    """A request's body, counted as it arrives; `held` is its memory, at most until the block ends."""

    def __init__(self, request: Request, service: Service) -> None:
        self._request, self._limits = request, service.limits
        self._data = bytearray()
        self._reading: asyncio.Task[None] | None = None
        self.held: Reservation = service.bodies.reserve(on_drop=self._drop)

    async def __aenter__(self) -> _Body:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.held.release()

    async def read(self) -> bytearray:
        """The whole body, any Content-Encoding undone. Raises: RefusedError; ClientDisconnect."""
        announced = self._request.headers.get("content-length", "")
        self._require(int(announced) if announced.isdigit() else 0)
        encoding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise RefusedError(415, f"Content-Encoding is {encoding[:40]!r}, expected gzip or deflate")
        # 32 + 15: recognizes gzip and zlib.
        unpacker = None if encoding == "identity" else zlib.decompressobj(wbits=47)
        self._reading = asyncio.ensure_future(self._collect(unpacker))
        seconds = self._limits.body_time_ms / 1000
        try:
            await asyncio.wait_for(self._reading, seconds)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"the request took too long to arrive: more than {seconds:g} s") from None
        except asyncio.CancelledError:
            if self.held.dropped:
                raise too_slow() from None
            raise
        if unpacker is not None and not unpacker.eof:
            raise RefusedError(400, "the compressed body is cut short")
        self.held.settle(len(self._data))
        data, self._data = self._data, bytearray()
        return data

    async def _collect(self, unpacker: Any) -> None:
        async for part in self._request.stream():
            if unpacker is None:
                self._add(part)
                continue
            try:
                while part and not unpacker.eof:
                    self._add(unpacker.decompress(part, 1 << 20))
                    part = unpacker.unconsumed_tail  # noqa: PLW2901
            except zlib.error as error:
                raise RefusedError(400, f"the body is not what Content-Encoding says: {error}") from None

    def _add(self, part: bytes) -> None:
        size = len(self._data) + len(part)
        self._require(size)
        self.held.grow(size)
        self._data += part

    def _require(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise RefusedError(
                413, f"the request has more than the {self._limits.max_bytes} bytes that are accepted"
            )

    def _drop(self) -> None:
        self._data.clear()
        if self._reading is not None:
            self._reading.cancel()


class _Pieces(Response):
    """An answer of several buffers, sent a piece at a time, so that a slow client shows.

    Its memory is held meanwhile; a client that takes long gives way to others.
    """

    def __init__(self, budget: Budget, parts: Sequence[Buffer], **options: Any) -> None:
        super().__init__(**options)
        self._budget, self._parts = budget, parts
        self.headers["content-length"] = str(sum(len(part) for part in parts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.current_task()

        def stop() -> None:
            if sending is not None:
                sending.cancel()

        size = sum(len(part) for part in self._parts)
        held = self._budget.reserve(size, on_drop=stop, after=_SENDING_SECONDS)
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            for part in self._parts:
                for start in range(0, len(part), _PIECE_BYTES):
                    piece = bytes(memoryview(part)[start : start + _PIECE_BYTES])
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            if held.dropped:
                raise too_slow() from None
            raise
        finally:
            held.release()


async def _while_there(request: Request, work: Awaitable[_T]) -> _T:
    """What comes out of the work. Raises: GoneError as soon as the client has left."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise GoneError
    finally:
        leaving.cancel()
        working.cancel()


def _refusal(error: RefusedError) -> Response:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status, {})
    return JSONResponse({"error": error.message}, status_code=error.status, headers=headers)


def _no_model(name: str) -> RefusedError:
    return RefusedError(404, f"no such model: {name[:100]!r}; see /v2/repository/index")


def _page() -> tuple[str, str]:
    """The page, and the policy that lets it run its own script only."""
    text = (resources.files("trt_hspan.serving") / "page.html").read_text(encoding="utf-8")
    hashes = " ".join(
        f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    )
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
