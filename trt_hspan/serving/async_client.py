"""The client for asyncio: `client`, many requests at a time."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.serving.client_protocol import ClientCore, Steps, client_failures

_T = TypeVar("_T")


class AsyncUpscaleClient(ClientCore):
    """Talks to one server, many requests at a time. An asynchronous context manager.

    Arguments and errors as `ClientCore`.
    """

    _asynchronous = True

    async def __aenter__(self) -> AsyncUpscaleClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened().close()

    async def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        return await self._taken(self._ready())

    async def model_names(self) -> list[str]:
        """The models that are ready. Raises HspanError: the server cannot be reached."""
        return await self._taken(self._names())

    async def upscale_picture(self, picture: bytes, *, format: str = "png") -> bytes:
        """Upscales a picture file. Arguments, result and errors as `UpscaleClient.upscale_picture`."""
        return await self._taken(self._picture(picture, format))

    async def upscale_tensor(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Runs the network on a batch. Arguments, result and errors as `UpscaleClient.upscale_tensor`."""
        return await self._taken(self._tensor(batch))

    async def _taken(self, steps: Steps[_T]) -> _T:
        """Awaits the steps one after the other; the result."""
        client = self._opened()
        try:
            step = next(steps)
            while True:
                try:
                    answer = await (asyncio.sleep(step) if isinstance(step, float) else step(client))
                except client_failures() as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: _T = done.value
            return result
