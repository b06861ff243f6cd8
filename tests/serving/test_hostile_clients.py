"""Clients that mean harm, with sockets of their own: what they cost is theirs, and the next request is answered."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Iterator

import grpc
import numpy as np
import psutil
import pytest
from support.serve_process import ServeProcess
from support.served_pictures import png, png_bomb
from support.served_requests import IMAGE, RAW, ask, error_of, infer_over_http, scraped, until
from tritonclient.grpc import service_pb2

INFER = f"/v2/models/{RAW}/infer"
SERVICE = "/inference.GRPCInferenceService/"
SMALL = np.full((1, 3, 8, 8), 0.5, np.float32)


@contextlib.contextmanager
def connected(server: ServeProcess) -> Iterator[socket.socket]:
    host, _, port = server.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def head(path: str, *lines: str, method: str = "POST", host: str = "localhost") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


def answer(connection: socket.socket) -> bytes:
    """What comes until the other side closes or is silent for a moment."""
    parts = []
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        while part := connection.recv(1 << 16):
            parts.append(part)
            connection.settimeout(0.5)
    return b"".join(parts)


def require_alive(server: ServeProcess) -> None:
    """It answers over both protocols, and holds nothing."""
    assert infer_over_http(server, RAW, SMALL, "input", "FP32")[0] == 200
    until(
        lambda: scraped(server),
        lambda text: all(
            f"trt_hspan_{name} 0.0" in text for name in ("in_flight", "held_bytes", "work_bytes")
        ),
    )


def memory(server: ServeProcess) -> int:
    return sum(process.memory_info().rss for process in server.everything())


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"a":' * 30_000, b'{"inputs":' + b"[" * 100_000, b"0," * 900_000, b"7" * 200_000],
    ids=["brackets", "objects", "inputs", "commas", "digits"],
)
def test_json_that_is_deep_or_long_is_refused(server: ServeProcess, body: bytes) -> None:
    processes = {process.pid for process in server.everything()}
    for _ in range(6):
        status, text, _ = ask(server, "POST", INFER, body)
        assert status == 400, text
        assert error_of(text)
    require_alive(server)
    assert processes <= {process.pid for process in server.everything()}


@pytest.mark.parametrize(
    "shape", [[1, 3, 4611686018427387904, 4], [1, 3, -8, -8], [1 << 62] * 4, [1, 3, 8, 9], [1, 3, 8]]
)
def test_shape_without_its_data_is_refused_over_both_protocols(
    server: ServeProcess, shape: list[int]
) -> None:
    body = json.dumps(
        {"inputs": [{"name": "input", "datatype": "FP32", "shape": shape, "data": []}]}
    ).encode()
    assert ask(server, "POST", INFER, body)[0] == 400
    message = service_pb2.ModelInferRequest(model_name=RAW)
    message.inputs.add(name="input", datatype="FP32", shape=shape)
    message.raw_input_contents.append(b"")
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = channel.unary_unary(f"{SERVICE}ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            call(message.SerializeToString(), timeout=20)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff" * 100, timeout=20)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    require_alive(server)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"/v2/repository/models/{RAW}/load", b'{"parameters": {"config": "{}"}}'),
        (f"/v2/repository/models/{RAW}/unload", b"{}"),
        (
            "/v2/systemsharedmemory/region/a/register",
            b'{"key": "/a", "key": "/b", "offset": 0, "byte_size": 9}',
        ),
        ("/v2/cudasharedmemory/region/a/register", b"{}"),
        ("/v2/logging", b'{"log_file_1": "/tmp/x"}'),
        ("/v2/trace/setting", b"{}"),
        (f"/v2/models/{RAW}/generate", b"{}"),
        ("/v2/models/../../etc/passwd/infer", b"{}"),
        (f"/v2/models/{RAW}%2f..%2f{IMAGE}/infer", b"{}"),
    ],
)
def test_there_is_no_way_to_change_the_server(server: ServeProcess, path: str, body: bytes) -> None:
    assert ask(server, "POST", path, body)[0] == 404
    names = [
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryRegister",
        "CudaSharedMemoryRegister",
    ]
    with grpc.insecure_channel(server.grpc_address) as channel:
        for name in [*names, "LogSettings", "TraceSetting"]:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"{SERVICE}{name}")(b"", timeout=20)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED, name


def test_only_the_two_ports_listen_in_all_of_its_processes(server: ServeProcess) -> None:
    ports = {
        connection.laddr.port
        for process in server.everything()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports == set(server.ports)
    files = {
        file.path
        for process in server.everything()
        for file in process.open_files()
        if file.mode != "r" and not file.path.startswith("/dev")
    }
    assert not files


@pytest.mark.parametrize(
    ("lines", "host", "status"),
    [
        ([], "evil.example", 403),
        ([], "localhost.evil.example", 403),
        ([], "127.0.0.1.nip.io:8000", 403),
        ([], "localhost@evil.example", 403),
        ([], "[::1", 403),
        ([], "", 403),
        (["Origin: https://evil.example"], "localhost", 403),
        (["Origin: null"], "localhost", 403),
        (["Origin: http://localhost.evil.example"], "localhost", 403),
        (["Origin: http://127.0.0.1:9"], "127.0.0.1", 200),
        ([], "LOCALHOST:1", 200),
        ([], "[::1]:80", 200),
    ],
)
def test_page_of_another_site_is_refused(
    server: ServeProcess, lines: list[str], host: str, status: int
) -> None:
    with connected(server) as connection:
        connection.sendall(head("/v2", *lines, method="GET", host=host))
        assert answer(connection).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: nonsense\r\n\r\nabc",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0",
        b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n" * 10 + b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        bytes(1000),
    ],
    ids=range(14),
)
def test_malformed_http_is_refused_with_one_line_of_the_log(server: ServeProcess, data: bytes) -> None:
    seen, errors = len(server.events), server.stderr
    with connected(server) as connection:
        connection.sendall(data)
        assert answer(connection).startswith(b"HTTP/1.1 4")
    until(lambda: [e for e in server.events[seen:] if e.get("why")], bool)
    assert server.stderr == errors
    require_alive(server)


@pytest.mark.parametrize(
    "chunk", [b"1\r\nx\r\n", b"10000\r\n" + bytes(1 << 16) + b"\r\n"], ids=["tiny", "large"]
)
def test_body_without_end_is_cut_off(server: ServeProcess, chunk: bytes) -> None:
    started, sent = time.monotonic(), 0
    with connected(server) as connection:
        connection.sendall(head("/upscale", "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 20:
                connection.sendall(chunk * 100)
                sent += len(chunk) * 100
    assert time.monotonic() - started < 15
    require_alive(server)


def test_connections_that_announce_much_and_send_nothing_take_nothing(server: ServeProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(connected(server))
            connection.sendall(head("/upscale", "Content-Length: 2000000") + b"abc")
        for _ in range(20):
            assert infer_over_http(server, RAW, SMALL, "input", "FP32")[0] == 200


def test_more_connections_than_are_allowed_do_not_keep_others_out(server: ServeProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(130):  # of 100; none of them says anything
            stack.enter_context(connected(server))
        # Those that have been idle for half a second give way, one for each that comes.
        until(lambda: infer_over_http(server, RAW, SMALL, "input", "FP32")[0], lambda status: status == 200)
    require_alive(server)


def test_silent_connections_do_not_keep_grpc_clients_out(server: ServeProcess) -> None:
    host, _, port = server.grpc_address.rpartition(":")

    def code() -> str:
        with grpc.insecure_channel(server.grpc_address) as channel:
            call = channel.unary_unary(f"{SERVICE}ServerLive").future(b"", timeout=5)
            failure = call.exception()
            return "OK" if failure is None else str(failure.code().name)

    with contextlib.ExitStack() as stack:
        for _ in range(130):  # of 100
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
        assert code() == "UNAVAILABLE"
        until(code, lambda name: name == "OK", 20)  # those that do not begin with HTTP/2 are let go
    require_alive(server)


@pytest.mark.parametrize("size", [3_000_000, 400_000_000])
def test_what_unpacks_to_too_much_is_refused(server: ServeProcess, size: int) -> None:
    body = gzip.compress(bytes(size), 9)
    before = memory(server)
    started = time.monotonic()
    status, text, _ = ask(server, "POST", "/upscale", body, {"Content-Encoding": "gzip"})
    assert (status, time.monotonic() - started < 5) == (413, True), text
    assert memory(server) - before < 50e6
    two = gzip.compress(b"picture") * 2
    refused = ("br", b"x", 415), ("gzip", b"no gzip", 400), ("deflate", b"", 400), ("gzip", two, 400)
    for encoding, data, expected in refused:
        assert ask(server, "POST", "/upscale", data or b"\x78", {"Content-Encoding": encoding})[0] == expected


def test_compressed_message_is_refused_over_grpc(server: ServeProcess) -> None:
    before = memory(server)
    with grpc.insecure_channel(server.grpc_address, compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"{SERVICE}ModelInfer")(bytes(150_000_000), timeout=60)
        assert refused.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert memory(server) - before < 100e6
    require_alive(server)


def test_messages_that_never_end_hold_little_memory_and_keep_nobody_out(server: ServeProcess) -> None:
    """Fifty calls on sockets of their own, each of which sends most of a message and waits."""
    before, done = memory(server), threading.Event()

    def most_of_a_message() -> Iterator[bytes]:
        done.wait(60)
        yield b""

    frame = _data_frames(stream=1, message=1_900_000)
    with contextlib.ExitStack() as stack:
        host, _, port = server.grpc_address.rpartition(":")
        for _ in range(50):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError, OSError):
                connection.sendall(_opening(f"{SERVICE}ModelInfer") + frame)
        grown = memory(server) - before
        started = time.monotonic()
        with grpc.insecure_channel(server.grpc_address) as channel:
            live = channel.unary_unary(f"{SERVICE}ServerLive")(b"", timeout=10)
            assert service_pb2.ServerLiveResponse.FromString(live).live
        assert time.monotonic() - started < 5
        assert infer_over_http(server, RAW, SMALL, "input", "FP32")[0] == 200
        assert grown < 60e6, grown
    done.set()
    require_alive(server)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def _opening(path: str) -> bytes:
    """HTTP/2's preface, settings and the headers of a gRPC call, without compression (RFC 7540, RFC 7541)."""

    def literal(name: str, value: str) -> bytes:
        words = [word.encode() for word in (name, value)]
        return b"\x00" + b"".join(bytes([len(word)]) + word for word in words)

    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    block = b"".join(literal(*field) for field in fields)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"") + _frame(1, 4, 1, block)


