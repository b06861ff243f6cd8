"""A client for servers of this project, on tritonclient: pictures and tensors, HTTP and gRPC, shared memory."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
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
    names_from_index,
    raw_input,
    require_batch,
    require_picture,
    server_url_from_text,
)

_T = TypeVar("_T")


class UpscaleClient:
    """Talks to one server. A context manager. Not for several threads at a time: make one for each.

    Args:
        url: http://HOST:PORT or grpc://HOST:PORT, or https:// and grpcs://.
        model: the model; None takes the server's one picture model, or raw model for tensors.
        timeout_seconds: for one attempt.
        retry: when a busy server is asked again.
        shared_memory: send tensors and pictures, and get tensors, through /dev/shm; for a server on this machine.

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
        shared_memory: bool = False,
    ) -> None:
        self.url = server_url_from_text(url)
        self._model, self._timeout, self._retry = model, timeout_seconds, retry or RetryPolicy()
        self._shared = shared_memory
        self._found: dict[bool, str] = {}  # the picture model, the raw model
        if self.url.protocol == "grpc":
            import tritonclient.grpc as module

            self._client = module.InferenceServerClient(self.url.address, ssl=self.url.secure)
        else:
            import tritonclient.http as module

            self._client = module.InferenceServerClient(
                self.url.address,
                ssl=self.url.secure,
                network_timeout=timeout_seconds,
                connection_timeout=min(timeout_seconds, 10.0),
            )
        self._module = module

    def __enter__(self) -> UpscaleClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        try:
            return bool(self._client.is_server_ready())
        except client_failures():
            return False

    def model_names(self) -> list[str]:
        """The models that are ready.

        Raises:
            HspanError: the server cannot be reached.
        """
        options = {"as_json": True} if self.url.protocol == "grpc" else {}
        return names_from_index(self._patiently(lambda: self._client.get_model_repository_index(**options)))

    def upscale_picture(self, picture: bytes, *, format: str = "png") -> bytes:
        """Up-scales a picture file.

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
        require_picture(picture, format)
        model = self._model_or_only(image=True)
        tensor = image_input(self._module, picture)
        with self._in_shared_memory(tensor, np.frombuffer(picture, np.uint8)[None]):
            result = self._patiently(lambda: self._infer(model, tensor, "upscaled", {"format": format}))
        return bytes(result.as_numpy("upscaled").tobytes())

    def upscale_tensor(
        self, batch: npt.NDArray[np.float32], *, scale: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Runs the network on a batch.

        Args:
            batch: (N, 3, H, W) float32 RGB, nominally in [0, 1].
            scale: the network's; with shared memory, the result comes through it too when this is given.

        Returns:
            (N, 3, scale * H, scale * W) float32.

        Raises:
            HspanError: as `upscale_picture`; or the batch has another shape or type than the server takes.
        """
        require_batch(batch)
        model = self._model_or_only(image=False)
        tensor = raw_input(self._module, batch)
        n, _, height, width = batch.shape
        room = 0 if scale is None else 4 * n * 3 * height * width * scale**2
        with self._in_shared_memory(tensor, batch, room=room) as region:
            result = self._patiently(lambda: self._infer(model, tensor, "output", {}, region))
            if region is None:
                return np.array(result.as_numpy("output"))
            return region.output((n, 3, height * (scale or 1), width * (scale or 1)))

    def _model_or_only(self, *, image: bool) -> str:
        if self._model is not None:
            return self._model
        if image not in self._found:
            self._found[image] = model_of_kind(self.model_names(), self.url, image=image)
        return self._found[image]

    def _infer(
        self, model: str, tensor: Any, output: str, parameters: dict[str, Any], region: _Region | None = None
    ) -> Any:
        wanted = self._module.InferRequestedOutput(output)
        if region is not None:
            wanted.set_shared_memory(region.name, region.room, offset=region.offset)
        options: dict[str, Any] = {"parameters": parameters or None}
        if self.url.protocol == "grpc":
            options["client_timeout"] = self._timeout
        return self._client.infer(model, [tensor], outputs=[wanted], **options)

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        for attempt in range(1, self._retry.attempts):
            try:
                return self._told(ask)
            except ServerBusyError:
                time.sleep(self._retry.delay_seconds(attempt))
        return self._told(ask)

    def _told(self, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except client_failures() as error:
            raise error_from_client(self.url, error) from error

    @contextlib.contextmanager
    def _in_shared_memory(
        self, tensor: Any, values: npt.NDArray[Any], *, room: int = 0
    ) -> Iterator[_Region | None]:
        """Puts the tensor's values into a region of /dev/shm, registered while the block runs.

        Yields:
            The region when it has room for the result, else None.
        """
        if not self._shared:
            yield None
            return
        region = _Region(values, room)
        try:
            self._told(
                lambda: self._client.register_system_shared_memory(region.name, region.key, region.size)
            )
            try:
                tensor.set_shared_memory(region.name, values.nbytes)
                yield region if room else None
            finally:
                self._told(lambda: self._client.unregister_system_shared_memory(region.name))
        finally:
            region.close()


class _Region:
    """One shared-memory region: the input, then room for the output."""

    def __init__(self, values: npt.NDArray[Any], room: int) -> None:
        from tritonclient.utils import shared_memory

        self._library = shared_memory
        self.name = f"client_{os.getpid()}_{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.offset, self.room, self.size = values.nbytes, room, values.nbytes + room
        self._handle = shared_memory.create_shared_memory_region(self.name, self.key, self.size)
        shared_memory.set_shared_memory_region(self._handle, [np.ascontiguousarray(values)])

    def output(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        values = self._library.get_contents_as_numpy(
            self._handle, np.float32, list(shape), offset=self.offset
        )
        return np.array(values)

    def close(self) -> None:
        self._library.destroy_shared_memory_region(self._handle)
