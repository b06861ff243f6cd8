"""Requests that make no sense or are not allowed: one clear line from a real server."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from support.serve_process import ServeProcess
from support.served_requests import (
    IMAGE,
    RAW,
    ask,
    error_of,
    infer_over_http,
    triton_client,
)
from tritonclient.utils import InferenceServerException


def test_what_is_no_http_is_one_line_of_the_log(server: ServeProcess) -> None:
    host, _, port = server.http_address.rpartition(":")
    seen, errors = len(server.events), server.stderr
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /upscale HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\nabc")
        assert b" 400 Bad Request" in connection.recv(100)
    event = server.wait_for("Error handling request from 127.0.0.1", after=seen)
    assert "Transfer-Encoding" in event["why"]
    assert server.stderr == errors


@pytest.mark.parametrize(
    ("tensor", "name", "kind", "words"),
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
    server: ServeProcess, tensor: np.ndarray, name: str, kind: str, words: str
) -> None:
    status, message = infer_over_http(server, RAW, tensor, name, kind)
    assert status == 400
    assert words in message


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
    actual, answer, _ = ask(server, method, path, body)
    assert actual == status, answer
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


def test_every_event_is_one_line(server: ServeProcess) -> None:
    """A client's words cannot forge one: the log holds them escaped."""
    seen = len(server.events)
    ask(server, "GET", "/%0A2026-01-01%20INFO%20forged")
    event = server.wait_for("request", after=seen, path="/\n2026-01-01 INFO forged")
    assert event["status"] == "404"
