"""The server's gRPC side: KServe's GRPCInferenceService, as tritonclient's protobufs describe it.

gRPC says how long a message is only as it arrives, and reads it whole. So a call whose message is on its way holds the
memory of the largest one, and few may: `_Turns`. Everybody else's bytes wait in the network.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from trt_hspan.serving.app import Access
from trt_hspan.serving.events import log_event
from trt_hspan.serving.limits import RefusedError, Reservation, too_slow
from trt_hspan.serving.service import GoneError, Service
from trt_hspan.serving.v2 import SERVER_METADATA, Interface, call_from_message

_SERVICE: Final = "/inference.GRPCInferenceService/"
_QUIET: Final = ("ServerLive", "ServerReady", "ModelReady")
# A message is a little larger than its tensors.
_FRAMING_BYTES: Final = 1 << 16
# A message that is on its way for longer gives way to another that waits.
_TURN_SECONDS: Final = 0.5
# Of an output, until it is sent.
_COPIES: Final = 3
# Calls at a time, for each that may wait: most of them have only begun.
_CALLS: Final = 4
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GrpcServer:
    """The service on a port of its own."""

    def __init__(self, service: Service, access: Access) -> None:
        self._service, self._access = service, access
        limits = service.limits
        self._most = limits.max_bytes + _FRAMING_BYTES
        self._turns = _Turns(service, self._most)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._most),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 16 << 10),
                ("grpc.max_allowed_incoming_connections", limits.connections),
                ("grpc.max_concurrent_streams", 100),
                ("grpc.max_connection_idle_ms", 15_000),
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
        self._server.add_generic_rpc_handlers((_Handlers(self._handler),))

    def bind(self, address: str) -> int:
        """The port. Raises: RuntimeError when it cannot be had."""
        return int(self._server.add_insecure_port(address))

    async def start(self) -> None:
        """Takes calls from now on."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Takes no more; those under way have `grace` seconds."""
        await self._server.stop(grace)

    def _handler(self, path: str) -> Any:
        """What answers a method; None where there is none."""
        answers: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "ServerLive": (service_pb2.ServerLiveRequest, self._live),
            "ServerReady": (service_pb2.ServerReadyRequest, self._ready),
            "ModelReady": (service_pb2.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (service_pb2.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (service_pb2.ModelMetadataRequest, self._model_metadata),
            "ModelStatistics": (service_pb2.ModelStatisticsRequest, self._statistics),
            "RepositoryIndex": (service_pb2.RepositoryIndexRequest, self._index),
            "ModelInfer": (service_pb2.ModelInferRequest, self._live),
        }
        name = path.removeprefix(_SERVICE)
        if not path.startswith(_SERVICE) or name not in answers:
            return None
        # On the wire this is a unary call; as a stream, its message is not read before there is room for it.
        return grpc.stream_unary_rpc_method_handler(self._answering(name, *answers[name]))

    def _answering(
        self, name: str, kind: Any, answer: Callable[[Any], Any]
    ) -> Callable[[AsyncIterator[bytes], Any], Awaitable[bytes]]:
        async def answered(_: AsyncIterator[bytes], context: Any) -> bytes:
            started = time.perf_counter()
            code, data, why = grpc.StatusCode.OK, b"", None
            self._service.under_way += 1
            reservation: Reservation | None = None
            try:
                self._check(name, context)
                message, reservation = await self._turns.message(context)
                request = [_parsed(kind, message)]
                del message
                if name == "ModelInfer":
                    data = await self._infer(request, reservation, context)
                else:
                    data = answer(request[0]).SerializeToString()
            except RefusedError as error:
                code, why = _CODES[error.status], error.message
                await context.abort(code, error.message)
            except (asyncio.CancelledError, GoneError):
                code, why = grpc.StatusCode.CANCELLED, "the client has left, or its deadline is over"
                raise
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  # the boundary: the server goes on
                code, why = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
                await context.abort(code, f"unexpected {type(error).__name__}")
            finally:
                if reservation is not None:
                    reservation.release()
                self._service.under_way -= 1
                self._service.metrics.requests.labels("grpc", code.name).inc()
                log_event(
                    "request",
                    level=logging.DEBUG if name in _QUIET and why is None else logging.INFO,
                    via="grpc",
                    method=name,
                    status=code.name,
                    bytes_out=len(data),
                    ms=1000 * (time.perf_counter() - started),
                    peer=context.peer(),
                    why=why,
                )
            return data

        return answered

    def _check(self, name: str, context: Any) -> None:
        if name not in _QUIET:
            self._access.check_token(dict(context.invocation_metadata() or ()).get("authorization"))
        if name == "ModelInfer":
            self._service.admit()

    async def _infer(self, requests: list[Any], held: Reservation, context: Any) -> bytes:
        """Takes the request out of its list: nobody else keeps its memory."""
        request = requests.pop()
        name, interface = request.model_name, self._model(request.model_name, request.model_version)
        call = call_from_message(request, interface)
        del request
        version = self._service.model.version
        output = await self._service.inferred(call, held)
        sending = self._service.work.reserve(_COPIES * output.nbytes)
        context.add_done_callback(lambda _: sending.release())
        answer = service_pb2.ModelInferResponse(
            model_name=name, model_version=str(version), id=call.identifier
        )
        answer.outputs.add(name=interface.output, datatype=interface.datatype, shape=output.shape)
        answer.raw_output_contents.append(output.tobytes())
        del output
        return bytes(answer.SerializeToString())

    def _model(self, name: str, version: str) -> Interface:
        interface = self._service.interfaces.get(name)
        if interface is None or version not in ("", str(self._service.model.version)):
            raise RefusedError(404, f"no such model: {name[:100]!r} {version[:20]}".rstrip())
        return interface

    def _live(self, _: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def _ready(self, _: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._service.is_ready())

    def _model_ready(self, request: Any) -> Any:
        self._model(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=self._service.is_ready())

    def _server_metadata(self, _: Any) -> Any:
        return service_pb2.ServerMetadataResponse(**SERVER_METADATA)

    def _model_metadata(self, request: Any) -> Any:
        interface = self._model(request.name, request.version)
        return service_pb2.ModelMetadataResponse(
            **interface.metadata(request.name, self._service.model.version)
        )

    def _statistics(self, request: Any) -> Any:
        if request.name:
            self._model(request.name, request.version)
        return service_pb2.ModelStatisticsResponse(model_stats=self._service.statistics(request.name or None))

    def _index(self, _: Any) -> Any:
        return service_pb2.RepositoryIndexResponse(models=self._service.index())


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        raise RefusedError(400, f"no {kind.__name__} that can be read") from None


class _Turn:
    """A call whose message is on its way, or may come next: when its turn came, and whether it gave way."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.since = 0.0
        self.given: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()

    def give_way(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class _Turns:
    """Which calls' messages are on their way. The newest that waits is next: old ones are more likely to be silent."""

    def __init__(self, service: Service, most: int) -> None:
        self._budget, self._most = service.bodies, min(most, service.bodies.total)
        self._seconds = service.limits.body_time_ms / 1000
        # gRPC takes at most half of the budget for messages that may never come; HTTP counts what did.
        self._count = max(1, self._budget.total // 2 // most)
        self._under_way: set[_Turn] = set()
        self._waiting: list[_Turn] = []

    async def message(self, context: Any) -> tuple[bytes, Reservation]:
        """A call's only message, and the memory that it holds, to be released.

        Raises:
            RefusedError: it does not come, or not in time; there is no room for it.
        """
        turn = _Turn()
        self._waiting.append(turn)
        self._pass_on()
        reservation = None
        try:
            await asyncio.wait((turn.given,), timeout=self._seconds)
            if not turn.given.done():
                raise RefusedError(503, "too many messages are on their way; try again later")
            reservation = self._budget.reserve(self._most, on_drop=turn.give_way)
            # Never cancelled: gRPC would lose a message that has come meanwhile, and its memory, for good.
            reading: asyncio.Future[Any] = asyncio.ensure_future(context.read())
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait(
                (reading, turn.over), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not reading.done():
                late = f"the message took too long to arrive: more than {self._seconds:g} s"
                raise too_slow() if turn.over.done() else RefusedError(408, late)
            message = reading.result()
            if message is grpc.aio.EOF:
                raise RefusedError(400, "the call ended without a message")
            reservation.settle(len(message))
            return message, reservation
        except BaseException:
            if reservation is not None:
                reservation.release()
            raise
        finally:
            self._under_way.discard(turn)
            if turn in self._waiting:
                self._waiting.remove(turn)
            self._pass_on()

    def _pass_on(self) -> None:
        """Gives turns while there is room; a message that has been on its way for long makes some."""
        loop, now = asyncio.get_running_loop(), time.monotonic()
        while self._waiting:
            if len(self._under_way) >= self._count:
                oldest = min(self._under_way, key=lambda turn: turn.since)
                if now - oldest.since < _TURN_SECONDS:
                    loop.call_later(oldest.since + _TURN_SECONDS - now + 0.001, self._pass_on)
                    return
                self._under_way.discard(oldest)
                oldest.give_way()
            turn = self._waiting.pop()
            if not turn.given.done():
                turn.since = now
                self._under_way.add(turn)
                turn.given.set_result(None)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find

    def service(self, handler_call_details: Any) -> Any:
        return self._find(handler_call_details.method)
