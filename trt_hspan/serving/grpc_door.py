"""The gRPC side of the front door: bytes through to Triton, within limits and for open methods only.

Messages pass unparsed, but for the registration of shared memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio

from trt_hspan.serving.access import OPEN_METHODS, SHARED_METHODS, is_local, shared_memory_refusal
from trt_hspan.serving.admission import Admission, RefusedError
from trt_hspan.serving.events import log_event
from trt_hspan.serving.http_door import RESTARTING
from trt_hspan.serving.server import LOOPBACK, TritonPorts

_SERVICE: Final = "/inference.GRPCInferenceService/"
_QUIET: Final = ("ServerLive", "ServerReady", "ModelReady")
# A message is a little larger than its tensors.
_FRAMING_BYTES: Final = 1 << 16
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GrpcDoor:
    """Triton's gRPC protocol; `ports` are Triton's."""

    def __init__(self, ports: TritonPorts, admission: Admission) -> None:
        self._ports, self._admission = ports, admission
        self._channel: Any = None
        self._server: Any = None
        self._streams = 0

    async def bind(self, address: str) -> int:
        """Binds the port without serving yet; the port that was bound. Raises RuntimeError: the address is taken."""
        limit = self._admission.limits.max_bytes + _FRAMING_BYTES
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.max_ping_strikes", 5),
                ("grpc.server_handshake_timeout_ms", self._admission.limits.body_time_ms),
            ],
            maximum_concurrent_rpcs=4 * self._admission.limits.queue_length,
        )
        self._server.add_generic_rpc_handlers((_Handlers(self._handler),))
        port = self._server.add_insecure_port(address)
        if port == 0:
            raise RuntimeError(f"cannot bind {address}")
        return int(port)

    async def start(self) -> None:
        """Serves from now on."""
        self._channel = grpc.aio.insecure_channel(
            f"{LOOPBACK}:{self._ports.grpc}",
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # Triton may restart: look for it again soon.
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Refuses new calls, gives those under way `grace` seconds, and ends."""
        if self._server is not None:
            await self._server.stop(grace)
        if self._channel is not None:
            await self._channel.close()

    def _handler(self, path: str) -> Any:
        """What answers a method, or None when there is no such method."""
        if not path.startswith(_SERVICE):
            return None
        name = path.removeprefix(_SERVICE)
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._streamed(path))
        # On the wire this is a unary call; as a stream, the door sees a client that never sends its message.
        return grpc.stream_unary_rpc_method_handler(self._unary(path, name))

    def _unary(self, path: str, name: str) -> Callable[[AsyncIterator[bytes], Any], Awaitable[bytes]]:
        async def answer(messages: AsyncIterator[bytes], context: Any) -> bytes:
            started = time.perf_counter()
            code, data, message = grpc.StatusCode.OK, b"", b""
            try:
                message = await self._message(messages)
                self._check(name, message, context)
                if name == "ModelInfer":
                    with self._admission.slot() as reservation:
                        reservation.grow(min(len(message), self._admission.limits.max_bytes))
                        data = await self._channel.unary_unary(path)(message)
                else:
                    data = await self._channel.unary_unary(path)(message)
            except RefusedError as error:
                code = _CODES[error.status]
                await context.abort(code, error.message)
            except grpc.aio.AioRpcError as error:
                code, details = _code_and_details(error)
                await context.abort(code, details)
            finally:
                self._tell(name, context, code, started=started, received=len(message), sent=len(data))
            return data

        return answer

    async def _message(self, messages: AsyncIterator[bytes]) -> bytes:
        """The one message of a unary call. Raises: RefusedError when it does not come, or not in time."""
        limit = self._admission.limits.body_time_ms
        try:
            return await asyncio.wait_for(anext(messages), limit / 1000)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"the request took longer than {limit} ms to arrive") from None
        except StopAsyncIteration:
            raise RefusedError(400, "the call has no message") from None

    def _streamed(self, path: str) -> Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]:
        async def answer(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            started, code = time.perf_counter(), grpc.StatusCode.OK
            received = sent = 0

            async def counted() -> AsyncIterator[bytes]:
                nonlocal received
                async for message in messages:
                    received += len(message)
                    yield message

            opened = False
            try:
                # A stream may be idle: it takes no place of a request. Its requests are counted by Triton's queue.
                if self._streams >= self._admission.limits.queue_length:
                    raise RefusedError(503, f"{self._streams} streams are open; try again later")
                self._streams += 1
                opened = True
                async for message in self._channel.stream_stream(path)(counted()):
                    sent += len(message)
                    yield message
            except RefusedError as error:
                code = _CODES[error.status]
                await context.abort(code, error.message)
            except grpc.aio.AioRpcError as error:
                code, details = _code_and_details(error)
                await context.abort(code, details)
            finally:
                self._streams -= opened
                self._tell("ModelStreamInfer", context, code, started=started, received=received, sent=sent)

        return answer

    def _check(self, name: str, message: bytes, context: Any) -> None:
        if name in SHARED_METHODS:
            if not is_local(_peer(context)):
                raise RefusedError(403, "shared memory is for clients on the server's machine")
            if name == "SystemSharedMemoryRegister":
                _check_region(message)
        elif name not in OPEN_METHODS:
            raise RefusedError(403, f"{name} is not open to clients")

    def _tell(
        self, name: str, context: Any, code: grpc.StatusCode, *, started: float, received: int, sent: int
    ) -> None:
        self._admission.requests["grpc", code.name] += 1
        log_event(
            "request",
            level=logging.DEBUG if name in _QUIET else logging.INFO,
            via="grpc",
            method=name[:100],
            status=code.name,
            bytes_in=received,
            bytes_out=sent,
            ms=1000 * (time.perf_counter() - started),
            peer=_peer(context),
        )


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find

    def service(self, handler_call_details: Any) -> Any:
        return self._find(handler_call_details.method)


def _check_region(message: bytes) -> None:
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2

    try:
        key = service_pb2.SystemSharedMemoryRegisterRequest.FromString(message).key
    except DecodeError:
        raise RefusedError(403, "the message cannot be read") from None
    refusal = shared_memory_refusal(key)
    if refusal is not None:
        raise RefusedError(403, refusal)


def _code_and_details(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    """Code and details for the client."""
    code, details = error.code(), error.details() or ""
    if RESTARTING in details:
        return grpc.StatusCode.UNAVAILABLE, "the model restarts; try again in a moment"
    if code is grpc.StatusCode.UNAVAILABLE and any(
        word in details for word in ("connect", "Socket closed", "reset")
    ):
        return code, "the server restarts; try again in a moment"
    return code, details


def _peer(context: Any) -> str | None:
    """The client's address in gRPC's "ipv4:127.0.0.1:5000" or "ipv6:%5B::1%5D:5000"."""
    kind, _, rest = urllib.parse.unquote(context.peer()).partition(":")
    if kind == "unix":
        return "unix"
    return rest.rpartition(":")[0].strip("[]") or None
