"""What clients say about a server, without one: URLs, when to ask again, and which failure is which line."""

from __future__ import annotations

import asyncio
import re
import sys
from types import SimpleNamespace

import pytest
from tritonclient.utils import InferenceServerException

from trt_hspan.errors import UsageError
from trt_hspan.serving.client_protocol import (
    RetryPolicy,
    ServerBusyError,
    ServerUnreachableError,
    ServerUrl,
    client_failures,
    error_from_client,
    server_url_from_text,
)

URL = server_url_from_text("http://host:1")


@pytest.mark.parametrize(
    ("text", "protocol", "address", "secure"),
    [
        ("http://host:1", "http", "host:1", False),
        ("https://host:65535/", "http", "host:65535", True),
        ("grpc://[::1]:8001", "grpc", "[::1]:8001", False),
        ("grpcs://a.b:80", "grpc", "a.b:80", True),
    ],
)
def test_urls_are_read(text: str, protocol: str, address: str, secure: bool) -> None:
    expected = ServerUrl(protocol=protocol, address=address, secure=secure, text=text.rstrip("/"))  # type: ignore[arg-type]
    assert server_url_from_text(text) == expected


@pytest.mark.parametrize("text", ["http://host:65536", "http://host:0", "http://a b:1", "http://u@h:1"])
def test_other_urls_are_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"got {text!r}, expected http://HOST:PORT")):
        server_url_from_text(text)


def test_a_policy_has_an_attempt_and_delays_in_order() -> None:
    assert RetryPolicy(attempts=1, first_delay_seconds=2, max_delay_seconds=2).attempts == 1
    with pytest.raises(UsageError, match="--attempts: got 0, expected at least 1"):
        RetryPolicy(attempts=0)
    for first, longest in ((0, 1), (-1, 1), (2, 1)):
        with pytest.raises(UsageError, match="first delay"):
            RetryPolicy(first_delay_seconds=first, max_delay_seconds=longest)


def failure(status: str | None, message: str | None) -> InferenceServerException:
    return InferenceServerException(message, status=status)


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (TimeoutError(), None, "did not answer in time"),
        (asyncio.TimeoutError(), None, "did not answer in time"),
        (failure("StatusCode.DEADLINE_EXCEEDED", "late"), None, "did not answer in time"),
        (failure(None, "it timed out"), None, "did not answer in time"),
        (OSError("no\nroute"), ServerUnreachableError, r"answers there \(OSError: no route\); start one"),
        (failure("503", "full"), ServerBusyError, "full; try again later"),
        (failure("429", "full, come again"), ServerBusyError, "full, come again$"),
        (failure("StatusCode.UNAVAILABLE", "full"), ServerBusyError, "full; try again later"),
        (failure("StatusCode.UNAVAILABLE", "failed to connect"), ServerUnreachableError, "failed to connect"),
        (failure("StatusCode.UNAVAILABLE", "Socket closed"), ServerUnreachableError, "Socket closed"),
        (failure("StatusCode.RESOURCE_EXHAUSTED", "no place"), ServerBusyError, "no place"),
        (failure("StatusCode.RESOURCE_EXHAUSTED", "message larger than max"), None, "larger than max$"),
        (failure("404", "x" * 400), None, "x" * 300 + "$"),
        (failure("500", None), None, "it gives no reason$"),
    ],
)
def test_each_failure_is_one_line_of_its_kind(
    error: BaseException, kind: type[Exception] | None, line: str
) -> None:
    said = error_from_client(URL, error)
    assert re.search(line, str(said))
    assert str(said).startswith("http://host:1: ")
    assert "\n" not in str(said)
    assert isinstance(said, ServerBusyError) is (kind is ServerBusyError)
    assert isinstance(said, ServerUnreachableError) is (kind is ServerUnreachableError)


def test_a_reason_for_silence_is_one_short_line() -> None:
    reason = ("EOFError: a " + "x" * 300)[:160]
    said = str(error_from_client(URL, EOFError("a\n" + "x" * 300)))
    assert said == f"http://host:1: no server answers there ({reason}); start one with trt-hspan serve"


def test_what_libraries_raise_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnError(Exception): ...

    known = (InferenceServerException, OSError, asyncio.TimeoutError, EOFError, ValueError)
    monkeypatch.delitem(sys.modules, "aiohttp", raising=False)
    assert client_failures() == known
    monkeypatch.setitem(sys.modules, "aiohttp", SimpleNamespace(ClientError=OwnError))  # type: ignore[arg-type]
    assert client_failures() == (*known, OwnError)
