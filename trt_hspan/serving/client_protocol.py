"""The core of both clients: URLs, requests, errors, and when to try again. Sends and waits for nothing itself.

What a client does is written once, as a generator of steps: a call of Triton's client, or seconds to wait. `client`
takes the steps one after the other, `async_client` awaits them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module
from operator import methodcaller
from typing import Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError

Protocol = Literal["http", "grpc"]
_T = TypeVar("_T")
#: A call of Triton's client, whose answer is sent back in; or seconds to wait.
Step = Callable[[Any], Any] | float
Steps = Generator[Step, Any, _T]

PICTURE_FORMATS: Final = ("png", "jpeg", "webp", "bmp", "tiff")
#: The token that a server was started with, and that its clients send.
TOKEN_VARIABLE: Final = "TRT_HSPAN_TOKEN"

_BUSY: Final = ("503", "429", "StatusCode.UNAVAILABLE")
_CONNECTING: Final = ("connect", "Connection", "reset by peer", "Socket closed", "resolving")
_LONGEST_REASON: Final = 300


@dataclass(frozen=True, kw_only=True)
class ServerUrl:
    """Where a server is. `address` is host:port."""

    protocol: Protocol
    address: str
    secure: bool
    text: str


def server_url_from_text(text: str) -> ServerUrl:
    """Reads http://host:port, https://, grpc:// or grpcs://. Raises UsageError: anything else."""
    match = re.fullmatch(r"(https?|grpcs?)://(\[[0-9A-Fa-f:.]+\]|[^/:@\s]+):([0-9]{1,5})/?", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise UsageError("--url", f"got {text!r}, expected http://HOST:PORT or grpc://HOST:PORT")
    return ServerUrl(
        protocol="grpc" if match[1].startswith("grpc") else "http",
        address=f"{match[2]}:{match[3]}",
        secure=match[1].endswith("s"),
        text=text.rstrip("/"),
    )


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When a busy server is asked again: after delays that double, each shortened at random by up to a half.

    Attributes:
        attempts: in all; 1 never tries again.
        first_delay_seconds, max_delay_seconds: of the delays.

    Raises:
        UsageError: less than one attempt, or a delay that is not positive.
    """

    attempts: int = 6
    first_delay_seconds: float = 0.2
    max_delay_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise UsageError("--attempts", f"got {self.attempts}, expected at least 1")
        if not 0 < self.first_delay_seconds <= self.max_delay_seconds:
            raise UsageError("retry", "expected 0 < first delay <= longest delay")

    def delay_seconds(self, attempt: int) -> float:
        """How long to wait after attempt 1, 2, ... failed."""
        longest = min(self.max_delay_seconds, self.first_delay_seconds * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.5, 1.0)


class ServerBusyError(HspanError):
    """The server refused for lack of room; trying again later may succeed."""


class ServerUnreachableError(HspanError):
    """Nobody answers at the URL."""


class ClientCore:
    """What both clients are made of: one server, and what is asked of it, as steps.

    Args:
        url: http://HOST:PORT or grpc://HOST:PORT, or https:// and grpcs://.
        model: the model; None takes the server's one picture model, or raw model for tensors.
        timeout_seconds: for one attempt.
        retry: when a busy server is asked again.
        token: that the server requires; None takes the environment's TRT_HSPAN_TOKEN, if any.
        connections: of HTTP, at a time.

    Raises:
        UsageError: not such a URL.
    """

    _asynchronous: bool

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        timeout_seconds: float = 300.0,
        retry: RetryPolicy | None = None,
        token: str | None = None,
        connections: int = 64,
    ) -> None:
        self.url = server_url_from_text(url)
        self._model, self._timeout, self._retry = model, timeout_seconds, retry or RetryPolicy()
        self._connections = connections
        self._found: dict[bool, str] = {}  # the picture model, the raw model
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self._options: dict[str, Any] = {"headers": {"authorization": f"Bearer {token}"} if token else None}
        if self.url.protocol == "grpc":
            self._options["client_timeout"] = timeout_seconds
        self._module = import_module(
            f"tritonclient.{self.url.protocol}{'.aio' if self._asynchronous else ''}"
        )
        self._client: Any = None

    def _opened(self) -> Any:
        """Triton's own client of the URL's protocol."""
        if self._client is None:
            options: dict[str, Any] = {}
            if self.url.protocol == "http" and self._asynchronous:
                options = {"conn_limit": self._connections, "conn_timeout": self._timeout}
            elif self.url.protocol == "http":
                options = {
                    "concurrency": self._connections,
                    "network_timeout": self._timeout,
                    "connection_timeout": min(self._timeout, 10.0),
                }
            self._client = self._module.InferenceServerClient(
                self.url.address, ssl=self.url.secure, **options
            )
        return self._client

    def _ready(self) -> Steps[bool]:
        """Whether the server answers and all its models are ready."""
        try:
            return bool((yield methodcaller("is_server_ready", **self._options)))
        except client_failures():
            return False

    def _names(self) -> Steps[list[str]]:
        """The models that are loaded, from statistics: a careful server restricts access to Triton's index."""
        options = self._options | ({"as_json": True} if self.url.protocol == "grpc" else {})
        statistics = yield from self._patiently(methodcaller("get_inference_statistics", **options))
        entries = statistics.get("model_stats", []) if isinstance(statistics, dict) else []
        return sorted({str(entry["name"]) for entry in entries})

    def _picture(self, picture: bytes, kind: str) -> Steps[bytes]:
        """The file of an upscaled picture."""
        if kind not in PICTURE_FORMATS:
            raise UsageError("--format", f"got {kind!r}, expected one of {', '.join(PICTURE_FORMATS)}")
        if not picture:
            raise HspanError("picture", "is empty (0 bytes)", "name another one")
        values = np.frombuffer(picture, np.uint8)[None]
        result = yield from self._infer("image", values, "UINT8", "upscaled", {"format": kind})
        return bytes(result.tobytes())

    def _tensor(self, batch: npt.NDArray[np.float32]) -> Steps[npt.NDArray[np.float32]]:
        """The network's output for a batch."""
        if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1] != 3:
            raise HspanError("input", f"is {batch.shape} {batch.dtype}, expected (N, 3, H, W) float32")
        values = np.ascontiguousarray(batch)
        return np.array((yield from self._infer("input", values, "FP32", "output", None)))

    def _infer(
        self,
        name: str,
        values: npt.NDArray[Any],
        kind: str,
        output: str,
        parameters: dict[str, Any] | None,
    ) -> Steps[npt.NDArray[Any]]:
        model = yield from self._chosen_model(image=name == "image")
        tensor = self._module.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        ask = methodcaller("infer", model, [tensor], parameters=parameters, **self._options)
        answer = yield from self._patiently(ask)
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):  # not of this protocol
            result: npt.NDArray[Any] | None = answer.as_numpy(output)
            if result is not None:
                return result
        raise HspanError(
            self.url.text, f"{model} answered without the tensor {output}", "name another with --model"
        )

    def _chosen_model(self, *, image: bool) -> Steps[str]:
        if self._model is not None:
            return self._model
        if image not in self._found:
            candidates = [name for name in (yield from self._names()) if name.endswith("_image") == image]
            if len(candidates) != 1:
                kind = "picture" if image else "raw"
                what = f"several {kind} models: {', '.join(candidates)}" if candidates else f"no {kind} model"
                raise HspanError(self.url.text, f"serves {what}", "name one with --model")
            self._found[image] = candidates[0]
        return self._found[image]

    def _patiently(self, ask: Callable[[Any], Any]) -> Steps[Any]:
        """The answer, asked for again while the server is busy."""
        for attempt in range(1, self._retry.attempts + 1):
            try:
                return (yield ask)
            except client_failures() as error:
                failure = error_from_client(self.url, error)
                if attempt == self._retry.attempts or not isinstance(failure, ServerBusyError):
                    raise failure from error
            yield self._retry.delay_seconds(attempt)
        raise AssertionError("at least one attempt")


