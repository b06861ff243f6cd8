"""Requests that make no sense or are not allowed: one clear line from a real server."""

from __future__ import annotations

import numpy as np
import pytest
from support.serve_process import ServeProcess
from support.served_requests import (
    IMAGE,
    RAW,
    ask,
    error_of,
    infer_over_http,
)


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
    ],
)
def test_request_that_makes_no_sense(
    server: ServeProcess, method: str, path: str, body: bytes, status: int
) -> None:
    actual, answer, _ = ask(server, method, path, body)
    assert actual == status, answer
    assert error_of(answer)


def test_every_event_is_one_line(server: ServeProcess) -> None:
    """A client's words cannot forge one: the log holds them escaped."""
    seen = len(server.events)
    ask(server, "GET", "/%0A2026-01-01%20INFO%20forged")
    event = server.wait_for("request", after=seen, path="/\n2026-01-01 INFO forged")
    assert event["status"] == "404"
