"""What the clients have in common: URLs, requests, errors, and when to try again. Sends nothing."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError

Protocol = Literal["http", "grpc"]
PICTURE_FORMATS: Final = ("png", "jpeg", "webp", "bmp", "tiff")

_BUSY: Final = ("503", "429", "StatusCode.UNAVAILABLE")
_CONNECTING: Final = ("connect", "Connection", "reset by peer", "Socket closed", "DNS")


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


def error_from_client(url: ServerUrl, error: BaseException) -> HspanError:
    """The one line for what a Triton client raised."""
    from tritonclient.utils import InferenceServerException

    late = HspanError(url.text, "did not answer in time", "give it longer, or a smaller picture")
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return late
    if not isinstance(error, InferenceServerException):
        return _unreachable(url, f"{type(error).__name__}: {error}")
    status, message = str(error.status()), error.message() or "it gives no reason"
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
        url.text, f"no Triton server answers there ({short})", "start one with trt-hspan serve"
    )


def client_failures() -> tuple[type[BaseException], ...]:
    """What tritonclient and the libraries below it raise when a request fails."""
    import aiohttp
    from tritonclient.utils import InferenceServerException

    return (
        InferenceServerException,
        OSError,
        asyncio.TimeoutError,
        aiohttp.ClientError,
        EOFError,
        ValueError,
    )


def image_input(module: Any, picture: bytes) -> Any:
    """The `image` tensor of a picture file, for tritonclient.http or tritonclient.grpc."""
    values = np.frombuffer(picture, np.uint8)[None]
    tensor = module.InferInput("image", list(values.shape), "UINT8")
    tensor.set_data_from_numpy(values)
    return tensor


def raw_input(module: Any, batch: npt.NDArray[np.float32]) -> Any:
    """The `input` tensor of a batch."""
    tensor = module.InferInput("input", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(np.ascontiguousarray(batch))
    return tensor


def require_picture(picture: bytes, kind: str) -> None:
    """Checks what can be checked before anything is sent. Raises: UsageError, HspanError."""
    if kind not in PICTURE_FORMATS:
        raise UsageError("--format", f"got {kind!r}, expected one of {', '.join(PICTURE_FORMATS)}")
    if not picture:
        raise HspanError("picture", "is empty (0 bytes)", "name another one")


def require_batch(batch: npt.NDArray[Any]) -> None:
    """Raises: HspanError unless it is (N, 3, H, W) float32."""
    if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1] != 3:
        raise HspanError("input", f"is {batch.shape} {batch.dtype}, expected (N, 3, H, W) float32")


def model_of_kind(names: list[str], url: ServerUrl, *, image: bool) -> str:
    """The one picture model, or the one raw model, of a server."""
    candidates = [name for name in names if name.endswith("_image") == image]
    kind = "picture" if image else "raw"
    if not candidates:
        raise HspanError(url.text, f"serves no {kind} model", "name one with --model")
    if len(candidates) > 1:
        raise HspanError(
            url.text, f"serves several {kind} models: {', '.join(candidates)}", "name one with --model"
        )
    return candidates[0]


def names_from_statistics(statistics: Any) -> list[str]:
    """Models that are loaded, from Triton's statistics: a careful server restricts access to the repository index."""
    return sorted({entry["name"] for entry in statistics.get("model_stats", [])})