def error_from_client(url: ServerUrl, error: BaseException) -> HspanError:
    """The one line for what a Triton client raised."""
    from tritonclient.utils import InferenceServerException

    late = HspanError(url.text, "did not answer in time", "give it longer, or a smaller picture")
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return late
    if not isinstance(error, InferenceServerException):
        return _unreachable(url, f"{type(error).__name__}: {error}")
    status, message = str(error.status()), (error.message() or "it gives no reason")[:_LONGEST_REASON]
    connecting = any(word in message for word in _CONNECTING)
    full = status == "StatusCode.RESOURCE_EXHAUSTED" and "larger than" not in message
    if full or (status in _BUSY and not connecting):
        return ServerBusyError(url.text, message, None if "again" in message else "try again later")
    if status == "StatusCode.DEADLINE_EXCEEDED" or "timed out" in message:
        return late
    if status == "StatusCode.UNAVAILABLE":
        return _unreachable(url, message)
    return HspanError(url.text, message)


def _unreachable(url: ServerUrl, why: str) -> HspanError:
    short = " ".join(why.split())[:160]
    return ServerUnreachableError(
        url.text, f"no server answers there ({short})", "start one with trt-hspan serve"
    )


def client_failures() -> tuple[type[BaseException], ...]:
    """What tritonclient and the libraries below it raise when a request fails."""
    from tritonclient.utils import InferenceServerException

    failures = (InferenceServerException, OSError, HTTPException, asyncio.TimeoutError, EOFError, ValueError)
    aiohttp = sys.modules.get("aiohttp")  # only the asynchronous client over HTTP stands on it
    return failures if aiohttp is None else (*failures, aiohttp.ClientError)
