"""The client for asyncio. As `client`, without shared memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.serving.client_protocol import (
    RetryPolicy,
    ServerBusyError,
    client_failures,
    error_from_client,
    image_input,
    model_of_kind,
    names_from_statistics,
    raw_input,
    require_batch,
    require_picture,
    server_url_from_text,
)

_T = TypeVar("_T")


class AsyncUpscaleClient:
    """Talks to one server, many requests at a time. An asynchronous context manager.

    Args:
        url, model, timeout_seconds, retry: as `UpscaleClient`.
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
        connections: int = 64,
    ) -> None:
        self.url = server_url_from_text(url)
        self._model, self._timeout, self._retry = model, timeout_seconds, retry or RetryPolicy()
        self._connections = connections
        self._found: dict[bool, str] = {}  # the picture model, the raw model
        self._client: Any = None
        self._module: Any = None

    async def __aenter__(self) -> AsyncUpscaleClient:
        if self.url.protocol == "grpc":
            import tritonclient.grpc.aio as module

            self._client = module.InferenceServerClient(self.url.address, ssl=self.url.secure)
        else:
            import tritonclient.http.aio as module

            self._client = module.InferenceServerClient(
                self.url.address,
                ssl=self.url.secure,
                conn_limit=self._connections,
                conn_timeout=self._timeout,
            )
        self._module = module
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        try:
            return bool(await self._client.is_server_ready())
        except client_failures():
            return False

    async def model_names(self) -> list[str]:
        """The models that are ready. Raises: HspanError when the server cannot be reached."""
        options = {"as_json": True} if self.url.protocol == "grpc" else {}
        return names_from_statistics(
            await self._patiently(lambda: self._client.get_inference_statistics(**options))
        )

    async def upscale_picture(self, picture: bytes, *, format: str = "png") -> bytes:
        """Upscales a picture file. Arguments, result and errors as `UpscaleClient.upscale_picture`."""
        require_picture(picture, format)
        model = await self._model_or_only(image=True)
        tensor = image_input(self._module, picture)
        result = await self._patiently(lambda: self._infer(model, tensor, {"format": format}))
        return bytes(result.as_numpy("upscaled").tobytes())

    async def upscale_tensor(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Runs the network on a batch. Arguments, result and errors as `UpscaleClient.upscale_tensor`."""
        require_batch(batch)
        model = await self._model_or_only(image=False)
        tensor = raw_input(self._module, batch)
        result = await self._patiently(lambda: self._infer(model, tensor, {}))
        return np.array(result.as_numpy("output"))

    async def _model_or_only(self, *, image: bool) -> str:
        if self._model is not None:
            return self._model
        if image not in self._found:
            self._found[image] = model_of_kind(await self.model_names(), self.url, image=image)
        return self._found[image]

    def _infer(self, model: str, tensor: Any, parameters: dict[str, Any]) -> Awaitable[Any]:
        options: dict[str, Any] = {"parameters": parameters or None}
        if self.url.protocol == "grpc":
            options["client_timeout"] = self._timeout
        answer: Awaitable[Any] = self._client.infer(model, [tensor], **options)
        return answer

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        for attempt in range(1, self._retry.attempts):
            try:
                return await self._told(ask)
            except ServerBusyError:
                await asyncio.sleep(self._retry.delay_seconds(attempt))
        return await self._told(ask)

    async def _told(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await ask()
        except client_failures() as error:
            raise error_from_client(self.url, error) from error
