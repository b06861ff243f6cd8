"""The server's gRPC side: KServe's GRPCInferenceService, as tritonclient's protobufs describe it.

gRPC says how long a message is only as it arrives, and reads it whole. So a call whose message is on its way holds the
memory of the largest one, and few may. Everybody else's bytes wait in the network.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from trt_hspan.serving.admission import RefusedError, Reservation, refusal_from_error, too_slow
from trt_hspan.serving.app import Access
from trt_hspan.serving.service import Service
from trt_hspan.serving.v2 import call_from_message

_SERVICE: Final = "/inference.GRPCInferenceService/"
_OPEN: Final = ("ServerLive", "ServerReady", "ModelReady")
_ANSWERED: Final = (
    *_OPEN,
    "ServerMetadata",
    "ModelMetadata",
    "ModelStatistics",
    "RepositoryIndex",
    "ModelInfer",
)
# A message is a little larger than its tensors.
_FRAMING_BYTES: Final = 1 << 16
# A message that is on its way for longer gives way to another that waits, which looks this often.
_TURN_SECONDS, _LOOK_SECONDS = 0.5, 0.05
# Of an output, until it is sent.
_COPIES: Final = 3
# On the wire a field begins with its number and its kind, 2: bytes after their length.
_RAW_FIELD: Final = service_pb2.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2
# Calls at a time, for each that may wait: most of them have only begun.
_CALLS: Final = 4
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GrpcServer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The service on a port of its own."""

    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access, limits = service, access, service.limits
        self._most = limits.max_bytes + _FRAMING_BYTES
        self._seconds = limits.body_time_ms / 1000
        # gRPC takes at most half of the budget for messages that may never come; HTTP counts what did.
        self._places = max(1, service.bodies.total // 2 // self._most)
        # What settles when the message gives way: of those that wait, and of those on their way, since when.
        self._waiting: list[asyncio.Future[None]] = []
        self._arriving: dict[asyncio.Future[None], float] = {}
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._most),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 16 << 10),
                # Connections that say nothing, or nothing more, soon make room for others.
                ("grpc.max_allowed_incoming_connections", limits.connections),
                ("grpc.server_handshake_timeout_ms", min(limits.body_time_ms, 5000)),
                ("grpc.max_connection_idle_ms", 10_000),
                ("grpc.max_concurrent_streams", 100),
                # A client that never reads its answer is let go at last.
                ("grpc.max_connection_age_ms", 600_000),
                ("grpc.max_connection_age_grace_ms", limits.work_time_ms + 60_000),
                # What nobody reads yet stays in the network: no more than this of each call is taken in.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", 1 << 16),
                # A compressed message would be unpacked before its size is known.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 4),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=_CALLS * limits.queue_length,
        )
        self._server.add_generic_rpc_handlers((self,))
        self.start, self.stop = self._server.start, self._server.stop

    def bind(self, address: str) -> int:
        """The port. Raises: RuntimeError when it cannot be had."""
        return int(self._server.add_insecure_port(address))

    def service(self, handler_call_details: Any) -> Any:
        """What answers a method; None where there is none."""
        path = handler_call_details.method
        name = path.removeprefix(_SERVICE)
        if not path.startswith(_SERVICE) or name not in _ANSWERED:
            return None
        # On the wire this is a unary call; as a stream, its message is not read before there is room for it.
        return grpc.stream_unary_rpc_method_handler(self._answering(name))

    def _answering(self, name: str) -> Callable[[AsyncIterator[bytes], Any], Awaitable[bytes]]:
        async def answered(_: AsyncIterator[bytes], context: Any) -> bytes:
            with (
                self._service.request("grpc", name, context.peer(), method=name) as outcome,
                contextlib.ExitStack() as held,
            ):
                try:
                    if name not in _OPEN:
                        metadata = dict(context.invocation_metadata() or ())
                        self._access.check_token(metadata.get("authorization"))
                    if name == "ModelInfer":
                        self._service.admit()
                    message, reservation = await self._message(context)
                    held.enter_context(reservation)
                    request = [_parsed(name, message)]
                    del message
                    if name == "ModelInfer":
                        data = await self._infer(request, reservation, context)
                    else:
                        words = [getattr(request[0], field, "") for field in ("name", "version")]
                        answer = getattr(service_pb2, f"{name}Response")(**self._service.answer(name, *words))
                        data = bytes(answer.SerializeToString())
                except asyncio.CancelledError:
                    outcome.status, outcome.why = "CANCELLED", "the client has left, or its deadline is over"
                    raise
                except Exception as error:  # the boundary: the server goes on
                    refused = refusal_from_error(error)
                    code = _CODES[refused.status]
                    outcome.status, outcome.why = code.name, refused.message
                    await context.abort(code, refused.message)
                    raise
                outcome.status, outcome.bytes_out = "OK", len(data)
                return data

        return answered

    async def _infer(self, requests: list[Any], held: Reservation, context: Any) -> bytes:
        """The answer's bytes; the request is taken out of its list, so that nobody else keeps its memory."""
        request, service = requests.pop(), self._service
        name = request.model_name
        interface = service.interface(name, request.model_version)
        call = call_from_message(request, interface)
        del request
        version = service.model.version
        output = await service.inferred(call, held)
        sending = service.work.reserve(_COPIES * output.nbytes)
        context.add_done_callback(lambda _: sending.release())
        answer = service_pb2.ModelInferResponse(
            model_name=name, model_version=str(version), id=call.identifier
        )
        answer.outputs.add(name=interface.output, datatype=interface.datatype, shape=output.shape)
        # A message is its fields, one after the other: the last one, which is large, is copied once.
        values = memoryview(np.ascontiguousarray(output).reshape(-1).view(np.uint8).data)
        return b"".join((answer.SerializeToString(), bytes([_RAW_FIELD]), _varint(len(values)), values))

    async def _message(self, context: Any) -> tuple[bytes, Reservation]:
        """A call's only message, and the memory that it holds, to be released.

        The newest that waits is next: old ones are more likely to be silent.

        Raises:
            RefusedError: it does not come, or not in time; there is no room for it.
        """
        loop = asyncio.get_running_loop()
        deadline, over = loop.time() + self._seconds, loop.create_future()
        self._waiting.append(over)
        try:
            while self._waiting[-1] is not over or not self._has_place(loop.time()):
                if loop.time() > deadline:
                    raise RefusedError(503, "too many messages are on their way; try again later")
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._waiting.remove(over)
        self._arriving[over] = loop.time()
        bodies = self._service.bodies
        with contextlib.ExitStack() as undo:
            undo.callback(self._arriving.pop, over, None)
            reservation = bodies.reserve(min(self._most, bodies.total), on_drop=lambda: _settle(over))
            undo.callback(reservation.release)
            # Never cancelled: gRPC would lose a message that has come meanwhile, and its memory, for good.
            reading: asyncio.Future[Any] = asyncio.ensure_future(context.read())
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait((reading, over), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                late = f"the message took too long to arrive: more than {self._seconds:g} s"
                raise too_slow() if over.done() else RefusedError(408, late)
            message = reading.result()
            if message is grpc.aio.EOF:
                raise RefusedError(400, "the call ended without a message")
            reservation.settle(len(message))
            undo.pop_all()
        self._arriving.pop(over, None)
        return message, reservation

    def _has_place(self, now: float) -> bool:
        """Whether another message may be on its way; one that has been for long makes room."""
        if len(self._arriving) >= self._places:
            oldest, since = next(iter(self._arriving.items()))
            if now - since < _TURN_SECONDS:
                return False
            del self._arriving[oldest]
            _settle(oldest)
        return True


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first; all but the last have the highest bit set (protobuf's encoding)."""
    groups = range(0, max(1, number.bit_length()), 7)
    return bytes(number >> at & 0x7F | (0x80 if number >> at + 7 else 0) for at in groups)


def _parsed(name: str, message: bytes) -> Any:
    try:
        return getattr(service_pb2, f"{name}Request").FromString(message)
    except DecodeError:
        raise RefusedError(400, f"no {name}Request that can be read") from None
