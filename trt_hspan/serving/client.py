"""The client for servers of this project and for Triton, on tritonclient: pictures and tensors, HTTP and gRPC."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.serving.client_protocol import ClientCore, Steps, client_failures

_T = TypeVar("_T")


class UpscaleClient(ClientCore):
    """Talks to one server. A context manager. Not for several threads at a time: make one for each.

    Arguments and errors as `ClientCore`.
    """

    _asynchronous = False

    def __enter__(self) -> UpscaleClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._opened().close()

    def is_ready(self) -> bool:
        """Whether the server answers and all its models are ready."""
        return self._taken(self._ready())

    def model_names(self) -> list[str]:
        """The models that are ready. Raises HspanError: the server cannot be reached."""
        return self._taken(self._names())

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
        return self._taken(self._picture(picture, format))

    def upscale_tensor(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Runs the network on a batch.

        Args:
            batch: (N, 3, H, W) float32 RGB, nominally in [0, 1].

        Returns:
            (N, 3, scale * H, scale * W) float32.

        Raises:
            HspanError: as `upscale_picture`; or the batch has another shape or type than the server takes.
        """
        return self._taken(self._tensor(batch))

    def _taken(self, steps: Steps[_T]) -> _T:
        """Takes the steps one after the other; the result."""
        client = self._opened()
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, float):
                        time.sleep(step)
                    answer = None if isinstance(step, float) else step(client)
                except client_failures() as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: _T = done.value
            return result