def _data_frames(stream: int, message: int) -> bytes:
    """The first window's worth of a message that announces so many bytes."""
    data = b"\x00" + struct.pack("!I", message) + bytes(65_000)
    return b"".join(_frame(0, 0, stream, data[at : at + 16_000]) for at in range(0, len(data), 16_000))


def test_large_picture_whose_client_left_keeps_nobody_waiting(server: ServeProcess) -> None:
    large = png(140, 140)
    with connected(server) as connection:
        connection.sendall(head("/upscale", f"Content-Length: {len(large)}") + large)
        until(lambda: scraped(server), lambda text: "trt_hspan_queued_tiles 0.0" not in text, 20)
    until(lambda: scraped(server), lambda text: "trt_hspan_queued_tiles 0.0" in text, 3)
    require_alive(server)


def test_grpc_call_that_is_cancelled_gives_its_work_back(server: ServeProcess) -> None:
    batch = np.random.default_rng(0).random((6, 3, 56, 56), np.float32)
    message = service_pb2.ModelInferRequest(model_name=RAW)
    message.inputs.add(name="input", datatype="FP32", shape=batch.shape)
    message.raw_input_contents.append(batch.tobytes())
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = channel.unary_unary(f"{SERVICE}ModelInfer")
        started = time.monotonic()
        call(message.SerializeToString())
        seconds = time.monotonic() - started
        future = call.future(message.SerializeToString())
        until(lambda: scraped(server), lambda text: "trt_hspan_in_flight 0.0" not in text, 20)
        future.cancel()
        until(lambda: scraped(server), lambda text: "trt_hspan_in_flight 0.0" in text, 10)
        with pytest.raises(grpc.RpcError) as late:
            call(message.SerializeToString(), timeout=seconds / 4)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    require_alive(server)


