"""A real server, asked by independent clients: what it answers, what it refuses, what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from support.serve_process import ServeProcess
from support.served_pictures import hostile_files, pixels_of, png, png_bomb
from tritonclient.utils import InferenceServerException

from trt_hspan.runtime.pictures import decode_image
from trt_hspan.runtime.runner import Runner
from trt_hspan.runtime.upscaling import upscale_array

RAW, IMAGE = "hspan-tiny-x4", "hspan-tiny-x4_image"
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@contextmanager
def triton_client(server: ServeProcess, protocol: str) -> Iterator[tuple[Any, Any]]:
    module = CLIENTS[protocol]
    address = server.http_address if protocol == "http" else server.grpc_address
    client = module.InferenceServerClient(address)
    try:
        yield module, client
    finally:
        client.close()


def ask(
    server: ServeProcess, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """One request of the standard library's client."""
    host, _, port = server.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request(method, path, body=body or None, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()


def infer_over_http(server: ServeProcess, model: str, tensor: np.ndarray, name: str, kind: str) -> Any:
    """The KServe v2 protocol with binary tensors, written from its description alone."""
    data = tensor.tobytes()
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(tensor.shape),
                    "datatype": kind,
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    status, body, back = ask(server, "POST", f"/v2/models/{model}/infer", header + data, headers)
    if status != 200:
        return status, json.loads(body)["error"]
    length = int(back["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:length])["outputs"]
    dtype = {"FP32": np.float32, "UINT8": np.uint8}[output["datatype"]]
    return status, np.frombuffer(body[length:], dtype).reshape(output["shape"])


def error_of(body: bytes) -> str:
    message = json.loads(body)["error"]
    assert "\n" not in message
    return str(message)


class _UpTo48(Runner):
    """The network as the server's picture model sees it: tiles of at most 48x48."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.where, self.name, self.precision = runner.where, runner.name, runner.precision
        self.emulated, self.scale = runner.emulated, runner.scale

    @property
    def min_shape(self) -> tuple[int | None, int | None, int | None, int | None]:
        return (1, 3, 8, 8)

    @property
    def max_shape(self) -> tuple[int | None, int | None, int | None, int | None]:
        return (4, 3, 48, 48)

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        return 0

    def infer(self, batch: np.ndarray) -> np.ndarray:
        return self._runner.run(batch)


def upscaled_reference(runner: Runner, data: bytes) -> np.ndarray:
    return upscale_array(_UpTo48(runner), decode_image(data).pixels)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_tensor_is_what_the_bare_runner_gives(server: ServeProcess, runner: Runner, protocol: str) -> None:
    batch = np.random.default_rng(1).random((2, 3, 12, 20), np.float32)
    with triton_client(server, protocol) as (module, client):
        tensor = module.InferInput("input", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        output = client.infer(RAW, [tensor]).as_numpy("output")
    # The same code on the same processor, in another process: not one bit differs.
    np.testing.assert_array_equal(output, runner.run(batch))


@pytest.mark.parametrize("protocol", CLIENTS)
def test_picture_is_what_the_library_makes_of_it(
    server: ServeProcess, runner: Runner, picture: bytes, protocol: str
) -> None:
    values = np.frombuffer(picture, np.uint8)[None]
    with triton_client(server, protocol) as (module, client):
        tensor = module.InferInput("image", list(values.shape), "UINT8")
        tensor.set_data_from_numpy(values)
        result = client.infer(IMAGE, [tensor]).as_numpy("upscaled")
    np.testing.assert_array_equal(pixels_of(result.tobytes()), upscaled_reference(runner, picture))


def test_client_written_from_the_protocol_alone_is_understood(server: ServeProcess, runner: Runner) -> None:
    batch = np.random.default_rng(2).random((1, 3, 9, 11), np.float32)
    status, output = infer_over_http(server, RAW, batch, "input", "FP32")
    assert status == 200
    np.testing.assert_array_equal(output, runner.run(batch))


def test_picture_larger_than_the_tile_comes_in_tiles(server: ServeProcess, runner: Runner) -> None:
    large = png(90, 40)
    before = statistics(server, RAW)
    status, body, headers = ask(server, "POST", "/upscale", large)
    assert (status, headers["Content-Type"]) == (200, "image/png")
    np.testing.assert_array_equal(pixels_of(body), upscaled_reference(runner, large))
    until(
        lambda: statistics(server, RAW), lambda now: now["inference_count"] - before["inference_count"] >= 2
    )


@pytest.mark.parametrize(("kind", "start"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF"), ("tiff", b"II*")])
def test_result_comes_in_the_format_asked_for(
    server: ServeProcess, picture: bytes, kind: str, start: bytes
) -> None:
    status, body, headers = ask(server, "POST", f"/upscale?format={kind}", picture)
    assert (status, headers["Content-Type"]) == (200, f"image/{kind}")
    assert body.startswith(start)
    assert pixels_of(body).shape == (80, 120, 3)


def test_raw_binary_request_needs_no_json(server: ServeProcess, picture: bytes) -> None:
    """What docs/serving.md shows for curl on a server without our front door."""
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    status, body, back = ask(server, "POST", f"/v2/models/{IMAGE}/infer", picture, headers)
    assert status == 200
    assert pixels_of(body[int(back["Inference-Header-Content-Length"]) :]).shape == (80, 120, 3)


def test_compressed_request_and_response_are_understood(server: ServeProcess, picture: bytes) -> None:
    status, body, _ = ask(server, "POST", "/upscale", gzip.compress(picture), {"Content-Encoding": "gzip"})
    assert status == 200
    assert pixels_of(body).shape == (80, 120, 3)
    values = np.frombuffer(picture, np.uint8)[None]
    with triton_client(server, "http") as (module, client):
        tensor = module.InferInput("image", list(values.shape), "UINT8")
        tensor.set_data_from_numpy(values)
        result = client.infer(
            IMAGE, [tensor], request_compression_algorithm="gzip", response_compression_algorithm="gzip"
        )
    assert pixels_of(result.as_numpy("upscaled").tobytes()).shape == (80, 120, 3)


def until(ask_again: Callable[[], Any], enough: Callable[[Any], bool], seconds: float = 5) -> Any:
    """What it says once that is enough."""
    deadline = time.monotonic() + seconds
    while not enough(found := ask_again()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def statistics(server: ServeProcess, model: str) -> dict[str, int]:
    with triton_client(server, "http") as (_, client):
        (found,) = client.get_inference_statistics(model)["model_stats"]
    return {name: int(found.get(name, 0)) for name in ("inference_count", "execution_count")}


def test_requests_at_the_same_time_are_batched(server: ServeProcess) -> None:
    batch = np.random.default_rng(3).random((1, 3, 40, 40), np.float32)  # long enough for a queue to form
    before, metrics_before = statistics(server, RAW), executions_in_metrics(server)

    async def flood() -> None:
        import tritonclient.grpc.aio as module

        async with module.InferenceServerClient(server.grpc_address) as client:
            tensor = module.InferInput("input", list(batch.shape), "FP32")
            tensor.set_data_from_numpy(batch)
            await asyncio.gather(*(client.infer(RAW, [tensor]) for _ in range(12)))

    asyncio.run(flood())
    # Triton answers first and counts a moment later.
    after = until(
        lambda: statistics(server, RAW), lambda now: now["inference_count"] >= before["inference_count"] + 12
    )
    metrics_after = until(lambda: executions_in_metrics(server), lambda now: now > metrics_before)
    requests = after["inference_count"] - before["inference_count"]
    executions = after["execution_count"] - before["execution_count"]
    assert requests == 12
    assert executions < requests, "no two requests ran together"
    assert metrics_after > metrics_before


def scraped(server: ServeProcess) -> str:
    with urllib.request.urlopen(server.metrics, timeout=10) as response:
        return str(response.read().decode())


def executions_in_metrics(server: ServeProcess) -> int:
    match = re.search(rf'nv_inference_exec_count{{model="{RAW}",version="1"}} (\d+)', scraped(server))
    assert match
    return int(match[1])


def test_metrics_tell_of_queue_and_refusals(server: ServeProcess) -> None:
    ask(server, "GET", "/nowhere")
    text = scraped(server)
    assert f'nv_inference_queue_duration_us{{model="{IMAGE}"' in text
    assert re.search(r'^trt_hspan_requests_total\{via="http",status="404"\} [1-9]', text, re.MULTILINE)
    assert re.search(r"^trt_hspan_in_flight 0$", text, re.MULTILINE)


# What is refused.


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
        connection.sendall(b"POST /upscale HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000\r\n\r\n12345")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_too_many_bytes_in_chunks_are_refused_when_they_are_too_many(server: ServeProcess) -> None:
    host, _, port = server.http_address.rpartition(":")
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /upscale HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
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


def test_client_that_does_not_finish_is_told_so(server: ServeProcess) -> None:
    host, _, port = server.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /upscale HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n12345")
        started = time.monotonic()
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert 1.0 < time.monotonic() - started < 10


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: b"], ids=["nothing", "half a header"]
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


def test_grpc_client_that_never_sends_its_message_is_told_so(server: ServeProcess) -> None:
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
        streams = [
            channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(never())
            for _ in range(20)
        ]
        # Those that wait take no place of the other door.
        assert infer_over_http(server, RAW, batch, "input", "FP32")[0] == 200
        codes = {call.exception(timeout=30).code().name for call in silent}
        assert codes <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        assert "DEADLINE_EXCEEDED" in codes
        done.set()
        for stream in streams:
            stream.cancel()
    with triton_client(server, "grpc") as (module, client):
        tensor = module.InferInput("input", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        assert client.infer(RAW, [tensor]).as_numpy("output").shape == (1, 3, 32, 32)


def test_what_is_no_http_is_one_line_of_the_log(server: ServeProcess) -> None:
    host, _, port = server.http_address.rpartition(":")
    seen, errors = len(server.events), server.stderr
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /upscale HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\nabc")
        assert b" 400 Bad Request" in connection.recv(100)
    event = server.wait_for("Error handling request from 127.0.0.1", after=seen)
    assert "Transfer-Encoding" in event["why"]
    assert server.stderr == errors


def test_not_a_number_comes_back_as_such_and_harms_nobody(server: ServeProcess) -> None:
    batch = np.full((1, 3, 8, 8), 0.5, np.float32)
    batch[0, 0, 0, 0] = np.nan
    status, output = infer_over_http(server, RAW, batch, "input", "FP32")
    assert status == 200
    assert np.isnan(output).any()
    status, output = infer_over_http(server, RAW, np.nan_to_num(batch), "input", "FP32")
    assert status == 200
    assert np.isfinite(output).all()


@pytest.mark.parametrize(
    ("tensor", "name", "kind", "told"),
    [
        (np.zeros((1, 3, 8), np.float32), "input", "FP32", "unexpected shape"),
        (np.zeros((1, 4, 8, 8), np.float32), "input", "FP32", "unexpected shape"),
        (np.zeros((1, 3, 8, 8), np.uint8), "input", "UINT8", "data-type"),
        (np.zeros((1, 3, 8, 8), np.float32), "picture", "FP32", "picture"),
        (np.zeros((1, 3, 200, 200), np.float32), "input", "FP32", "40000 pixels"),
        (np.zeros((1, 3, 0, 8), np.float32), "input", "FP32", ""),
        (np.zeros((0, 3, 8, 8), np.float32), "input", "FP32", ""),
    ],
    ids=["three dimensions", "four channels", "uint8", "another name", "too large", "no rows", "no batch"],
)
def test_wrong_tensor_is_refused(
    server: ServeProcess, tensor: np.ndarray, name: str, kind: str, told: str
) -> None:
    status, message = infer_over_http(server, RAW, tensor, name, kind)
    assert status == 400
    assert told in message


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", f"/v2/models/{IMAGE}/infer", b"{broken", 400),
        ("POST", f"/v2/models/{IMAGE}/infer", b"[]" * 50_000, 400),
        ("POST", f"/v2/models/{IMAGE}/infer", b"", 400),
        ("POST", "/v2/models/nobody/infer", b"{}", 404),
        ("POST", "/upscale?model=nobody", b"x", 404),
        ("POST", "/upscale?format=exe", b"x", 400),
        ("GET", "/upscale", b"", 405),
        ("GET", f"/v2/models/{IMAGE}/infer", b"", 405),
        ("GET", "/../../etc/passwd", b"", 404),
        ("POST", f"/v2/repository/models/{RAW}/load", b"{}", 403),
        ("POST", f"/v2/repository/models/{RAW}/unload", b"{}", 403),
        ("POST", "/v2/logging", b'{"log_file": "/tmp/x"}', 403),
        ("POST", "/v2/trace/setting", b"{}", 403),
        ("GET", "/v2/cudasharedmemory/status", b"", 403),
        ("POST", "/v2/systemsharedmemory/region/a/register", b'{"key": "/../etc/passwd"}', 403),
        ("POST", "/v2/systemsharedmemory/region/a/register", b'{"key": "/trt_hspan_1_x"}', 403),
        ("POST", "/v2/systemsharedmemory/region/a/register", b"nonsense", 400),
    ],
)
def test_request_that_makes_no_sense_or_is_not_allowed(
    server: ServeProcess, method: str, path: str, body: bytes, status: int
) -> None:
    found, answer, _ = ask(server, method, path, body)
    assert found == status, answer
    assert error_of(answer)


def test_wrong_length_of_the_json_is_refused(server: ServeProcess) -> None:
    for text in ("99999", "-1", "1e3", "9" * 40):
        headers = {"Inference-Header-Content-Length": text}
        status, body, _ = ask(server, "POST", f"/v2/models/{IMAGE}/infer", b"{}", headers)
        assert status == 400, body


def test_grpc_methods_that_change_the_server_are_refused(server: ServeProcess) -> None:
    with triton_client(server, "grpc") as (_, client):
        calls = {
            "load": lambda: client.load_model(RAW),
            "unload": lambda: client.unload_model(RAW),
            "log": lambda: client.update_log_settings({"log_verbose_level": 1}),
            "trace": client.get_trace_settings,
            "region": lambda: client.register_system_shared_memory("a", "/trt_hspan_1_x", 10),
        }
        for name, call in calls.items():
            with pytest.raises(InferenceServerException) as refused:
                call()
            assert refused.value.status() == "StatusCode.PERMISSION_DENIED", name


def test_one_bad_picture_in_a_batch_fails_alone(server: ServeProcess, picture: bytes) -> None:
    bad = hostile_files()["truncated"]
    before = statistics(server, IMAGE)

    async def together() -> list[Any]:
        import tritonclient.grpc.aio as module

        async with module.InferenceServerClient(server.grpc_address) as client:

            async def one(data: bytes) -> Any:
                values = np.frombuffer(data, np.uint8)[None]
                tensor = module.InferInput("image", list(values.shape), "UINT8")
                tensor.set_data_from_numpy(values)
                return await client.infer(IMAGE, [tensor])

            first = asyncio.create_task(one(png(130, 140)))  # a dozen tiles, behind which the others meet
            await asyncio.sleep(0.05)
            files = [picture, bad, picture, picture, bad, picture, picture, picture]
            results = await asyncio.gather(*map(one, files), return_exceptions=True)
            await first
            return results

    results = asyncio.run(together())
    failed = [isinstance(result, InferenceServerException) for result in results]
    assert failed == [False, True, False, False, True, False, False, False]
    after = until(
        lambda: statistics(server, IMAGE), lambda now: now["inference_count"] - before["inference_count"] >= 7
    )
    assert after["execution_count"] - before["execution_count"] < 9, "nothing was batched"


# What it survives.


def test_full_queue_refuses_at_once_and_loses_nothing(server: ServeProcess) -> None:
    large = png(70, 70)

    async def flood() -> list[tuple[int, float]]:
        import aiohttp

        async with aiohttp.ClientSession() as session:

            async def one() -> tuple[int, float]:
                started = time.monotonic()
                async with session.post(f"{server.http}/upscale", data=large) as response:
                    await response.read()
                    return response.status, time.monotonic() - started

            return await asyncio.gather(*(one() for _ in range(40)))

    answers = asyncio.run(flood())
    refused = [seconds for status, seconds in answers if status == 503]
    assert {status for status, _ in answers} == {200, 503}
    assert len(refused) >= 40 - 2 * 16 - 4
    assert sorted(refused)[len(refused) // 2] < 2.0, "a refusal must not wait for the others' work"


def test_body_in_a_hundred_thousand_pieces_is_harmless(server: ServeProcess) -> None:
    """Triton itself dies of enough of them."""
    host, _, port = server.http_address.rpartition(":")
    path = f"/v2/models/{IMAGE}/infer".encode()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 4")
    assert ask(server, "GET", "/v2/health/ready")[0] == 200


def test_clients_that_leave_cost_nothing(server: ServeProcess, picture: bytes) -> None:
    host, _, port = server.http_address.rpartition(":")
    head = f"POST /upscale HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    for _ in range(10):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head + picture)
    deadline = time.monotonic() + 30
    while "trt_hspan_in_flight 0\n" not in scraped(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "trt_hspan_in_flight 0\n" in scraped(server)
    assert "trt_hspan_held_bytes 0\n" in scraped(server)
    assert ask(server, "POST", "/upscale", picture)[0] == 200


def until_answered(server: ServeProcess, picture: bytes, seconds: float = 60) -> list[int]:
    """Statuses until the first success."""
    deadline, statuses = time.monotonic() + seconds, []
    while time.monotonic() < deadline:
        statuses.append(ask(server, "POST", "/upscale", picture)[0])
        if statuses[-1] == 200:
            return statuses
        time.sleep(0.1)
    raise AssertionError(statuses)


def test_killed_python_stub_is_started_again(server: ServeProcess, picture: bytes) -> None:
    before = {stub.pid for stub in server.stubs()}
    for stub in server.stubs():
        stub.kill()
    statuses = until_answered(server, picture)
    assert set(statuses) <= {200, 503}, statuses
    assert len({stub.pid for stub in server.stubs()} - before) >= len(before)


def test_killed_tritonserver_is_started_again(server: ServeProcess, picture: bytes) -> None:
    seen = len(server.events)
    killed = server.triton()
    killed.kill()
    statuses = until_answered(server, picture)
    assert set(statuses) <= {200, 503}, statuses
    server.wait_for("tritonserver-died", after=seen)
    server.wait_for("restarted", after=seen)
    assert server.triton().pid != killed.pid
    with triton_client(server, "grpc") as (_, client):
        assert client.is_server_ready()


def test_every_event_is_one_line(server: ServeProcess) -> None:
    """A client's words cannot forge one: the log holds them escaped."""
    seen = len(server.events)
    ask(server, "GET", "/%0A2026-01-01%20INFO%20forged")
    event = server.wait_for("request", after=seen)
    assert (event["status"], event["path"]) == ("404", "/\n2026-01-01 INFO forged")
