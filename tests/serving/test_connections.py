"""HTTP connections within limits, on sockets of this process with an application of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
import uvicorn
from support.service_double import until
from uvicorn.server import ServerState

from trt_hspan.serving.connections import HEADER_BYTES, LimitedProtocol, _CountingConnection

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def connection() -> _CountingConnection:
    made = _CountingConnection(h11.SERVER, HEADER_BYTES)
    made.receive_data(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
    assert isinstance(made.next_event(), h11.Request)
    return made


def pieces_taken(made: _CountingConnection, size: int, most: int) -> int:
    for count in range(most):
        made.receive_data(f"{size:x}\r\n{size * 'a'}\r\n".encode())
        try:
            assert isinstance(made.next_event(), h11.Data)
        except h11.RemoteProtocolError:
            assert made.failure == "a body in too many small pieces"
            return count
    return most


@pytest.mark.parametrize(("size", "taken"), [(1, 1024), (255, 1024), (256, 1100)])
def test_a_body_of_many_pieces_has_pieces_of_some_size(size: int, taken: int) -> None:
    assert pieces_taken(connection(), size, 1100) == taken


def test_pieces_are_counted_anew_for_each_request() -> None:
    made = connection()
    assert pieces_taken(made, 1, 1000) == 1000
    made.receive_data(b"0\r\n\r\n")
    assert isinstance(made.next_event(), h11.EndOfMessage)
    made.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    made.send(h11.EndOfMessage())
    made.start_next_cycle()
    made.receive_data(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
    assert isinstance(made.next_event(), h11.Request)
    assert pieces_taken(made, 1, 1000) == 1000


def test_a_header_may_be_of_32_kibibytes() -> None:
    made = _CountingConnection(h11.SERVER, HEADER_BYTES)
    start = b"GET / HTTP/1.1\r\nhost: "
    made.receive_data(start + bytes(b"a" * (32 * 1024 - len(start))))
    assert made.next_event() is h11.NEED_DATA
    made.receive_data(b"a")
    with pytest.raises(h11.RemoteProtocolError):
        made.next_event()
    assert "too long" in made.failure


def test_what_is_sent_is_handed_on_without_a_copy() -> None:
    made = _CountingConnection(h11.SERVER, HEADER_BYTES)
    made.receive_data(GET)
    made.next_event()
    head = made.send(
        h11.Response(status_code=200, headers=[("transfer-encoding", "chunked"), ("connection", "close")])
    )
    assert head.startswith(b"HTTP/1.1 200 ")
    assert made.send(h11.Data(data=b"abc")) == b"3\r\nabc\r\n"
    assert made.send(h11.Data(data=b"")) == b""
    assert made.send(h11.EndOfMessage()) == b"0\r\n\r\n"
    assert made.send(h11.ConnectionClosed()) is None
    made = _CountingConnection(h11.SERVER, HEADER_BYTES)
    made.receive_data(GET)
    made.next_event()
    made.send(h11.Response(status_code=200, headers=[("content-length", "3")]))
    piece = memoryview(b"abc")
    assert made.send(h11.Data(data=piece)) is piece  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["content-length: 3", "transfer-encoding: chunked"])
def test_a_body_has_one_length(first: str) -> None:
    made = _CountingConnection(h11.SERVER, HEADER_BYTES)
    lengths = sorted(["content-length: 3", "transfer-encoding: chunked"], key=lambda line: line != first)
    made.receive_data(f"POST / HTTP/1.1\r\nhost: a\r\n{lengths[0]}\r\n{lengths[1]}\r\n\r\n".encode())
    with pytest.raises(h11.RemoteProtocolError):
        made.next_event()
    assert made.failure == "both Transfer-Encoding and Content-Length"
    made = _CountingConnection(h11.SERVER, HEADER_BYTES)
    made.receive_data(f"POST / HTTP/1.1\r\nhost: a\r\n{first}\r\n\r\n".encode())
    assert isinstance(made.next_event(), h11.Request)


class Server:
    """An HTTP server on a free port whose protocols are at hand, in the order in which they were opened."""

    def __init__(self, port: int, protocols: list[LimitedProtocol]) -> None:
        self.port, self.protocols = port, protocols
        self._writers: list[asyncio.StreamWriter] = []

    async def connected(self, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client's connection that the server has."""
        count = len(self.protocols)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        writer.write(sent)
        await until(lambda: len(self.protocols) > count and hasattr(self.protocols[-1], "transport"))
        return reader, writer

    async def closed(self) -> None:
        for writer in self._writers:
            writer.close()
        await until(lambda: all(protocol.transport.is_closing() for protocol in self.protocols))


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answers without reading a body; /slow after a while, /large with 16 MiB."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.15)
    size = (16 << 20) if scope["path"] == "/large" else 5
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]}
    )
    for start in range(0, size, 1 << 18):
        piece = b"hello" if size == 5 else bytes(min(1 << 18, size - start))
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def served(*, most: int = 2, seconds: float = 20.0) -> AsyncIterator[Server]:
    protocols: list[LimitedProtocol] = []

    class Protocol(LimitedProtocol):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            protocols.append(self)

    Protocol.most, Protocol.seconds = most, seconds
    config = uvicorn.Config(
        hello, ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False
    )
    config.load()
    state = ServerState()
    listener = await asyncio.get_running_loop().create_server(
        lambda: Protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    server = Server(listener.sockets[0].getsockname()[1], protocols)
    try:
        yield server
    finally:
        await server.closed()
        listener.close()
        await asyncio.sleep(0.002)
        assert not LimitedProtocol._refused
        assert not any(protocol._timers for protocol in protocols)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 20))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def refusal(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Of a connection's last answer, after which it ends."""
    head, _, body = (await reader.read()).rpartition(b"\r\n\r\n")
    head = head[head.rindex(b"HTTP/1.1 ") :]
    assert f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close".encode() in head
    return int(head.split()[1]), json.loads(body)["error"]


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return await reader.readexactly(5)


def left(protocol: LimitedProtocol, timer: str) -> float:
    """Seconds until it fires."""
    return protocol._timers[timer].when() - asyncio.get_running_loop().time()


@in_loop
async def test_a_connection_more_than_may_be_open_is_refused() -> None:
    async with served(most=2) as server:
        readers = [(await server.connected())[0] for _ in range(3)]
        assert await refusal(readers[2]) == (503, "2 connections are open; try again later")
        assert 1 < left(server.protocols[2], "lingering") <= 2
        assert "header" not in server.protocols[2]._timers
        server.protocols[2].data_received(GET)  # of no use any more
        reader, writer = await server.connected()
        assert (await refusal(reader))[0] == 503
        assert len(LimitedProtocol._refused) == 2
        reader, _ = await server.connected()  # of those that may still be sending, there are enough
        assert (await refusal(reader))[0] == 503
        assert server.protocols[-1].transport.is_closing()
        assert len(LimitedProtocol._refused) == 2
        writer.close()
        await until(lambda: len(LimitedProtocol._refused) == 1)


@pytest.mark.parametrize(("idle", "gives_way"), [(0.3, False), (0.6, True)])
def test_a_connection_that_waits_for_a_request_makes_room(idle: float, gives_way: bool) -> None:
    async def test() -> None:
        async with served(most=2) as server:
            busy, _ = await server.connected(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            waiting, _ = await server.connected()
            await until(lambda: not server.protocols[0]._is_idle)
            for protocol in server.protocols:
                protocol._idle_since -= idle
            reader, _ = await server.connected(GET)
            if gives_way:
                assert await answer(reader) == b"hello"
                assert await waiting.read() == b""
            else:
                assert (await refusal(reader))[0] == 503
            assert await answer(busy) == b"hello"

    in_loop(test)()


@in_loop
async def test_a_connection_is_idle_from_its_last_answer_on() -> None:
    async with served(most=1) as server:
        reader, _ = await server.connected()
        (protocol,) = server.protocols
        protocol._idle_since -= 60
        protocol.transport.get_extra_info("socket")
        server._writers[0].write(GET)
        assert await answer(reader) == b"hello"
        assert protocol._is_idle
        other, _ = await server.connected(GET)
        assert (await refusal(other))[0] == 503


@pytest.mark.parametrize("sent", [b"", GET[:-2], GET[:5]], ids=["nothing", "half", "half of the next"])
def test_a_header_has_to_arrive_in_time(sent: bytes) -> None:
    async def test() -> None:
        async with served(seconds=0.04) as server:
            is_next = sent == GET[:5]
            reader, writer = await server.connected(GET if is_next else sent)
            if is_next:
                assert await answer(reader) == b"hello"
                writer.write(sent)
            assert await refusal(reader) == (408, "the request's header took too long to arrive")

    in_loop(test)()


@in_loop
async def test_an_answer_may_take_longer_than_a_header() -> None:
    async with served(seconds=0.05) as server:
        reader, writer = await server.connected()
        for _ in range(2):
            writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await answer(reader) == b"hello"


@in_loop
async def test_what_is_no_http_is_refused_with_the_reason() -> None:
    async with served() as server:
        for sent, why in (
            (b"what?\r\n\r\n", "illegal request line"),
            (
                GET[:-2] + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
                "both Transfer-Encoding and",
            ),
        ):
            reader, writer = await server.connected(sent)
            status, message = await refusal(reader)
            assert status == 400
            assert message.startswith(f"no HTTP that can be read: {why}")
            writer.close()
            await until(lambda: not LimitedProtocol._refused)


def test_a_body_that_goes_wrong_after_the_answer_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with served() as server:
            reader, writer = await server.connected(
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            assert await answer(reader) == b"hello"
            writer.write(b"no chunk\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""

    with caplog.at_level(logging.WARNING, "trt_hspan.serving"):
        in_loop(test)()
    (record,) = caplog.records
    facts = record.event_fields  # type: ignore[attr-defined]
    assert (facts["status"], facts["via"], facts["peer"]) == ("0", "http", "127.0.0.1")
    assert "chunk" in facts["why"]


def test_the_log_says_who_was_refused_and_why(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with served() as server:
            reader, _ = await server.connected(b"what?\r\n\r\n")
            await refusal(reader)

    with caplog.at_level(logging.DEBUG):
        in_loop(test)()
    (record,) = [record for record in caplog.records if record.name.startswith(("trt_hspan", "uvicorn"))]
    facts = record.event_fields  # type: ignore[attr-defined]
    assert (record.levelno, facts["status"], facts["peer"]) == (logging.WARNING, "400", "127.0.0.1")
    assert facts["why"].startswith("no HTTP that can be read: ")
    assert len(facts["why"]) <= 200


@in_loop
async def test_what_is_left_of_a_refused_body_is_dropped_for_a_while() -> None:
    """So that the client gets to read the refusal."""
    async with served() as server:
        reader, writer = await server.connected(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234"
        )
        assert await answer(reader) == b"hello"
        (protocol,) = server.protocols
        await until(lambda: "lingering" in protocol._timers)
        assert 1 < left(protocol, "lingering") <= 2
        writer.write(b"56789")
        await until(lambda: "lingering" not in protocol._timers)
        writer.write(GET)
        assert await answer(reader) == b"hello"
        assert "lingering" not in protocol._timers


def test_a_client_that_does_not_read_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with served(seconds=0.1) as server:
            reader, _ = await server.connected(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await until(server.protocols[0].transport.is_closing)

    with caplog.at_level(logging.WARNING, "trt_hspan.serving"):
        in_loop(test)()
    (record,) = caplog.records
    assert record.event_fields["why"] == "it does not read its answer"  # type: ignore[attr-defined]


@in_loop
async def test_a_client_that_reads_slowly_gets_all() -> None:
    async with served(seconds=0.2) as server:
        reader, _ = await server.connected(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        transport = reader._transport  # type: ignore[attr-defined]
        for _ in range(4):
            transport.pause_reading()
            await until(lambda: "writing" in server.protocols[0]._timers)
            assert 0 < left(server.protocols[0], "writing") <= 0.2
            await asyncio.sleep(0.1)
            transport.resume_reading()
            await reader.readexactly(2 << 20)
        await reader.readexactly(8 << 20)


@in_loop
async def test_little_of_an_answer_waits_in_the_system() -> None:
    async with served() as server:
        await server.connected()
        sock = server.protocols[0].transport.get_extra_info("socket")
        most = int(Path("/proc/sys/net/core/wmem_max").read_text())
        # Linux allows for its own bookkeeping by doubling (socket(7)).
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * min(1 << 19, most)
