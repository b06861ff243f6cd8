"""The HTTP side of the front door: checks each request, then hands it to Triton.

Triton reads a request into memory whatever its size, and *measured*, 2.51 dies of a chunked body in two million pieces
(CVE-2025-23310). So bodies are read here, within limits of size and time, and reach Triton whole, with
a Content-Length. The protocol itself passes unchanged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import zlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

import aiohttp
from aiohttp import web

from trt_hspan.serving.access import http_refusal, shared_memory_refusal
from trt_hspan.serving.admission import Admission, RefusedError, Reservation
from trt_hspan.serving.events import log_event
from trt_hspan.serving.server import LOOPBACK, TritonPorts

_JSON_LENGTH: Final = "Inference-Header-Content-Length"
# What goes on to Triton and back; the rest is between two machines only.
_PASSED_ON: Final = (_JSON_LENGTH, "Content-Type", "Accept-Encoding", "triton-request-id")
_PASSED_BACK: Final = (_JSON_LENGTH, "Content-Type", "Content-Encoding")
# Triton answers 500 to JSON that it cannot read, which is the client's fault.
_CLIENT_FAULTS: Final = ("failed to parse", "Unable to parse", "Unexpected", "JSON")
# What it says while one of its Python processes, which somebody killed, is not back yet.
RESTARTING: Final = "is not healthy"
_QUIET: Final = ("/v2/health/", "/metrics")
_CONTENT_TYPES: Final = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
}
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'"
)


class HttpDoor:
    """Triton's HTTP protocol, `POST /upscale`, and the page.

    Args:
        image_models: names of the picture models, which may change; the first is the default of /upscale.
        page: whether to serve the page at /.
    """

    def __init__(
        self, ports: TritonPorts, admission: Admission, *, image_models: Sequence[str], page: bool
    ) -> None:
        self._ports, self._admission = ports, admission
        self._image_models, self._page = image_models, page
        self._session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        """The application for an aiohttp runner with `auto_decompress=False`."""
        app = web.Application()
        app.cleanup_ctx.append(self._with_session)
        # A dot would leave paths with a line break to aiohttp, which does not log them.
        app.router.add_route("*", r"/{path:[\s\S]*}", self._answer, expect_handler=self._expect)
        return app

    def metrics_application(self) -> web.Application:
        """The application of the metrics port: Triton's figures and the door's."""
        app = web.Application()
        app.cleanup_ctx.append(self._with_session)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _with_session(self, _: web.Application) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        yield
        if not self._session.closed:
            await self._session.close()

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """Before `100 Continue`: a body that is too large is not even sent."""
        if (request.content_length or 0) > self._admission.limits.max_bytes:
            return _error(413, f"the request has more than {self._admission.limits.max_bytes} bytes")
        if request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        response: web.StreamResponse
        try:
            response = await self._routed(request)
        except RefusedError as error:
            response = _error(error.status, error.message)
        except web.HTTPException:
            raise
        except asyncio.CancelledError:
            self._tell(request, "gone", 0, started)
            raise
        except (aiohttp.ClientError, ConnectionError) as error:
            response = _error(503, "the server restarts; try again in a moment")
            log_event("upstream", level=logging.WARNING, error=f"{type(error).__name__}: {error}")
        if response.status in (408, 413, 415):  # the rest of the body is not read: nothing may follow it
            response.force_close()
        size = (
            len(response.body)
            if isinstance(response, web.Response) and isinstance(response.body, bytes)
            else 0
        )
        self._tell(request, str(response.status), size, started)
        return response

    def _tell(self, request: web.Request, status: str, size: int, started: float) -> None:
        self._admission.requests["http", status] += 1
        log_event(
            "request",
            level=logging.DEBUG if request.path.startswith(_QUIET) else logging.INFO,
            via="http",
            method=request.method,
            path=request.path[:200],
            status=status,
            bytes_in=request.content_length,
            bytes_out=size,
            ms=1000 * (time.perf_counter() - started),
            peer=request.remote,
        )

    async def _routed(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/upscale":
            return await self._upscale(request)
        if path == "/" and self._page:
            return self._page_response(request)
        refusal = http_refusal(request.method, path, request.remote)
        if refusal is not None:
            raise RefusedError(*refusal)
        if request.method != "POST":
            return await self._forward(request, b"")
        with self._admission.slot(counted=path.endswith("/infer")) as reservation:
            body = await self._body(request, reservation)
            _check_json_length(request, len(body))
            if path.endswith("/register"):
                _check_shared_memory(body)
            return await self._forward(request, body)

    async def _body(self, request: web.Request, reservation: Reservation) -> bytes:
        """The whole body, its Content-Encoding undone."""
        limits = self._admission.limits
        reservation.grow(request.content_length or 0)
        parts: list[bytes] = []

        async def read() -> None:
            size = 0
            async for part in request.content.iter_any():
                size += len(part)
                reservation.grow(size)
                parts.append(part)

        try:
            await asyncio.wait_for(read(), limits.body_time_ms / 1000)
        except asyncio.TimeoutError:
            raise RefusedError(
                408, f"the request took longer than {limits.body_time_ms} ms to arrive"
            ) from None
        body = b"".join(parts)
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding == "identity":
            return body
        if encoding not in ("gzip", "deflate"):
            raise RefusedError(415, f"Content-Encoding is {encoding[:40]!r}, expected gzip or deflate")
        inflated = _inflated(body, limits.max_bytes)
        reservation.grow(len(inflated))
        return inflated

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        method = "GET" if request.method == "HEAD" else request.method
        status, passed_back, data = await self._ask(method, request.path_qs, headers, body)
        if status == 500 and any(fault.encode() in data[:400] for fault in _CLIENT_FAULTS):
            status = 400
        response = web.Response(status=status, body=data, headers=passed_back)
        if status == 503:
            response.headers["Retry-After"] = "1"
        return response

    async def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        assert self._session is not None
        url = f"http://{LOOPBACK}:{self._ports.http}{path}"
        headers = {"Accept-Encoding": "identity", **headers}  # aiohttp would ask for gzip
        async with self._session.request(
            method, url, headers=headers, data=body if method == "POST" else None, allow_redirects=False
        ) as response:
            data = await response.read()
            if response.status >= 400 and RESTARTING.encode() in data[:1000]:
                raise RefusedError(503, "the model restarts; try again in a moment")
            back = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
            return response.status, back, data

    async def _upscale(self, request: web.Request) -> web.Response:
        """A picture file in, a picture file out: what `curl` and the page use."""
        if request.method != "POST":
            raise RefusedError(405, f"/upscale takes POST with a picture as its body, got {request.method}")
        model = request.query.get("model", self._image_models[0] if self._image_models else "")
        if model not in self._image_models:
            raise RefusedError(
                404, f"no picture model {model[:100]!r}; there are {', '.join(self._image_models)}"
            )
        kind = request.query.get("format", "png").lower()
        if kind not in _CONTENT_TYPES:
            raise RefusedError(400, f"format is {kind[:40]!r}, expected one of {', '.join(_CONTENT_TYPES)}")
        started = time.perf_counter()
        with self._admission.slot() as reservation:
            picture = await self._body(request, reservation)
            if not picture:
                raise RefusedError(400, "the body is empty, expected a picture")
            header = json.dumps(_infer_header(len(picture), kind)).encode()
            status, back, data = await self._ask(
                "POST", f"/v2/models/{model}/infer", {_JSON_LENGTH: str(len(header))}, header + picture
            )
        if status != 200:
            response = web.Response(status=status, body=data, content_type="application/json")
            if status == 503:
                response.headers["Retry-After"] = "1"
            return response
        milliseconds = 1000 * (time.perf_counter() - started)
        return web.Response(
            body=data[int(back[_JSON_LENGTH]) :],
            content_type=_CONTENT_TYPES[kind],
            headers={"Server-Timing": f"upscale;dur={milliseconds:.1f}", "X-Content-Type-Options": "nosniff"},
        )

    def _page_response(self, request: web.Request) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise RefusedError(405, f"/ takes GET, got {request.method}")
        text = (resources.files("trt_hspan.serving") / "page.html").read_text(encoding="utf-8")
        options = json.dumps(
            {"models": list(self._image_models), "max_bytes": self._admission.limits.max_bytes}
        )
        text = text.replace("{/* options */}", options.replace("<", "\\u003c"))
        return web.Response(
            text=text, content_type="text/html", headers={"Content-Security-Policy": _PAGE_POLICY}
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        assert self._session is not None
        text = ""
        try:
            async with self._session.get(f"http://{LOOPBACK}:{self._ports.metrics}/metrics") as response:
                text = (await response.read()).decode()
        except aiohttp.ClientError:
            pass  # Triton restarts; the door's own figures are still true
        return web.Response(text=text + self._admission.metrics(), content_type="text/plain")


def _infer_header(size: int, kind: str) -> dict[str, Any]:
    """Triton's JSON before a binary tensor (KServe v2 protocol, binary tensor data extension)."""
    return {
        "inputs": [
            {
                "name": "image",
                "shape": [1, size],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": size},
            }
        ],
        "outputs": [{"name": "upscaled", "parameters": {"binary_data": True}}],
        "parameters": {"format": kind},
    }


