"""The client for programs without asyncio: `async_client`, whose loop runs in a thread that all clients share."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.serving.async_client import AsyncUpscaleClient
from trt_hspan.serving.client_protocol import RetryPolicy

_T = TypeVar("_T")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="clients", daemon=True).start()
    return loop


os.register_at_fork(after_in_child=_loop.cache_clear)  # threads stay behind


class UpscaleClient:
    """Talks to one server; several threads may share it. A context manager.

    Arguments and errors as `AsyncUpscaleClient`.
    """

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
        self._client = AsyncUpscaleClient(
            url,
            model=model,
            timeout_seconds=timeout_seconds,
            retry=retry,
            token=token,
            connections=connections,
        )

    def __enter__(self) -> UpscaleClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        _result(self._client.close())

    def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        return _result(self._client.is_ready())

    def model_names(self) -> list[str]:
        """As `AsyncUpscaleClient.model_names`."""
        return _result(self._client.model_names())

    def upscale_picture(self, picture: bytes, *, format: str = "png") -> bytes:
        """Upscales a picture file. Arguments, result and errors as `AsyncUpscaleClient.upscale_picture`."""
        return _result(self._client.upscale_picture(picture, format=format))

    def upscale_tensor(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Runs the network on a batch. Arguments, result and errors as `AsyncUpscaleClient.upscale_tensor`."""
        return _result(self._client.upscale_tensor(batch))


def _result(work: Coroutine[Any, Any, _T]) -> _T:
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    finally:
        future.cancel()  # when the wait was interrupted
