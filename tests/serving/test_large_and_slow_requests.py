"""Files and requests that are too large, too slow or hostile: a real server refuses them at once."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from support.serve_process import ServeProcess
from support.served_pictures import hostile_files, png, png_bomb
from support.served_requests import (
    CLIENTS,
    IMAGE,
    RAW,
    ask,
    error_of,
    infer_over_http,
    triton_client,
)
from tritonclient.utils import InferenceServerException


@pytest.mark.parametrize("kind", hostile_files())
def test_hostile_file_is_refused_in_one_line(server: ServeProcess, kind: str) -> None:
    started = time.monotonic()
    status, body, _ = ask(server, "POST", "/upscale", hostile_files()[kind])
    assert status == 400, body[:200]
    assert error_of(body)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("protocol", CLIENTS)
def test_too_many_pixels_are_refused_by_the_header(server: ServeProcess, protocol: str) -> None:
    for data in (png_bomb(1000, 1000), png(200, 101)):
        values = np.frombuffer(data, np.uint8)[None]
        with triton_client(server, protocol) as (module, client):
            tensor = module.InferInput("image", list(values.shape), "UINT8")
            tensor.set_data_from_numpy(values)
            with pytest.raises(InferenceServerException, match="20000") as refused:
                client.infer(IMAGE, [tensor])
        assert refused.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_too_many_bytes_are_refused_before_they_are_sent(server: ServeProcess) -> None:
    host, _, port = server.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000000\r\n\r\n12345"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_too_many_bytes_in_chunks_are_refused_when_they_are_too_many(server: ServeProcess) -> None:
    host, _, port = server.http_address.rpartition(":")
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused while we are sending
            for _ in range(40):
                connection.sendall(chunk)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_too_many_bytes_over_grpc_are_refused(server: ServeProcess) -> None:
    values = np.zeros((1, 3_000_000), np.uint8)
    with triton_client(server, "grpc") as (module, client):
        tensor = module.InferInput("image", list(values.shape), "UINT8")
        tensor.set_data_from_numpy(values)
        with pytest.raises(InferenceServerException) as refused:
            client.infer(IMAGE, [tensor])
    assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_compressed_bomb_is_refused(server: ServeProcess) -> None:
    bomb = gzip.compress(bytes(100_000_000), 1)
    assert len(bomb) < 2_000_000
    started = time.monotonic()
    status, body, _ = ask(server, "POST", "/upscale", bomb, {"Content-Encoding": "gzip"})
    assert (status, time.monotonic() - started < 5) == (413, True), body


def test_client_that_does_not_finish_gets_an_error(server: ServeProcess) -> None:
    host, _, port = server.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n12345")
        started = time.monotonic()
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert 1.0 < time.monotonic() - started < 10


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: b"], ids=["nothing", "half a header"]
)
def test_client_that_never_finishes_its_header_is_let_go(server: ServeProcess, sent: bytes) -> None:
    host, _, port = server.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
        assert 1.0 < time.monotonic() - started < 10
    assert answer.startswith(b"HTTP/1.1 408 ")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert "too long" in error_of(body)


def test_grpc_client_that_never_sends_its_message_gets_an_error(server: ServeProcess) -> None:
    """As many as the door takes at a time; afterwards there is room again."""
    done = threading.Event()

    def never() -> Iterator[bytes]:
        done.wait(30)
        yield from ()

    batch = np.zeros((1, 3, 8, 8), np.float32)
    with grpc.insecure_channel(server.grpc_address) as channel:
        silent = [
            channel.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(never())
            for _ in range(70)
        ]
        # Those that wait take no place of the other door.
        assert infer_over_http(server, RAW, batch, "input", "FP32")[0] == 200
        codes = {call.exception(timeout=30).code().name for call in silent}
        assert codes <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
        assert "DEADLINE_EXCEEDED" in codes
        done.set()
    with triton_client(server, "grpc") as (module, client):
        tensor = module.InferInput("input", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        assert client.infer(RAW, [tensor]).as_numpy("output").shape == (1, 3, 32, 32)
