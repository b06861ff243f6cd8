"""The server's gRPC side, on a free port of this process with a network in numpy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.internal import encoder
from support.served_pictures import pixels_of, png
from support.service_double import HeldRunner, service_of, until
from tritonclient.grpc import service_pb2

from trt_hspan.serving import v2_grpc
from trt_hspan.serving.admission import RefusedError
from trt_hspan.serving.app import Access
from trt_hspan.serving.service import Service
from trt_hspan.serving.v2_grpc import GrpcServer, _varint

SERVICE = "/inference.GRPCInferenceService/"
BATCH = np.random.default_rng(0).random((1, 3, 5, 6), np.float32)


def message_of(values: np.ndarray, name: str = "input", datatype: str = "FP32") -> Any:
    model = "net" if datatype == "FP32" else "net_image"
    message = service_pb2.ModelInferRequest(model_name=model, id="me")
    message.inputs.add(name=name, datatype=datatype, shape=values.shape)
    message.raw_input_contents.append(values.tobytes())
    return message


class Asking:
    """A client in the server's loop."""

    def __init__(self, server: GrpcServer, channel: grpc.aio.Channel) -> None:
        self.server, self._channel = server, channel

    def call(self, name: str, message: Any = b"", token: str | None = None) -> Any:
        metadata = () if token is None else (("authorization", token),)
        data = message if isinstance(message, bytes) else message.SerializeToString()
        return self._channel.unary_unary(SERVICE + name)(data, metadata=metadata, timeout=20)

    async def answer(self, name: str, message: Any = b"", token: str | None = None) -> Any:
        return getattr(service_pb2, f"{name}Response").FromString(await self.call(name, message, token))

    async def refusal(self, call: Any) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value.code().name, str(caught.value.details())

    def never(self) -> Any:
        """A call whose message does not come."""

        async def silence() -> AsyncIterator[bytes]:
            await asyncio.sleep(60)
            yield b""

        return self._channel.stream_unary(SERVICE + "ModelInfer")(silence(), timeout=20)


@asynccontextmanager
async def asking(service: Service, access: Access | None = None) -> AsyncIterator[Asking]:
    server = GrpcServer(service, access or Access())
    port = server.bind("127.0.0.1:0")
    await server.start()
    try:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield Asking(server, channel)
    finally:
        await server.stop(0)


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str | None]]:
    fields = [record.event_fields for record in caplog.records]  # type: ignore[attr-defined]
    return [(each["method"], each["status"], each["why"]) for each in fields if "method" in each]


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 16383, 16384, 2**31, 2**35 - 1, 2**35])
def test_lengths_are_written_as_protobuf_does(number: int) -> None:
    assert _varint(number) == encoder._VarintBytes(number)  # type: ignore[attr-defined]


def test_tensors_and_pictures_are_computed() -> None:
    async def ask(service: Service) -> None:
        async with asking(service) as client:
            answer = await client.answer("ModelInfer", message_of(BATCH))
            assert (answer.model_name, answer.model_version, answer.id) == ("net", "5", "me")
            (tensor,) = answer.outputs
            assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("output", "FP32", [1, 3, 10, 12])
            (raw,) = answer.raw_output_contents
            assert raw == BATCH.repeat(2, 2).repeat(2, 3).tobytes()
            picture = np.frombuffer(png(12, 8), np.uint8)[None]
            answer = await client.answer("ModelInfer", message_of(picture, "image", "UINT8"))
            assert pixels_of(answer.raw_output_contents[0]).shape == (16, 24, 3)
            await until(lambda: service.bodies.held == service.work.held == service.under_way == 0)

    with service_of() as service:
        asyncio.run(ask(service))


def test_memory_of_an_answer_is_held_in_three_copies_until_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    async def ask(service: Service) -> None:
        reserve = service.work.reserve
        monkeypatch.setattr(
            service.work, "reserve", lambda size=0, **_: (sizes.append(size), reserve(size))[1]
        )
        async with asking(service) as client:
            await client.answer("ModelInfer", message_of(BATCH))
            await until(lambda: service.work.held == 0)

    with service_of() as service:
        asyncio.run(ask(service))
    assert sizes[-1] == 3 * 4 * BATCH.nbytes


