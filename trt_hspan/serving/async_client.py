"""The client for asyncio: `client`, many requests at a time."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.serving.client_protocol import ClientCore, RetryPolicy, Steps, client_failures

_T = TypeVar("_T")


class AsyncUpscaleClient:
    """Talks to one server, many requests at a time. An asynchronous context manager.

    Args:
        url, model, timeout_seconds, retry, token: as `UpscaleClient`.
        connections: of HTTP, at a time.

    Raises:
        UsageError: not such a URL.
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
        self._core = ClientCore(
            url,
            model=model,
            timeout_seconds=timeout_seconds,
            retry=retry,
            token=token,
            connections=connections,
        )
        self.url = self._core.url
        self._client: Any = None

    async def __aenter__(self) -> AsyncUpscaleClient:
        self._client = self._core.triton_client(asynchronous=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        return await self._taken(self._core.ready())

    async def model_names(self) -> list[str]:
        """The models that are ready. Raises HspanError: the server cannot be reached."""
        return await self._taken(self._core.names())

    async def upscale_picture(self, picture: bytes, *, format: str = "png") -> bytes:
        """Upscales a picture file. Arguments, result and errors as `UpscaleClient.upscale_picture`."""
        return await self._taken(self._core.picture(picture, format))

    async def upscale_tensor(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Runs the network on a batch. Arguments, result and errors as `UpscaleClient.upscale_tensor`."""
        return await self._taken(self._core.tensor(batch))

    async def _taken(self, steps: Steps[_T]) -> _T:
        """Awaits the steps one after the other; the result."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await (asyncio.sleep(step) if isinstance(step, float) else step(self._client))
                except client_failures() as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: _T = done.value
            return result
