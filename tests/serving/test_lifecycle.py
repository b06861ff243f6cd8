"""Servers that start, fail to start, take up new networks, lose a GPU, and stop: nothing is lost or left behind."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from support.command_line import CommandLine
from support.export_cache import ExportCache
from support.runner_doubles import NearestRunner
from support.serve_process import ServeProcess, still_runs
from support.served_pictures import pixels_of, png
from support.served_requests import CLIENTS, ask, infer_over_http, scraped, triton_client, until
from support.small_engine import SmallEngine
from tritonclient.utils import InferenceServerException

from trt_hspan.errors import HspanError
from trt_hspan.runtime.opening import devices_from_text, open_runner
from trt_hspan.runtime.runner import Float32Array
from trt_hspan.serving.limits import ServerLimits
from trt_hspan.serving.serve import ServeSpec, Serving, serve

BATCH = np.full((1, 3, 8, 8), 0.5, np.float32)


def gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(still_runs, psutil.wait_procs(processes, timeout=0.1)[1])):
        if time.monotonic() > deadline:
            return False
    return True


def infer(server: ServeProcess, protocol: str, name: str, batch: np.ndarray) -> str:
    """The status of one request through tritonclient."""
    with triton_client(server, protocol) as (module, client):
        tensor = module.InferInput("input", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        try:
            client.infer(name, [tensor])
        except InferenceServerException as error:
            return str(error.status())
    return "answered"


@pytest.fixture
def network(exported: ExportCache, tmp_path: Path) -> Path:
    """A copy of an ONNX file, to be replaced."""
    return Path(shutil.copy(exported("small_x2"), tmp_path / "net.onnx"))


def test_new_version_is_loaded_beside_the_old_one_and_no_request_is_lost(
    network: Path, exported: ExportCache, tmp_path: Path
) -> None:
    server = ServeProcess(network, "--watch", 0.2, "--instances", 1)
    statuses: list[str] = []
    done = threading.Event()

    def keep_asking(protocol: str) -> None:
        while not done.is_set():
            statuses.append(infer(server, protocol, "net", BATCH))

    asking = [threading.Thread(target=keep_asking, args=(protocol,)) for protocol in CLIENTS]
    for thread in asking:
        thread.start()
    try:
        os.utime(network)  # as good as new
        server.wait_for("reload", version=2)
        seen = len(server.events)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reload", after=seen, version=3)
        seen = len(server.events)
        network.write_bytes(network.read_bytes()[:1000])
        server.wait_for("reload-failed", after=seen)
        seen = len(server.events)
        shutil.copy(exported("small_x4"), tmp_path / "other")
        (tmp_path / "other").replace(network)
        event = server.wait_for("reload-failed", after=seen)
        assert "enlarges by 4, the network that is served by 2" in event["why"]
        done.set()
        for thread in asking:
            thread.join()
        assert set(statuses) == {"answered"}
        assert ask(server, "GET", "/v2/models/net/versions/3/ready")[0] == 200
        assert ask(server, "GET", "/v2/models/net/versions/1/ready")[0] == 404
    finally:
        done.set()
        assert server.stop() == 0


def test_what_is_under_way_is_finished_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = ServeProcess("hspan-tiny-x4", "--instances", 1, environment={"TMPDIR": str(temporary)})
    processes = server.everything()
    picture, large = png(90, 90), np.zeros((8, 3, 64, 64), np.float32)
    outcomes: list[str] = []

    def over_http() -> None:
        status, body, _ = ask(server, "POST", "/upscale", picture)
        outcomes.append(f"{status} {pixels_of(body).shape}")

    working = [threading.Thread(target=over_http)]
    working += [
        threading.Thread(target=lambda: outcomes.append(infer(server, "grpc", "hspan-tiny-x4", large)))
    ]
    host, _, port = server.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as slow:
        slow.sendall(
            b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(picture)
        )
        slow.sendall(picture[:100])  # its body is on its way
        for thread in working:
            thread.start()
        until(lambda: scraped(server), lambda text: "trt_hspan_in_flight 2.0" in text, 20)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        assert ask(server, "GET", "/v2/health/ready")[0] == 503
        status, body, headers = ask(server, "POST", "/upscale", picture)
        assert (status, headers["Retry-After"], b"stops" in body) == (503, "1", True)
        assert infer(server, "grpc", "hspan-tiny-x4", BATCH) == "StatusCode.UNAVAILABLE"
        slow.sendall(picture[100:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")
    for thread in working:
        thread.join(60)
    assert sorted(outcomes) == ["200 (360, 360, 3)", "answered"]
    assert server.stop() == 0
    assert server.events[-1]["event"] == "stopped"
    assert gone(processes, 5)
    assert not list(temporary.iterdir())


def test_second_signal_ends_it_at_once() -> None:
    server = ServeProcess("hspan-tiny-x4", "--instances", 1)
    outcomes: list[int] = []
    working = threading.Thread(
        target=lambda: outcomes.append(ask(server, "POST", "/upscale", png(600, 600))[0])
    )
    working.start()
    until(lambda: scraped(server), lambda text: "trt_hspan_in_flight 1.0" in text, 20)
    server.process.send_signal(signal.SIGINT)
    server.wait_for("stopping")
    server.process.send_signal(signal.SIGINT)
    assert server.stop(timeout=20) == 0
    working.join(20)
    assert outcomes == [503]


def test_killed_it_leaves_nothing_and_starts_again_on_its_ports(small_engine: SmallEngine) -> None:
    first = ServeProcess(small_engine.plan, "--instances", 1)
    assert first.ready["models"] == "small,small_image"
    assert ask(first, "POST", "/upscale", png(20, 16))[0] == 200
    processes = first.everything()
    first.process.kill()
    assert gone(processes, 10), "processes outlived the one that started them"
    second = ServeProcess(small_engine.plan, "--instances", 1, ports=first.ports)
    try:
        status, body, _ = ask(second, "POST", "/upscale", png(70, 40))
        assert (status, pixels_of(body).shape) == (200, (160, 280, 3))
    finally:
        assert second.stop(signal.SIGINT) == 0


def test_token_is_wanted_over_both_protocols() -> None:
    server = ServeProcess("hspan-tiny-x4", "--instances", 1, environment={"TRT_HSPAN_TOKEN": "secret-1"})
    try:
        for given, status in (
            (None, 401),
            ("Bearer wrong", 401),
            ("secret-1", 401),
            ("Bearer secret-1", 200),
        ):
            headers = {} if given is None else {"Authorization": given}
            assert ask(server, "GET", "/metrics", b"", headers)[0] == status
            assert ask(server, "POST", "/upscale", png(8, 8), headers)[0] == status
        assert ask(server, "GET", "/v2/health/ready")[0] == 200
        with grpc.insecure_channel(server.grpc_address) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                with pytest.raises(grpc.RpcError) as refused:
                    call(b"", metadata=metadata, timeout=20)
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert call(b"", metadata=(("authorization", "Bearer secret-1"),), timeout=20)
        assert "secret-1" not in str(server.events)
    finally:
        assert server.stop() == 0


class _Failing(NearestRunner):
    """A GPU that works until it is told to fail."""

    on_gpu = True
    fails = False
    is_slow = False

    def infer(self, batch: Float32Array) -> Float32Array:
        if self.fails:
            raise HspanError("net.plan", "CUDA: an illegal memory access", "see trt-hspan doctor")
        if self.is_slow:
            time.sleep(0.3)
        return super().infer(batch)


@contextlib.contextmanager
def served(
    **options: Any,
) -> Iterator[tuple[Serving, dict[str, _Failing], list[BaseException], threading.Thread]]:
    """A server in a thread of this process, whose devices are doubles."""
    runners: dict[str, _Failing] = {}
    errors: list[BaseException] = []
    ready: list[Serving] = []
    is_ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    def open_double(device: str) -> _Failing:
        runners[device] = _Failing(scale=2)
        return runners[device]

    def on_ready(serving: Serving) -> None:
        ready.append(serving)
        is_ready.set()

    def work() -> None:
        spec = ServeSpec(source="net", http_port=0, grpc_port=0, **options)
        try:
            loop.run_until_complete(serve(spec, on_ready=on_ready, stop=stop, open_runner=open_double))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            is_ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert is_ready.wait(60)
    try:
        yield ready[0], runners, errors, thread
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
        assert not thread.is_alive()


def request_of(serving: Serving, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(serving.http_url.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        connection.request("POST" if body else "GET", path, body=body or None)
        response = connection.getresponse()
        return response.status, response.read()


def test_gpu_that_fails_ends_the_server_with_a_clear_line() -> None:
    with served(devices=("gpu:0", "gpu:1")) as (serving, runners, errors, thread):
        assert set(runners) == {"gpu:0", "gpu:1"}
        assert request_of(serving, "/upscale", png(30, 20))[0] == 200
        for runner in runners.values():
            runner.fails = True
        status, body = request_of(serving, "/upscale", png(30, 20))
        assert (status, b"the GPU failed" in body) == (503, True)
        thread.join(20)
        assert not thread.is_alive()
        (error,) = errors
        assert str(error).startswith("nearest: the GPU failed: net.plan: CUDA: an illegal memory access")


def test_clients_read_no_path_and_no_words_of_tensorrt_which_the_log_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "trt_hspan.serving"), served() as (serving, runners, _, _thread):
        for runner in runners.values():
            runner.on_gpu, runner.fails = False, True
        status, body = request_of(serving, "/upscale", png(30, 20))
        assert (status, b"log says why" in body) == (500, True)
        assert not [word for word in (b"net.plan", b"nearest", b"CUDA") if word in body]
    causes = [record.event_fields["why"] for record in caplog.records if record.getMessage() == "failed"]  # type: ignore[attr-defined]
    assert "net.plan: CUDA: an illegal memory access" in causes[0]


def test_work_that_takes_longer_than_it_may_is_given_up() -> None:
    with served(limits=ServerLimits(work_time_ms=500)) as (serving, runners, _, _thread):
        for runner in runners.values():
            runner.is_slow = True
        started = time.monotonic()
        status, body = request_of(serving, "/upscale", png(300, 300))
        assert (status, b"longer than 500 ms" in body) == (408, True)
        assert time.monotonic() - started < 5


def test_both_gpus_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(devices=devices_from_text("gpu:0,1")) as (serving, runners, _, _thread):
        for runner in runners.values():
            runner.is_slow = True
        assert request_of(serving, "/upscale", png(400, 200))[0] == 200
        assert all(len(runner.calls) > 2 for runner in runners.values())


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_taken_port_is_reported_before_anything_starts(run: CommandLine, option: str) -> None:
    other = "--grpc-port" if option == "--port" else "--port"
    with listening() as port:
        result = run("serve", option, port, other, 0)
    assert result.code == 1
    assert f"127.0.0.1:{port}: another program listens there; give {option}" in result.error_line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no-such-network"], 1, "no-such-network"),
        (["missing.onnx"], 1, "missing.onnx: no such file"),
        (["--port", "70000"], 2, "--port: got 70000"),
        (["--port", "8000", "--grpc-port", "8000"], 2, "the same port"),
        (["--max-pixels", "0"], 2, "--max-pixels"),
        (["--held-bytes", "1000"], 2, "--held-bytes"),
        (["--tile", "big"], 2, "--tile"),
        (["--host", "no.such.host.invalid"], 2, "--host"),
        (["--device", "tpu"], 2, "--device"),
        (["--device", "gpu:0,0"], 2, "names a GPU twice"),
        (["--device", "gpu"], 1, "--device gpu"),
        (["--name", "?"], 2, "--name"),
    ],
)
def test_request_that_makes_no_sense(run: CommandLine, words: list[str], code: int, message: str) -> None:
    ports = [] if "--port" in words else ["--port", 0, "--grpc-port", 0]
    result = run("serve", *words, *ports)
    assert message in result.error_line
    assert result.code == code


def test_folder_and_file_of_another_kind_are_refused(run: CommandLine, tmp_path: Path) -> None:
    result = run("serve", tmp_path, "--port", 0, "--grpc-port", 0)
    assert result.code in (1, 2)
    assert len(result.error_line.splitlines()) == 1
    other = tmp_path / "other.onnx"
    other.write_bytes(b"no network")
    assert "other.onnx" in run("serve", other, "--port", 0, "--grpc-port", 0).error_line


def test_address_that_others_can_reach_is_warned_of() -> None:
    server = ServeProcess("hspan-tiny-x4", "--instances", 1, "--host", "0.0.0.0", "--allow-host", "my.name")
    try:
        warning = server.wait_for("warning")
        assert all(word in warning["why"] for word in ("TLS", "proxy", "TRT_HSPAN_TOKEN"))
        assert server.http.startswith("http://127.0.0.1:")
        for host, status in (("my.name:80", 200), ("127.0.0.1", 200), ("other.name", 403)):
            assert ask(server, "GET", "/v2", b"", {"Host": host})[0] == status
    finally:
        assert server.stop() == 0


def test_killed_decoder_costs_no_request(server: ServeProcess, picture: bytes) -> None:
    for decoder in server.decoders():
        decoder.kill()
    assert ask(server, "POST", "/upscale", picture)[0] == 200
    assert "trt_hspan_decoders_replaced 0.0" not in scraped(server)
    assert infer_over_http(server, "hspan-tiny-x4", BATCH, "input", "FP32")[0] == 200


def test_runner_in_the_server_is_the_one_that_open_runner_gives(server: ServeProcess) -> None:
    assert server.ready["network"] == open_runner("hspan-tiny-x4").label
