"""The server's HTTP side: who may ask, what is asked, and the answer. Limits of connections are in `connections`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import time
import zlib
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from trt_hspan.media.decoders import Buffer
from trt_hspan.media.formats import WRITE_FORMATS
from trt_hspan.serving.admission import (
    RefusedError,
    Reservation,
    gone,
    refusal_from_error,
    stopping,
    suffix_from_format,
    too_slow,
)
from trt_hspan.serving.service import Service
from trt_hspan.serving.v2 import JSON_LENGTH_HEADER, body_from_output, call_from_body

_T = TypeVar("_T")
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
# Anybody may ask these: what answers them is no secret, and who watches a server has no token.
_OPEN_PATHS: Final = ("/", "/v2/health/live", "/v2/health/ready")
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9-]{8,64}", re.ASCII)
# Of an answer that is handed to the connection at a time.
_PIECE_BYTES: Final = 1 << 20
# After which an answer that is still being read may give way.
_SENDING_SECONDS: Final = 10.0


class Access:
    """Who may ask: by the name that the server is called by, the page that asks, and the token.

    A browser sends a page's requests wherever the page says; only their Origin and Host show that it is not this
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
        actual = given.encode("utf-8", "replace") if isinstance(given, str) else given or b""
        if self._token is not None and not hmac.compare_digest(actual, self._token):
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


class Application:
    """The ASGI application: around every request, who may ask, one line of the log, and an answer whatever happens."""

    def __init__(self, service: Service, access: Access, *, page: bool) -> None:
        self._service, self._access = service, access
        self._router = _Routes(service, page=page).router()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        scope["app"] = self  # lets the router raise what is no path, and no method of one
        peer = scope["client"][0] if scope["client"] else None
        with (
            self._service.request("http", path, peer, method=method, path=path[:200]) as outcome,
            contextlib.ExitStack() as scope["held"],  # what is held until the answer has left
        ):

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    outcome.status = str(message["status"])
                    # HTTP does not care; scripts that look for Inference-Header-Content-Length do.
                    message["headers"] = [(key.title(), value) for key, value in message["headers"]]
                outcome.bytes_out += len(message.get("body", b""))
                await send(message)

            try:
                self._check(scope)
                await self._router(scope, receive, noting)
            except asyncio.CancelledError as cancelled:
                outcome.status, outcome.why = "499", str(cancelled) or "the server ends"
                raise
            except Exception as error:  # the boundary: the server goes on
                refused = _refusal_from_error(error, scope)
                outcome.why = refused.message
                if outcome.status:
                    raise  # uvicorn ends the connection
                outcome.status = str(refused.status)
                if refused.status != gone().status:
                    await _response(refused)(scope, receive, noting)

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
        self._page = page

    def router(self) -> Router:
        models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        routes = [Route("/upscale", self._upscale, methods=["POST"])]  # looked at in this order
        routes += [Route(f"{start}/infer", self._infer, methods=["POST"]) for start in models]
        routes += [
            Route("/progress/{identifier}", self._progress),
            Route("/metrics", self._metrics),
            Route("/v2", self._answers("ServerMetadata")),
            Route("/v2/health/live", self._answers("ServerLive")),
            Route("/v2/health/ready", self._answers("ServerReady")),
            Route("/v2/models/stats", self._answers("ModelStatistics")),
            Route("/v2/repository/index", self._answers("RepositoryIndex"), methods=["POST"]),
        ]
        for start in models:
            routes += [
                Route(start, self._answers("ModelMetadata")),
                Route(f"{start}/ready", self._answers("ModelReady")),
                Route(f"{start}/stats", self._answers("ModelStatistics")),
            ]
        if self._page:
            response = _page_response()
            routes.append(Route("/", lambda _: response))
        return Router(routes, redirect_slashes=False)

    def _answers(self, question: str) -> Any:
        async def answer(request: Request) -> Response:
            words = request.path_params
            facts = self._service.answer(question, words.get("model", ""), words.get("version", ""))
            if "ready" in facts or "live" in facts:
                if any(facts.values()):
                    return Response()
                if self._service.draining:
                    raise stopping()
                raise RefusedError(503, "no inference succeeded for a minute")
            return JSONResponse(facts.get("models", facts))

        return answer

    async def _upscale(self, request: Request) -> Response:
        """A picture file in, a picture file out: what curl and the page use."""
        started, service = time.perf_counter(), self._service
        suffix = suffix_from_format(kind := request.query_params.get("format", "png").lower())
        model = request.query_params.get("model", service.image_name)
        if model != service.image_name:
            raise RefusedError(404, f"takes no pictures: {model[:100]!r}; leave out model")
        identifier = request.headers.get("x-request-id")
        if identifier is not None and not _IDENTIFIER.fullmatch(identifier):
            raise RefusedError(400, "X-Request-ID: expected a UUID")
        job = service.job(identifier)
        try:
            body = _Body(request, service)
            data: list[Buffer] = [await body.read()]
            result = await _while_there(request, service.upscaled_picture(data, kind, body.held, job))
        except BaseException:
            job.state = "failed"
            raise
        milliseconds = 1000 * (time.perf_counter() - started)
        headers = {"Server-Timing": f"upscale;dur={milliseconds:.1f}", "X-Content-Type-Options": "nosniff"}
        return self._sent(request, [result], f"image/{WRITE_FORMATS[suffix][0].lower()}", headers)

    async def _infer(self, request: Request) -> Response:
        service, name = self._service, request.path_params["model"]
        interface = service.interface(name, request.path_params.get("version", ""))
        body = _Body(request, service)
        call = call_from_body(await body.read(), request.headers.get(JSON_LENGTH_HEADER), interface)
        version = service.model.version
        output = await _while_there(request, service.inferred(call, body.held))
        body.held.release()
        head, rest = body_from_output(call, name, version, interface, output)
        if rest is None:
            return self._sent(request, [head], "application/json", {})
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return self._sent(request, [head, rest], "application/octet-stream", headers)

    def _sent(
        self, request: Request, parts: Sequence[Buffer], kind: str, headers: dict[str, str]
    ) -> Response:
        """An answer, whose memory is held until it has left; one that takes long gives way to others."""
        size = sum(map(len, parts))
        held = self._service.work.reserve(size, on_drop=_canceller(too_slow()), after=_SENDING_SECONDS)
        request.scope["held"].enter_context(held)
        return _Answer(parts, headers={**headers, "Content-Length": str(size)}, media_type=kind)

    async def _progress(self, request: Request) -> Response:
        job = self._service.remembered.get(request.path_params["identifier"])
        if job is None:
            raise RefusedError(404, "no request of this name is remembered")
        progress = {"state": job.state, "tiles_done": job.done, "tiles": job.total}
        return JSONResponse(progress, headers={"Cache-Control": "no-store"})

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._service.metrics), media_type="text/plain; version=0.0.4")


