"""What the clients say about a server: its URL, when to try again, and one line for each failure."""

from __future__ import annotations

import asyncio
import random
import re
import sys
from dataclasses import dataclass
from typing import Final, Literal

from trt_hspan.errors import HspanError, UsageError

PICTURE_FORMATS: Final = ("png", "jpeg", "webp", "bmp", "tiff")
#: The token that a server was started with, and that its clients send.
TOKEN_VARIABLE: Final = "TRT_HSPAN_TOKEN"

_BUSY: Final = ("503", "429", "StatusCode.UNAVAILABLE")
_CONNECTING: Final = ("connect", "Connection", "reset by peer", "Socket closed", "resolving", "resolution")
_LONGEST_REASON: Final = 300


@dataclass(frozen=True, kw_only=True)
class ServerUrl:
    """Where a server is. `address` is host:port."""

    protocol: Literal["http", "grpc"]
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
    what = f"no server answers there ({' '.join(why.split())[:160]})"
    return ServerUnreachableError(url.text, what, "start one with trt-hspan serve")


def client_failures() -> tuple[type[BaseException], ...]:
    """What tritonclient and the libraries below it raise when a request fails."""
    from tritonclient.utils import InferenceServerException

    failures = (InferenceServerException, OSError, asyncio.TimeoutError, EOFError, ValueError)
    aiohttp = sys.modules.get("aiohttp")  # HTTP alone stands on it
    return failures if aiohttp is None else (*failures, aiohttp.ClientError)