def test_questions_are_answered() -> None:
    async def ask(service: Service) -> None:
        async with asking(service) as client:
            assert (await client.answer("ServerLive")).live
            assert (await client.answer("ServerReady")).ready
            assert (await client.answer("ServerMetadata")).name == "trt-hspan"
            named = service_pb2.ModelReadyRequest(name="net", version="5")
            assert (await client.answer("ModelReady", named)).ready
            assert (await client.answer("ModelMetadata", named)).versions == ["5"]
            assert [each.name for each in (await client.answer("ModelStatistics")).model_stats] == [
                "net",
                "net_image",
            ]
            assert [each.name for each in (await client.answer("ModelStatistics", named)).model_stats] == [
                "net"
            ]
            assert len((await client.answer("RepositoryIndex")).models) == 2
            other = service_pb2.ModelReadyRequest(name="net", version="4")
            assert (await client.refusal(client.call("ModelReady", other)))[0] == "NOT_FOUND"
            for name in ("ModelConfig", "Nothing"):
                assert (await client.refusal(client.call(name)))[0] == "UNIMPLEMENTED"
            elsewhere = client._channel.unary_unary("/other.Service/ServerLive")(b"", timeout=20)
            assert (await client.refusal(elsewhere))[0] == "UNIMPLEMENTED"

    with service_of() as service:
        asyncio.run(ask(service))


def test_only_who_gives_the_token_is_answered_more_than_that_the_server_is_there() -> None:
    async def ask(service: Service) -> None:
        async with asking(service, Access(token="secret")) as client:
            for name in ("ServerLive", "ServerReady"):
                assert await client.answer(name)
            assert await client.answer("ModelReady", service_pb2.ModelReadyRequest(name="net"))
            for name in (
                "ServerMetadata",
                "ModelInfer",
                "ModelStatistics",
                "RepositoryIndex",
                "ModelMetadata",
            ):
                for token in (None, "Bearer other"):
                    code, words = await client.refusal(client.call(name, token=token))
                    assert (code, words[:24]) == ("UNAUTHENTICATED", "give this server's token")
            assert await client.answer("ServerMetadata", token="Bearer secret")
            assert await client.answer("ModelInfer", message_of(BATCH), token="Bearer secret")

    with service_of() as service:
        asyncio.run(ask(service))


