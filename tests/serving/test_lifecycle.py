"""Servers that start, fail to start, are killed, take up new versions, and stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.command_line import CommandLine
from support.serve_process import ServeProcess, left_in_shared_memory, still_runs
from support.served_pictures import pixels_of, png
from support.small_engine import SmallEngine

from trt_hspan import downloads
from trt_hspan.serving import triton_install
from trt_hspan.serving.engine_networks import networks_from_engines
from trt_hspan.serving.repository import write_repository
from trt_hspan.serving.server import TritonServer
from trt_hspan.serving.triton_install import TritonInstall

_ANY_PORTS = ("--port", "0", "--grpc-port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module")
def repository(small_engine: SmallEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `serve export` writes for an engine of TensorRT-RTX; without a GPU its ONNX file runs on the CPU."""
    folder = tmp_path_factory.mktemp("lifecycle") / "models"
    return write_repository(folder, networks_from_engines([small_engine.plan], name="net")).folder


def upscale(server: ServeProcess, data: bytes) -> tuple[int, bytes]:
    host, _, port = server.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request("POST", "/upscale", body=data)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def gone(processes: list[psutil.Process], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(still_runs, psutil.wait_procs(processes, timeout=0.2)[1])):
        if time.monotonic() > deadline:
            return False
    return True


def test_exported_repository_is_served_and_takes_up_version_two_without_a_dropped_request(
    repository: Path, small_engine: SmallEngine
) -> None:
    server = ServeProcess(repository, "--watch", 0.3)
    try:
        picture = png(20, 16)
        statuses: list[int] = []
        done = threading.Event()

        def keep_asking() -> None:
            while not done.is_set():
                statuses.append(upscale(server, picture)[0])

        asking = [threading.Thread(target=keep_asking) for _ in range(2)]
        for thread in asking:
            thread.start()
        written = write_repository(
            repository, networks_from_engines([small_engine.plan], name="net"), add_version=True
        )
        assert written.version == 2
        deadline = time.monotonic() + 60
        reloaded: set[str] = set()
        while reloaded != {"net", "net_image"} and time.monotonic() < deadline:
            reloaded = {e["model"] for e in server.events if e["event"] == "reload" and "model" in e}
            time.sleep(0.1)
        time.sleep(1)
        done.set()
        for thread in asking:
            thread.join()
        assert reloaded == {"net", "net_image"}
        assert set(statuses) == {200}
        assert len(statuses) > 5
        host, _, port = server.http_address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        for name in reloaded:
            connection.request("GET", f"/v2/models/{name}/versions/2/ready")
            response = connection.getresponse()
            response.read()
            assert response.status == 200, name
        connection.close()
    finally:
        assert server.stop() == 0


def test_killed_with_a_request_under_way_it_leaves_nothing_and_starts_again_on_its_ports(
    repository: Path,
) -> None:
    first = ServeProcess(repository)
    processes = first.everything()
    outcome: list[str] = []

    def ask() -> None:
        try:
            outcome.append(str(upscale(first, png(300, 300))[0]))
        except OSError as error:
            outcome.append(type(error).__name__)
        except http.client.HTTPException as error:
            outcome.append(type(error).__name__)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    first.process.kill()
    asking.join(30)
    assert not asking.is_alive(), "the client was left waiting"
    assert gone(processes), "processes outlived the one that started them"
    second = ServeProcess(repository, ports=first.ports)
    try:
        assert not left_in_shared_memory(first.process.pid)
        status, body = upscale(second, png(20, 16))
        assert (status, pixels_of(body).shape) == (200, (64, 80, 3))
        processes = second.everything()
    finally:
        assert second.stop(signal.SIGINT) == 0
    assert gone(processes, 5)
    assert not left_in_shared_memory(second.process.pid)
    assert second.events[-1]["event"] == "stopped"


def test_repository_of_three_engines_is_served_and_tiles_find_their_bucket(
    small_engine: SmallEngine, tmp_path: Path
) -> None:
    engines = []
    for side in (24, 28, 32):
        folder = tmp_path / f"to_{side}"
        folder.mkdir()
        plan = small_engine.copy_to(folder)
        profile = dataclasses.replace(
            small_engine.manifest.profiles[0], opt=(1, 3, side, side), max=(1, 3, side, side)
        )
        manifest = dataclasses.replace(small_engine.manifest, profiles=(profile,))
        plan.with_suffix(".json").write_text(manifest.as_json())
        engines.append(plan)
    written = write_repository(tmp_path / "models", networks_from_engines(engines, name="net"))
    assert written.models == ("net_24x24", "net_28x28", "net_32x32", "net_image")
    server = ServeProcess(written.folder)
    try:
        assert server.ready["models"].split(",") == list(written.models)
        host, _, port = server.http_address.rpartition(":")
        for side, used in ((20, "net_24x24"), (26, "net_28x28"), (60, "net_32x32")):
            status, body = upscale(server, png(side, side))
            assert (status, pixels_of(body).shape) == (200, (4 * side, 4 * side, 3))
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            connection.request("GET", f"/v2/models/{used}/stats")
            (actual,) = json.loads(connection.getresponse().read())["model_stats"]
            connection.close()
            assert int(actual["inference_count"]) >= 1, used
    finally:
        assert server.stop() == 0


