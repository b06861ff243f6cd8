"""Clusters that are elsewhere: ray:// addresses that answer, do not answer, or are none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from support.ray_head import ray_head

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jobs.cluster import address as address_module
from trt_hspan.jobs.cluster import job
from trt_hspan.jobs.cluster.address import ray_host_and_port, require_ray

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("local", None),
        ("auto", None),
        ("ray://head", ("head", 10001)),
        ("ray://head:1234/", ("head", 1234)),
        ("ray://[::1]:9", ("::1", 9)),
    ],
)
def test_addresses_are_read(address: str, place: tuple[str, int] | None) -> None:
    assert ray_host_and_port(address) == place


@pytest.mark.parametrize(
    "address",
    [
        "",
        "head",
        "head:10001",
        "http://head",
        "ray://",
        "ray://h:x",
        "ray://h:0",
        "ray://h:70000",
        "ray://h/x",
    ],
)
def test_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="expected local, auto or ray://HOST:PORT"):
        ray_host_and_port(address)


@contextmanager
def listening() -> Iterator[int]:
    """A program that listens and says nothing."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@contextmanager
def other_grpc_server(code: grpc.StatusCode) -> Iterator[int]:
    """A server of gRPC that answers every call with this status."""

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, handler_call_details: object) -> object:
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(code, "no"))

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0)


def refusal(address: str) -> str:
    with pytest.raises(HspanError) as refused:
        require_ray(address)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_nobody_there_is_reported_at_once() -> None:
    assert "cannot be reached: Connection refused" in refusal("ray://127.0.0.1:1")
    assert "cannot be reached" in refusal("ray://no.such.host.invalid")


def test_what_is_not_ray_is_reported_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(address_module, "PATIENCE_SECONDS", 2.0)
    with listening() as port:
        assert "not Ray's client server" in refusal(f"ray://127.0.0.1:{port}")
    with other_grpc_server(grpc.StatusCode.UNIMPLEMENTED) as port:
        assert "not Ray's client server" in refusal(f"ray://127.0.0.1:{port}")
    with other_grpc_server(grpc.StatusCode.UNAUTHENTICATED) as port:
        assert "requires a token; set RAY_AUTH_MODE=token" in refusal(f"ray://127.0.0.1:{port}")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        require_ray(f"ray://127.0.0.1:{port}")  # it is Ray's business now


@pytest.mark.parametrize("said", ["1", "True"])
def test_with_tls_a_listener_is_enough(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("RAY_USE_TLS", said)
    with listening() as port:
        require_ray(f"ray://127.0.0.1:{port}")


def test_cluster_elsewhere_does_the_pictures_of_a_relative_folder(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(draw.integers(0, 256, (10, 12, 3), np.uint8)).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    words = [sys.executable, "-m", "trt_hspan", "upscale", "in", "--checkpoint", "hspan-tiny-x2"]
    words += ["--device", "cpu", "--threads", "1", "--json"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}

    def upscale(output: str, *more: str) -> tuple[dict[str, int], str]:
        completed = subprocess.run(
            [*words, "-o", output, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert completed.returncode == 1, completed.stderr
        assert completed.stdout, completed.stderr
        return json.loads(completed.stdout), completed.stderr

    upscale("alone")
    with ray_head() as address:
        report, errors = upscale("together", "--cluster", address, "--workers", "2")
        assert (report["done"], report["failed"]) == (3, 1), errors
        (line,) = errors.splitlines()
        assert "bad.png" in line
    for name in ("a.png", "b.png", "c.png"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_client_server_that_starts_no_process_is_reported_with_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def init(**_: object) -> None:
        raise ConnectionAbortedError("Initialization failure from server:\nTraceback (most recent call last)")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(job, "require_ray", lambda _: None)
    with (
        pytest.raises(HspanError, match=r"run the command again; .*GRPC_ENABLE_FORK_SUPPORT=0") as caught,
        job._cluster(job.ClusterSpec(address="ray://head")),
    ):
        pass
    assert "\n" not in str(caught.value)