class _Answer(Response):
    """Sent a piece at a time, so that a slow client shows; uvicorn drops what nobody reads any more."""

    def __init__(self, parts: Sequence[Buffer], **options: Any) -> None:
        super().__init__(**options)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts:
            for start in range(0, len(part), _PIECE_BYTES):
                piece = memoryview(part)[start : start + _PIECE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


class _Body:
    """A request's body, counted as it arrives; `held` is its memory, at most until the answer has left."""

    def __init__(self, request: Request, service: Service) -> None:
        self._request, self._limits = request, service.limits
        self._data = bytearray()
        self._stop_reading: Callable[[], object] = lambda: None
        self.held: Reservation = request.scope["held"].enter_context(
            service.bodies.reserve(on_drop=self._drop)
        )

    async def read(self) -> bytearray:
        """The whole body, any Content-Encoding undone. Raises: RefusedError; ClientDisconnect."""
        announced = self._request.headers.get("content-length", "")
        self._require(int(announced) if announced.isdigit() else 0)
        encoding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise RefusedError(415, f"Content-Encoding is {encoding[:40]!r}, expected gzip or deflate")
        # 32 + 15: recognizes gzip and zlib.
        unpacker = None if encoding == "identity" else zlib.decompressobj(wbits=47)
        self._stop_reading = _canceller(too_slow())
        loop, seconds = asyncio.get_running_loop(), self._limits.body_time_ms / 1000
        late = loop.call_later(seconds, self._stop_reading)
        try:
            await self._collect(unpacker)
        except asyncio.CancelledError:
            if self.held.dropped:
                raise too_slow() from None
            if loop.time() >= late.when():
                what = f"the request took too long to arrive: more than {seconds:g} s"
                raise RefusedError(408, what) from None
            raise
        finally:
            late.cancel()
            self._stop_reading = lambda: None
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
                while part:
                    if unpacker.eof:
                        raise RefusedError(400, "bytes follow the end of the compressed body")
                    self._add(unpacker.decompress(part, 1 << 20))
                    part = unpacker.unconsumed_tail or unpacker.unused_data  # noqa: PLW2901
            except zlib.error as error:
                raise RefusedError(400, f"the body is not what Content-Encoding says: {error}") from None

    def _add(self, part: bytes) -> None:
        size = len(self._data) + len(part)
        self._require(size)
        self.held.grow(size)
        self._data += part

    def _require(self, size: int) -> None:
        most = self._limits.max_bytes
        if size > most:
            raise RefusedError(413, f"the request has more than the {most} bytes that are accepted")

    def _drop(self) -> None:
        self._data.clear()
        self._stop_reading()


def _canceller(why: RefusedError) -> Callable[..., object]:
    """A call that cancels the task that is running now."""
    task = asyncio.current_task()
    return lambda *_: task and task.cancel(why.message)


async def _while_there(request: Request, work: Awaitable[_T]) -> _T:
    """What comes out of the work. Raises: RefusedError, 499, as soon as the client has left."""
    leaving, leave = asyncio.ensure_future(request.receive()), _canceller(gone())
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if leaving.done():
            raise gone() from None
        raise
    finally:
        leaving.remove_done_callback(leave)
        leaving.cancel()


def _refusal_from_error(error: Exception, scope: Scope) -> RefusedError:
    if isinstance(error, ClientDisconnect):
        return gone()
    if isinstance(error, HTTPException):  # of the router
        words = {404: "no such path; see /v2", 405: f"does not take {scope['method'][:20]}"}
        what = words.get(error.status_code, error.detail)
        return RefusedError(error.status_code, f"{scope['path'][:100]}: {what}")
    return refusal_from_error(error)


def _response(error: RefusedError) -> Response:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status, {})
    return JSONResponse({"error": error.message}, status_code=error.status, headers=headers)


def _page_response() -> Response:
    """The page, with the policy that lets it run its own script only."""
    text = (resources.files("trt_hspan.serving") / "page.html").read_text(encoding="utf-8")
    hashes = " ".join(
        f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    )
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    headers |= {"Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Response(text, media_type="text/html", headers=headers)
