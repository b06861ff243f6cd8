"""The client for servers of this project and for Triton, on tritonclient, for asyncio: many requests at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from importlib import import_module
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.serving.client_protocol import (
    PICTURE_FORMATS,
    TOKEN_VARIABLE,
    RetryPolicy,
    ServerBusyError,
    client_failures,
    error_from_client,
    server_url_from_text,
)


class AsyncUpscaleClient:
    """Talks to one server, in one event loop. An asynchronous context manager.

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
        self._models: dict[bool, str] = {}  # the picture model, the raw model
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self._options: dict[str, Any] = {"headers": {"authorization": f"Bearer {token}"} if token else None}
        self._opening: dict[str, Any] = {"ssl": self.url.secure}
        if self.url.protocol == "grpc":
            self._options["client_timeout"] = timeout_seconds
        else:
            self._opening |= {"conn_limit": connections, "conn_timeout": timeout_seconds}
        self._module = import_module(f"tritonclient.{self.url.protocol}.aio")
        self._client: Any = None

    async def __aenter__(self) -> AsyncUpscaleClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        try:
            return bool(await self._opened().is_server_ready(**self._options))
        except client_failures():
            return False

    async def model_names(self) -> list[str]:
        """The models that are ready, from statistics: a careful server restricts access to Triton's index.

        Raises:
            HspanError: the server cannot be reached.
        """
        options = self._options | ({"as_json": True} if self.url.protocol == "grpc" else {})
        statistics = await self._patiently(lambda: self._opened().get_inference_statistics(**options))
        entries = statistics.get("model_stats", []) if isinstance(statistics, dict) else []
        return sorted({str(entry["name"]) for entry in entries})

    async def upscale_picture(self, picture: bytes, *, format: str = "png") -> bytes:
        """Upscales a picture file.

        Args:
            picture: a PNG, JPEG, WebP, BMP, TIFF, GIF or PPM file.
            format: of the result: png, jpeg, webp, bmp or tiff.

        Returns:
            The file of the result.

        Raises:
            HspanError: the server refuses the picture, stays busy for all attempts (`ServerBusyError`) or cannot
                be reached (`ServerUnreachableError`).
            UsageError: an unknown format.
        """
        if format not in PICTURE_FORMATS:
            raise UsageError("--format", f"got {format!r}, expected one of {', '.join(PICTURE_FORMATS)}")
        if not picture:
            raise HspanError("picture", "is empty (0 bytes)", "name another one")
        values = np.frombuffer(picture, np.uint8)[None]
        result = await self._infer("image", values, "UINT8", "upscaled", {"format": format})
        return bytes(result.tobytes())

    async def upscale_tensor(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Runs the network on a batch.

        Args:
            batch: (N, 3, H, W) float32 RGB, nominally in [0, 1].

        Returns:
            (N, 3, scale * H, scale * W) float32.

        Raises:
            HspanError: as `upscale_picture`; or the batch has another shape or type than the server takes.
        """
        if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1] != 3:
            raise HspanError("input", f"is {batch.shape} {batch.dtype}, expected (N, 3, H, W) float32")
        return np.array(await self._infer("input", np.ascontiguousarray(batch), "FP32", "output", None))

    def _opened(self) -> Any:
        """Triton's own client of the URL's protocol, which belongs to the loop that it is opened in."""
        if self._client is None:
            self._client = self._module.InferenceServerClient(self.url.address, **self._opening)
        return self._client

    async def _infer(
        self, name: str, values: npt.NDArray[Any], kind: str, output: str, parameters: dict[str, Any] | None
    ) -> npt.NDArray[Any]:
        model = self._model or await self._only_model(image=name == "image")
        tensor = self._module.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        answer = await self._patiently(
            lambda: self._opened().infer(model, [tensor], parameters=parameters, **self._options)
        )
        try:
            result: npt.NDArray[Any] | None = answer.as_numpy(output)
        except (AttributeError, KeyError, TypeError, ValueError):  # not of this protocol
            result = None
        if result is None:
            what = f"{model} answered without the tensor {output}"
            raise HspanError(self.url.text, what, "name another with --model")
        return result

    async def _only_model(self, *, image: bool) -> str:
        if image not in self._models:
            candidates = [name for name in await self.model_names() if name.endswith("_image") == image]
            if len(candidates) != 1:
                kind = "picture" if image else "raw"
                what = f"several {kind} models: {', '.join(candidates)}" if candidates else f"no {kind} model"
                raise HspanError(self.url.text, f"serves {what}", "name one with --model")
            self._models[image] = candidates[0]
        return self._models[image]

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer, asked for again while the server is busy."""
        attempt = 1
        while True:
            try:
                return await ask()
            except client_failures() as error:
                failure = error_from_client(self.url, error)
                if attempt == self._retry.attempts or not isinstance(failure, ServerBusyError):
                    raise failure from error
            await asyncio.sleep(self._retry.delay_seconds(attempt))
            attempt += 1