def test_a_server_that_stops_answers_questions_only() -> None:
    async def ask(service: Service) -> None:
        service.draining = True
        async with asking(service) as client:
            code, words = await client.refusal(client.call("ModelInfer", message_of(BATCH)))
            assert (code, words) == ("UNAVAILABLE", "the server stops; try another one, or again later")
            assert not (await client.answer("ServerReady")).ready

    with service_of() as service:
        asyncio.run(ask(service))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (408, "DEADLINE_EXCEEDED"),
        (413, "RESOURCE_EXHAUSTED"),
        (499, "CANCELLED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
    ],
)
def test_each_refusal_of_http_is_one_of_grpc(
    status: int, code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RefusedError(status, "no")

    async def ask(service: Service) -> None:
        monkeypatch.setattr(service, "answer", refuse)
        async with asking(service) as client:
            assert await client.refusal(client.call("ServerMetadata")) == (code, "no")
            await until(lambda: not service.under_way)

    with service_of() as service, caplog.at_level(logging.INFO, "trt_hspan.serving"):
        asyncio.run(ask(service))
    assert events(caplog) == [("ServerMetadata", code, "no")]


def test_messages_that_are_none_are_refused() -> None:
    async def ask(service: Service) -> None:
        async with asking(service) as client:
            for name in ("ModelInfer", "ModelReady"):
                refused = await client.refusal(client.call(name, b"\xff"))
                assert refused == ("INVALID_ARGUMENT", f"no {name}Request that can be read")

            async def nothing() -> AsyncIterator[bytes]:
                for message in ():
                    yield message

            empty = client._channel.stream_unary(SERVICE + "ModelInfer")(nothing(), timeout=20)
            assert await client.refusal(empty) == ("INVALID_ARGUMENT", "the call ended without a message")
            assert service.bodies.held == 0

    with service_of() as service:
        asyncio.run(ask(service))


def test_a_message_may_be_a_little_larger_than_its_tensors() -> None:
    async def ask(service: Service) -> None:
        picture = np.zeros((1, 4000), np.uint8)
        message = message_of(picture, "image", "UINT8")
        for size, code in ((4000 + (1 << 16), "INVALID_ARGUMENT"), (4001 + (1 << 16), "RESOURCE_EXHAUSTED")):
            message.parameters["x"].string_param = "y" * (size - message.ByteSize() - 20)
            message.parameters["x"].string_param += "y" * (size - message.ByteSize())
            assert message.ByteSize() == size
            async with asking(service) as client:
                assert (await client.refusal(client.call("ModelInfer", message)))[0] == code
            message.parameters.clear()

    with service_of(max_bytes=4000) as service:
        asyncio.run(ask(service))


def test_a_message_that_does_not_come_is_waited_for_as_long_as_a_body() -> None:
    async def ask(service: Service) -> None:
        async with asking(service) as client:
            refused = await client.refusal(client.never())
            assert refused == ("DEADLINE_EXCEEDED", "the message took too long to arrive: more than 0.05 s")
            assert (service.bodies.held, client.server._arriving) == (0, {})

    with service_of(body_time_ms=50) as service:
        asyncio.run(ask(service))


def test_while_a_message_is_on_its_way_it_holds_the_memory_of_the_largest_and_gives_way() -> None:
    async def ask(service: Service) -> None:
        async with asking(service) as client:
            silent = client.never()
            await until(lambda: service.bodies.held)
            assert service.bodies.held == 4000 + (1 << 16)
            (reservation,) = service.bodies.open
            reservation._until = 0.0  # it is old
            with service.bodies.reserve(service.bodies.total):
                code, words = await client.refusal(silent)
            assert (code, words[:14]) == ("DEADLINE_EXCEEDED", "it went slowly")
            assert await client.answer("ModelInfer", message_of(BATCH))

    with service_of(max_bytes=4000, held_bytes=1 << 20) as service:
        asyncio.run(ask(service))


def test_the_newest_of_those_that_wait_is_next_and_the_oldest_on_its_way_makes_room() -> None:
    async def ask(service: Service) -> None:
        async with asking(service) as client:
            server = client.server
            assert server._places == 1
            first, second = client.never(), None
            await until(lambda: len(server._arriving) == 1)
            second = client.never()
            await until(lambda: len(server._waiting) == 1)
            assert await client.answer("ModelInfer", message_of(BATCH))  # in half a second, as the third
            code, words = await client.refusal(first)
            assert (code, words[:14]) == ("DEADLINE_EXCEEDED", "it went slowly")
            second.cancel()
            await until(lambda: not server._waiting and not server._arriving)

    with service_of(max_bytes=4000, held_bytes=3 * (4000 + (1 << 16))) as service:
        asyncio.run(ask(service))


def test_who_has_no_place_in_time_is_told_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(service: Service) -> None:
        async with asking(service) as client:
            monkeypatch.setattr(client.server, "_has_place", lambda _: False)
            refused = await client.refusal(client.call("ModelInfer", message_of(BATCH)))
            assert refused == ("UNAVAILABLE", "too many messages are on their way; try again later")
            assert client.server._waiting == []

    with service_of(body_time_ms=60) as service:
        asyncio.run(ask(service))


@pytest.mark.parametrize(("held", "places"), [(4000, 1), (4 * 69536 - 1, 1), (4 * 69536, 2), (7 * 69536, 3)])
def test_messages_on_their_way_take_half_of_the_memory_at_most(held: int, places: int) -> None:
    async def look(service: Service) -> None:
        server = GrpcServer(service, Access())
        assert server._places == places
        loop = asyncio.get_running_loop()
        turns = [loop.create_future() for _ in range(places)]
        for turn in turns:
            assert server._has_place(100.0)
            server._arriving[turn] = 100.0
        assert not server._has_place(100.49)
        assert not any(turn.done() for turn in turns)
        assert server._has_place(100.5)
        assert [turn.done() for turn in turns] == [True, *[False] * (places - 1)]
        assert list(server._arriving) == turns[1:]
        v2_grpc._settle(turns[0])  # which it is

    with service_of(max_bytes=4000, held_bytes=held) as service:
        asyncio.run(look(service))


def test_a_call_that_is_cancelled_gives_its_work_back(caplog: pytest.LogCaptureFixture) -> None:
    runner = HeldRunner()

    async def ask(service: Service) -> None:
        async with asking(service) as client:
            call = client.call("ModelInfer", message_of(BATCH))
            await until(runner.has_begun.is_set)
            call.cancel()
            await until(lambda: not service.under_way)
            runner.go.set()
            await until(lambda: not service._jobs)
            assert service.bodies.held == service.work.held == 0

    with service_of(lambda: runner) as service, caplog.at_level(logging.INFO, "trt_hspan.serving"):
        asyncio.run(ask(service))
    assert events(caplog) == [("ModelInfer", "CANCELLED", "the client has left, or its deadline is over")]


def test_the_log_says_what_a_call_was(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(service: Service) -> int:
        async with asking(service) as client:
            data = await client.call("ModelInfer", message_of(BATCH))
            await until(lambda: not service.under_way)
            return len(data)

    with service_of() as service, caplog.at_level(logging.INFO, "trt_hspan.serving"):
        size = asyncio.run(ask(service))
    (record,) = caplog.records
    facts = record.event_fields  # type: ignore[attr-defined]
    assert (facts["via"], facts["status"], facts["bytes_out"], facts["why"]) == ("grpc", "OK", size, None)
    assert facts["peer"].startswith("ipv4:127.0.0.1:")


def test_a_port_that_is_taken_is_an_error() -> None:
    async def bind(service: Service) -> None:
        async with asking(service):
            first, second = GrpcServer(service, Access()), GrpcServer(service, Access())
            port = first.bind("127.0.0.1:0")
            assert port > 0
            with pytest.raises(RuntimeError):
                second.bind(f"127.0.0.1:{port}")

    with service_of() as service:
        asyncio.run(bind(service))


def test_every_limit_that_grpc_has_of_its_own_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of gRPC's defaults is meant for clients that are not trusted; a change here is one of docs/serving.md."""
    given: dict[str, Any] = {}
    made = grpc.aio.server

    def server(*, options: list[tuple[str, int]], maximum_concurrent_rpcs: int) -> Any:
        given.update(options, calls=maximum_concurrent_rpcs)
        return made(options=options, maximum_concurrent_rpcs=maximum_concurrent_rpcs)

    async def look() -> None:
        GrpcServer(service, Access())

    monkeypatch.setattr(grpc.aio, "server", server)
    limits = {"connections": 7, "queue_length": 3, "max_bytes": 4000}
    for seconds in (1, 9):
        with service_of(body_time_ms=1000 * seconds, work_time_ms=2000, **limits) as service:
            asyncio.run(look())
        assert given == {
            "calls": 4 * 3,
            "grpc.max_receive_message_length": 4000 + 2**16,
            "grpc.max_send_message_length": -1,
            "grpc.max_metadata_size": 16384,
            "grpc.max_allowed_incoming_connections": 7,
            "grpc.server_handshake_timeout_ms": 1000 * min(seconds, 5),
            "grpc.max_connection_idle_ms": 10_000,
            "grpc.max_concurrent_streams": 100,
            "grpc.max_connection_age_ms": 600_000,
            "grpc.max_connection_age_grace_ms": 62_000,
            "grpc.http2.bdp_probe": 0,
            "grpc.http2.lookahead_bytes": 65536,
            "grpc.compression_enabled_algorithms_bitset": 1,
            "grpc.keepalive_time_ms": 30_000,
            "grpc.keepalive_timeout_ms": 10_000,
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.max_ping_strikes": 4,
            "grpc.so_reuseport": 0,
        }