def test_ports_of_tritonserver_are_nobody_elses_until_it_is_stopped(tmp_path: Path) -> None:
    """Also while none runs: a program that takes one would be sent the clients' requests."""
    program = tmp_path / "program"  # never started
    triton = TritonServer(TritonInstall(program=program, backends=tmp_path, libraries=()), tmp_path)
    ports = (triton.ports.http, triton.ports.grpc, triton.ports.metrics)

    def bound(port: int, reuse: int) -> bool:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen()
            except OSError:
                return False
            return True

    assert not any(bound(port, 0) for port in ports)
    with socket.socket() as other:  # a connection to elsewhere does not get one either
        other.bind(("127.0.0.1", 0))
        assert other.getsockname()[1] not in ports
    assert all(bound(port, 1) for port in ports), "tritonserver, which asks for it, could not listen"
    asyncio.run(triton.stop())
    assert all(bound(port, 0) for port in ports)


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.mark.parametrize("option", ["--port", "--grpc-port", "--metrics-port"])
def test_taken_port_is_reported_before_anything_starts(
    run: CommandLine, repository: Path, option: str
) -> None:
    with listening() as port:
        others = [
            word
            for name in ("--port", "--grpc-port", "--metrics-port")
            if name != option
            for word in (name, 0)
        ]
        result = run("serve", repository, option, port, *others)
    assert result.code == 1
    assert f"127.0.0.1:{port}: another program listens there; give {option}" in result.error_line


def test_model_that_cannot_be_loaded_is_one_error_line(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "models"
    subprocess.run(["cp", "-r", str(repository), str(broken)], check=True)
    for onnx in broken.glob("net/*/small.onnx"):
        onnx.write_bytes(b"nonsense")
    completed = subprocess.run(
        [sys.executable, "-m", "trt_hspan", "serve", str(broken), *_ANY_PORTS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 1
    (line,) = [line for line in completed.stderr.splitlines() if line.startswith("trt-hspan: error:")]
    assert "small.onnx: SHA-256 is" in line
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no-such-network"], 1, "no-such-network"),
        (["missing.onnx"], 1, "missing.onnx: no such file"),
        (["--port", "70000"], 2, "--port: got 70000"),
        (["--port", "8000", "--grpc-port", "8000"], 2, "the same port"),
        (["--max-pixels", "0"], 2, "--max-pixels"),
        (["--tile", "big"], 2, "--tile"),
        (["--host", "no.such.host.invalid"], 2, "--host"),
        (["--device", "tpu"], 2, "--device"),
    ],
)
def test_request_that_makes_no_sense(run: CommandLine, words: list[str], code: int, message: str) -> None:
    result = run("serve", *words)
    assert result.code in (1, 2) if message == "no-such-network" else result.code == code
    assert message in result.error_line


def test_folder_without_models(run: CommandLine, tmp_path: Path) -> None:
    result = run("serve", tmp_path, "--port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert (result.code, "contains no model" in result.error_line) == (1, True)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.pbtxt").write_text('name: "net"')
    result = run("serve", tmp_path, "--port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert "has no version" in result.error_line


def test_repository_and_options_of_a_network_do_not_mix(run: CommandLine, repository: Path) -> None:
    result = run("serve", repository, "--name", "x")
    assert (result.code, "which says that itself" in result.error_line) == (2, True)


def test_index_that_cannot_be_reached(
    run: CommandLine, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "triton"
    monkeypatch.setattr(triton_install, "default_install_folder", lambda: folder / "x")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    result = run("serve", repository, "--port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert (result.code, "cannot be fetched from the package index" in result.error_line) == (1, True)
    assert not list(folder.iterdir())


def test_other_file_than_the_pinned_one_is_not_trusted(
    run: CommandLine, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_install, "default_install_folder", lambda: tmp_path / "triton" / "x")

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        (folder / "nvidia_pytriton-0.7.0-py3-none-any.whl").write_bytes(b"another file")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.subprocess, "run", download)
    result = run("serve", repository, "--port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert (result.code, "sent a file with SHA-256" in result.error_line) == (1, True)


def test_named_installation_must_be_one(
    run: CommandLine, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRT_HSPAN_TRITON", str(tmp_path))
    result = run("serve", repository, "--port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert "contains no bin/tritonserver" in result.error_line