def _error(status: int, message: str) -> web.Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return web.json_response({"error": message}, status=status, headers=headers)


def _check_json_length(request: web.Request, size: int) -> None:
    text = request.headers.get(_JSON_LENGTH)
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= size):
        raise RefusedError(
            400, f"{_JSON_LENGTH} is {text[:40]!r}, expected 0 to {size}, the bytes of the body"
        )


def _check_shared_memory(body: bytes) -> None:
    try:
        key = json.loads(body).get("key")
    except (ValueError, AttributeError, RecursionError):
        raise RefusedError(400, "expected a JSON object with key, offset and byte_size") from None
    refusal = shared_memory_refusal(key)
    if refusal is not None:
        raise RefusedError(403, refusal)


def _inflated(data: bytes, limit: int) -> bytes:
    """Undoes gzip or deflate, up to a limit. Raises: RefusedError."""
    stream = zlib.decompressobj(wbits=47)  # 32 + 15: detects gzip and zlib
    try:
        result = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise RefusedError(400, f"the body is not what Content-Encoding says: {error}") from None
    if len(result) > limit or stream.unconsumed_tail:
        raise RefusedError(413, f"the request unpacks to more than the {limit} bytes that are accepted")
    if not stream.eof:
        raise RefusedError(400, "the compressed body is cut short")
    return result