def test_small_picture_beside_a_large_one_is_answered_first(server: ServeProcess, picture: bytes) -> None:
    finished: list[str] = []

    def send(name: str, data: bytes) -> None:
        assert ask(server, "POST", "/upscale", data)[0] == 200
        finished.append(name)

    large = threading.Thread(target=send, args=("large", png(140, 140)))
    large.start()
    until(lambda: scraped(server), lambda text: "trt_hspan_queued_tiles 0.0" not in text, 20)
    send("small", picture)
    assert finished == ["small"]
    large.join()


def test_client_that_does_not_read_its_answer_is_let_go(server: ServeProcess) -> None:
    batch = np.zeros((4, 3, 60, 60), np.float32)  # an answer of 2.8 MB
    body = json.dumps(
        {
            "inputs": [
                {
                    "name": "input",
                    "datatype": "FP32",
                    "shape": list(batch.shape),
                    "parameters": {"binary_data_size": batch.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    lines = [f"Inference-Header-Content-Length: {len(body)}", f"Content-Length: {len(body) + batch.nbytes}"]
    seen = len(server.events)
    host, _, port = server.http_address.rpartition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(head(INFER, *lines) + body + batch.tobytes())
        event = server.wait_for("connection", after=seen, timeout=30)
    assert "does not read" in event["why"]
    require_alive(server)


def test_bomb_costs_no_decoder_and_progress_says_that_it_failed(server: ServeProcess) -> None:
    name = "0b0e9a39-9d0c-4a4f-8f0b-6f2f1f6a0c11"
    assert ask(server, "POST", "/upscale", png_bomb(), {"X-Request-ID": name})[0] == 400
    status, body, _ = ask(server, "GET", f"/progress/{name}")
    assert (status, json.loads(body)["state"]) == (200, "failed")
    assert ask(server, "POST", "/upscale", png_bomb(), {"X-Request-ID": "../../x"})[0] == 400
    assert ask(server, "GET", "/progress/nobody-knows-me")[0] == 404


def test_progress_counts_tiles(server: ServeProcess) -> None:
    name = "7c1f4f5e-0000-4a4f-8f0b-6f2f1f6a0c11"
    assert ask(server, "POST", "/upscale", png(100, 90), {"X-Request-ID": name})[0] == 200
    with urllib.request.urlopen(f"{server.http}/progress/{name}", timeout=10) as response:
        progress = json.load(response)
    assert progress["state"] == "done"
    assert progress["tiles_done"] == progress["tiles"] > 4
