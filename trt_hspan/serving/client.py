"""A client for servers of this project, on tritonclient: pictures and tensors, HTTP and gRPC, shared memory."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TypeVar

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
# Triton's message about a region that was not registered.
_UNKNOWN_REGION: Final = "Unable to find shared memory region"
# How long Triton may take to let go of one.
_RELEASE_SECONDS: Final = 2.0


class UpscaleClient:
    """Talks to one server. A context manager. Not for several threads at a time: make one for each.

    Args:
        url: http://HOST:PORT or grpc://HOST:PORT, or https:// and grpcs://.
        model: the model; None takes the server's one picture model, or raw model for tensors.
        timeout_seconds: for one attempt.
        retry: when a busy server is asked again.
        shared_memory: send tensors and pictures, and get tensors, through /dev/shm; for a server on this machine.
            One region is kept, as large as the largest request so far.

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
        self._region: _Region | None = None
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
        try:
            self._drop_region()
        finally:
            self._client.close()

    def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        try:
            return bool(self._client.is_server_ready())
        except client_failures():
            return False

    def model_names(self) -> list[str]:
        """The models that are ready. Raises HspanError: the server cannot be reached."""
        options = {"as_json": True} if self.url.protocol == "grpc" else {}
        return names_from_statistics(
            self._patiently(lambda: self._client.get_inference_statistics(**options))
        )

    def upscale_picture(self, picture: bytes, *, format: str = "png") -> bytes:
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
        require_picture(picture, format)
        model = self._model_or_only(image=True)
        tensor = image_input(self._module, picture)
        values = np.frombuffer(picture, np.uint8)[None]
        result, _ = self._sent(model, tensor, values, "upscaled", parameters={"format": format})
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
        shape = (n, 3, height * (scale or 1), width * (scale or 1))
        room = 0 if scale is None or not self._shared else 4 * math.prod(shape)
        result, region = self._sent(model, tensor, batch, "output", room=room)
        if region is None or not room:
            return np.array(result.as_numpy("output"))
        return region.output(shape, offset=batch.nbytes)

    def _sent(
        self,
        model: str,
        tensor: Any,
        values: npt.NDArray[Any],
        output: str,
        *,
        room: int = 0,
        parameters: dict[str, Any] | None = None,
    ) -> tuple[Any, _Region | None]:
        """The answer, and the region that contains the input and with `room` bytes the output."""
        if not self._shared:
            return self._patiently(lambda: self._infer(model, tensor, output, parameters)), None
        region = self._shared_region(values, room)
        tensor.set_shared_memory(region.name, values.nbytes)
        place = (region, values.nbytes, room) if room else None

        def ask() -> Any:
            try:
                return self._infer(model, tensor, output, parameters, place)
            except client_failures() as error:
                if _UNKNOWN_REGION not in str(error):
                    raise
                self._register(region)  # the server was started anew
                return self._infer(model, tensor, output, parameters, place)

        try:
            return self._patiently(ask), region
        except BaseException:
            self._drop_region()  # a server that is late must not write into the next request's
            raise

    def _model_or_only(self, *, image: bool) -> str:
        if self._model is not None:
            return self._model
        if image not in self._found:
            self._found[image] = model_of_kind(self.model_names(), self.url, image=image)
        return self._found[image]

    def _infer(
        self,
        model: str,
        tensor: Any,
        output: str,
        parameters: dict[str, Any] | None,
        place: tuple[_Region, int, int] | None = None,
    ) -> Any:
        requested = self._module.InferRequestedOutput(output)
        if place is not None:
            region, offset, room = place
            requested.set_shared_memory(region.name, room, offset=offset)
        options: dict[str, Any] = {"parameters": parameters or None}
        if self.url.protocol == "grpc":
            options["client_timeout"] = self._timeout
        return self._client.infer(model, [tensor], outputs=[requested], **options)

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

    def _shared_region(self, values: npt.NDArray[Any], room: int) -> _Region:
        """The region with these values in it, registered; it is created again only when it has become too small."""
        size = values.nbytes + room
        if self._region is not None and self._region.size < size:
            self._drop_region()
        if self._region is None:
            self._region = _Region(size)
            self._register(self._region)
        self._region.fill(values)
        return self._region

    def _register(self, region: _Region) -> None:
        self._told(lambda: self._client.register_system_shared_memory(region.name, region.key, region.size))

    def _drop_region(self) -> None:
        """Gives the region up, on both sides; Triton lets go of one a moment after it has answered."""
        region, self._region = self._region, None
        if region is None:
            return
        deadline = time.monotonic() + _RELEASE_SECONDS
        try:
            while True:
                try:
                    self._client.unregister_system_shared_memory(region.name)
                    return
                except client_failures() as error:
                    if "in use" not in str(error) or time.monotonic() > deadline:
                        return
                    time.sleep(0.002)
        finally:
            region.close()


class _Region:
    """One shared-memory region: the input, then space for the output."""

    def __init__(self, size: int) -> None:
        from tritonclient.utils import shared_memory

        self._library = shared_memory
        self.name = f"client_{os.getpid()}_{uuid.uuid4().hex}"
        self.key, self.size = f"/{self.name}", size
        self._handle = shared_memory.create_shared_memory_region(self.name, self.key, size)

    def fill(self, values: npt.NDArray[Any]) -> None:
        self._library.set_shared_memory_region(self._handle, [np.ascontiguousarray(values)])

    def output(self, shape: tuple[int, ...], *, offset: int) -> npt.NDArray[np.float32]:
        values = self._library.get_contents_as_numpy(self._handle, np.float32, list(shape), offset=offset)
        return np.array(values)

    def close(self) -> None:
        self._library.destroy_shared_memory_region(self._handle)
