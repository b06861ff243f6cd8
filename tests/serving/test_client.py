"""The clients against the real server, and against servers that are busy, gone or silent."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import grpc
import numpy as np
import pytest
from support.command_line import CommandLine
from support.serve_process import ServeProcess
from support.served_pictures import pixels_of, png

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.runtime.runner import Runner
from trt_hspan.serving.async_client import AsyncUpscaleClient
from trt_hspan.serving.client import UpscaleClient
from trt_hspan.serving.client_protocol import (
    TOKEN_VARIABLE,
    RetryPolicy,
    ServerBusyError,
    ServerUnreachableError,
    server_url_from_text,
)

PATIENT = RetryPolicy(attempts=40, first_delay_seconds=0.1, max_delay_seconds=2.0)


def urls(server: ServeProcess) -> dict[str, str]:
    return {"http": server.http, "grpc": f"grpc://{server.grpc_address}"}


def require_same_pictures(files: list[bytes]) -> None:
    """Batches of different sizes add up in different orders, which may turn one rounding to 8 bits around."""
    pictures = np.stack([pixels_of(data) for data in files]).astype(int)
    assert np.abs(pictures - pictures[0]).max() <= 1


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_pictures_and_tensors_come_back(
    server: ServeProcess, runner: Runner, picture: bytes, protocol: str
) -> None:
    batch = np.random.default_rng(4).random((1, 3, 10, 14), np.float32)
    with UpscaleClient(urls(server)[protocol]) as client:
        assert client.is_ready()
        assert client.model_names() == ["hspan-tiny-x4", "hspan-tiny-x4_image"]
        assert pixels_of(client.upscale_picture(picture)).shape == (80, 120, 3)
        np.testing.assert_array_equal(client.upscale_tensor(batch), runner.run(batch))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_asynchronous_client_does_many_at_a_time(
    server: ServeProcess, runner: Runner, picture: bytes, protocol: str
) -> None:
    batch = np.random.default_rng(5).random((1, 3, 10, 14), np.float32)

    async def work() -> None:
        async with AsyncUpscaleClient(urls(server)[protocol], retry=PATIENT) as client:
            assert await client.is_ready()
            files = await asyncio.gather(*(client.upscale_picture(picture) for _ in range(6)))
            require_same_pictures(files)
            np.testing.assert_array_equal(await client.upscale_tensor(batch), runner.run(batch))

    asyncio.run(work())


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_patient_clients_all_get_through_an_overload(server: ServeProcess, protocol: str) -> None:
    """80 pictures at a queue of 16: some are refused at first, and none at last."""
    picture = png(32, 32)

    async def work() -> list[bytes]:
        async with AsyncUpscaleClient(urls(server)[protocol], retry=PATIENT, connections=100) as client:
            return list(await asyncio.gather(*(client.upscale_picture(picture) for _ in range(80))))

    seen = len(server.events)
    require_same_pictures(asyncio.run(work()))
    statuses = {event["status"] for event in server.events[seen:] if event["event"] == "request"}
    assert statuses & {"503", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}, (
        "nothing was refused, so nothing was tried"
    )


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_refusal_is_one_line(server: ServeProcess, protocol: str) -> None:
    with UpscaleClient(urls(server)[protocol]) as client:
        with pytest.raises(HspanError, match="not a picture that can be read") as refused:
            client.upscale_picture(b"nonsense")
        assert "\n" not in str(refused.value)
        with pytest.raises(HspanError, match=r"expected .N, 3, H, W. float32"):
            client.upscale_tensor(np.zeros((1, 1, 4, 4), np.float32))
        with pytest.raises(UsageError, match="--format"):
            client.upscale_picture(b"x", format="exe")
    with (
        UpscaleClient(urls(server)[protocol], model="nobody") as client,
        pytest.raises(HspanError, match="nobody"),
    ):
        client.upscale_picture(png(8, 8))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_nobody_at_the_url(protocol: str) -> None:
    with UpscaleClient(f"{protocol}://127.0.0.1:1") as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnreachableError, match="no server answers there"):
            client.upscale_picture(b"x")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_server_that_never_answers(protocol: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{protocol}://127.0.0.1:{silent.getsockname()[1]}"
        with UpscaleClient(url, model="x", timeout_seconds=0.5) as client, pytest.raises(HspanError):
            client.upscale_picture(b"x")


def upscaled(url: str, *, asynchronous: bool, **options: Any) -> bytes:
    """One picture through one of the two clients."""
    options = {"timeout_seconds": 5, "retry": RetryPolicy(attempts=1), **options}

    async def ask() -> bytes:
        async with AsyncUpscaleClient(url, **options) as client:
            return await client.upscale_picture(b"x")

    if asynchronous:
        return asyncio.run(ask())
    with UpscaleClient(url, **options) as client:
        return client.upscale_picture(b"x")


def whole(status: str, body: str) -> str:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"


@contextmanager
def strange_server(answer: str) -> Iterator[tuple[int, list[bytes]]]:
    """Says the same to everybody and hangs up; its port, and what it was sent."""
    heard: list[bytes] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            heard.append(self.request.recv(1 << 16))
            self.wfile.write(answer.encode())

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as double:
        threading.Thread(target=double.serve_forever, daemon=True).start()
        try:
            yield double.server_address[1], heard
        finally:
            double.shutdown()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "no server answers there"),
        ("SSH-2.0-OpenSSH\r\n", "no server answers there"),
        (whole("200 OK", ""), "no server answers there"),
        (whole("200 OK", "<html>\n</html>"), "no server answers there"),
        (whole("200 OK", "{")[:-1] + "x" * 9, "no server answers there"),
        (whole("200 OK", "[1]"), "answered without the tensor upscaled|serves no picture model"),
        (whole("200 OK", '{"a": 1}'), "answered without the tensor upscaled|serves no picture model"),
        (whole("404 Not Found", "<html>\n" + "x" * 5000), "Invalid value"),
        (whole("401 Unauthorized", '{"error": "a token\\nis missing"}'), "a token is missing"),
    ],
    ids=["nothing", "ssh", "empty", "html", "wrong length", "list", "object", "not found", "unauthorized"],
)
def test_server_of_another_kind_is_one_line(answer: str, message: str, asynchronous: bool) -> None:
    with strange_server(answer) as (port, _):
        for protocol, model in (("http", None), ("http", "m"), ("grpc", "m")):
            with pytest.raises(HspanError) as refused:
                upscaled(f"{protocol}://127.0.0.1:{port}", asynchronous=asynchronous, model=model)
            line = str(refused.value)
            assert re.search(message if protocol == "http" else "no server answers there", line), line
            assert "\n" not in line
            assert len(line) < 450


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("protocol", ["http", "grpc", "https", "grpcs"])
def test_host_that_does_not_exist_is_unreachable_and_not_busy(protocol: str, asynchronous: bool) -> None:
    with pytest.raises(ServerUnreachableError, match="no server answers there"):
        upscaled(f"{protocol}://nobody.invalid:80", asynchronous=asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_token_is_sent_and_taken_from_the_environment(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with strange_server(whole("401 Unauthorized", '{"error": "no"}')) as (port, heard):
        url = f"http://127.0.0.1:{port}"
        for environment, token, sent in (
            (None, None, None),
            ("from outside", None, b"from outside"),
            ("from outside", "mine", b"mine"),
            ("from outside", "", None),
        ):
            monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
            if environment is not None:
                monkeypatch.setenv(TOKEN_VARIABLE, environment)
            with pytest.raises(HspanError):
                upscaled(url, asynchronous=asynchronous, model="m", token=token)
            headers = heard.pop().partition(b"\r\n\r\n")[0].split(b"\r\n")
            values = [h.partition(b": ")[2] for h in headers if h.lower().startswith(b"authorization")]
            assert values == ([] if sent is None else [b"Bearer " + sent])


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_token_goes_over_grpc_too(asynchronous: bool) -> None:
    heard: list[dict[str, str]] = []

    class Listener(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            heard.append(dict(details.invocation_metadata))

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Listener()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        for token, sent in (("mine", "Bearer mine"), ("", None)):
            with pytest.raises(HspanError) as refused:
                upscaled(f"grpc://127.0.0.1:{port}", asynchronous=asynchronous, model="m", token=token)
            assert "\n" not in str(refused.value)
            assert heard.pop().get("authorization") == sent
    finally:
        server.stop(None)


@contextmanager
def busy_server(refusals: int) -> Iterator[tuple[str, list[str]]]:
    """Says 503 so many times, then 404; notes each request."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            body = json.dumps({"error": "busy" if len(asked) <= refusals else "enough"}).encode()
            self.send_response(503 if len(asked) <= refusals else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    double = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=double.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{double.server_port}", asked
    finally:
        double.shutdown()
        double.server_close()


def test_busy_server_is_asked_again_and_other_errors_are_not() -> None:
    quick = RetryPolicy(attempts=4, first_delay_seconds=0.01, max_delay_seconds=0.02)
    with busy_server(refusals=2) as (url, asked):
        with UpscaleClient(url, model="m", retry=quick) as client, pytest.raises(HspanError, match="enough"):
            client.upscale_picture(b"x")
        assert len(asked) == 3
    with busy_server(refusals=99) as (url, asked):
        with (
            UpscaleClient(url, model="m", retry=quick) as client,
            pytest.raises(ServerBusyError, match="busy"),
        ):
            client.upscale_picture(b"x")
        assert len(asked) == 4


def test_delays_double_up_to_the_longest() -> None:
    policy = RetryPolicy(first_delay_seconds=1, max_delay_seconds=5)
    for attempt, longest in ((1, 1), (2, 2), (3, 4), (4, 5), (9, 5)):
        delays = [policy.delay_seconds(attempt) for _ in range(50)]
        assert longest / 2 <= min(delays) <= max(delays) <= longest


@pytest.mark.parametrize(
    "text", ["", "localhost", "ftp://a:1", "http://a", "http://a:0", "http://a:99999", "http://a:1/x"]
)
def test_url_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        server_url_from_text(text)


def test_command_writes_results_and_shows_what_failed(
    run: CommandLine, server: ServeProcess, picture: bytes, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(picture)
    bad.write_bytes(b"nonsense")
    result = run("client", good, "--url", server.http, "-o", tmp_path / "out.webp", "--json")
    assert result.code == 0, result.err
    (report,) = json.loads(result.out)["pictures"]
    assert report["milliseconds"] > 0
    assert pixels_of((tmp_path / "out.webp").read_bytes()).shape == (80, 120, 3)
    words = ("client", good, "--url", server.http, "-o", tmp_path / "out.webp")
    assert "out.webp: exists; give --overwrite or another name" in run(*words).error_line
    assert run(*words, "--overwrite").code == 0
    result = run("client", good, bad, "--url", f"grpc://{server.grpc_address}", "-o", tmp_path / "all")
    assert result.code == 1
    assert "bad.png" in result.error_line
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["good_upscaled.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], "missing.png: no such file"),
        (["{picture}", "--url", "http://127.0.0.1:1"], "no server answers there"),
        (["{picture}", "--url", "nonsense"], "--url"),
        (["{picture}", "--format", "exe"], "--format"),
        (["{picture}", "-o", "x.exe"], "cannot tell the format"),
        (["{picture}", "{picture}"], "two pictures would become"),
    ],
)
def test_command_that_makes_no_sense(
    run: CommandLine, picture: bytes, tmp_path: Path, words: list[str], message: str
) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(picture)
    result = run("client", *(word.replace("{picture}", str(path)) for word in words))
    assert result.code in (1, 2)
    assert message in result.error_line
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]
