"""The raw models of a server as one runner, for code inside Triton. Owns the choice of the model and the retry.

Tiles go through the raw model's own queue, so that those of several pictures are batched together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from trt_hspan.errors import HspanError
from trt_hspan.runtime.runner import CHANNELS, Float32Array, Runner, ShapeLimit
from trt_hspan.serving.backend.tensors import array_from_tensor, tensor_from_array

_RETRY_SECONDS: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class RawModel:
    """A raw model and the (N, 3, H, W) that it takes, both ends included."""

    name: str
    min: tuple[int, int, int, int]
    max: tuple[int, int, int, int]

    def takes(self, shape: tuple[int, ...]) -> bool:
        return all(low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True))


class BusyError(HspanError):
    """The raw model's queue stayed full."""


class TileRunner(Runner):
    """Runs tiles on the raw models of the server that this code runs in.

    Args:
        models: the buckets; a tile goes to the smallest that takes it.
        patience_seconds: how long a tile is sent again while the queue is full.
    """

    name, precision, emulated = "Triton", "fp32", False

    def __init__(
        self, pb_utils: Any, models: Sequence[RawModel], *, scale: int, patience_seconds: float
    ) -> None:
        self._pb = pb_utils
        self._models = sorted(models, key=lambda model: model.max[2] * model.max[3])
        self.where = self._models[-1].name
        self.scale = scale
        self._patience = patience_seconds

    @property
    def min_shape(self) -> tuple[int | None, int | None, int | None, int | None]:
        n, c, h, w = (min(model.min[axis] for model in self._models) for axis in range(4))
        return (n, c, h, w)

    @property
    def max_shape(self) -> tuple[int | None, int | None, int | None, int | None]:
        return self._models[-1].max

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]:
        """Of each model: a tile must fit one of them."""
        return tuple((model.min, model.max) for model in self._models)

    def activate(self) -> None:
        pass

    def deactivate(self) -> None:
        pass

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """The result; the network's own memory is the raw model's."""
        n, _, height, width = shape
        return 4 * n * CHANNELS * height * width * (self.scale or 1) ** 2

    def require_shape(self, shape: tuple[int, ...], what: object) -> None:
        if not any(model.takes(shape) for model in self._models):
            raise HspanError(what, f"is {'x'.join(map(str, shape))}, which no model here takes")

    def infer(self, batch: Float32Array) -> Float32Array:
        model = next(model for model in self._models if model.takes(batch.shape))
        deadline = time.monotonic() + self._patience
        while True:
            request = self._pb.InferenceRequest(
                model_name=model.name,
                requested_output_names=["output"],
                inputs=[tensor_from_array(self._pb, "input", batch)],
            )
            response = request.exec()
            if not response.has_error():
                tensor = self._pb.get_output_tensor_by_name(response, "output")
                return np.array(array_from_tensor(tensor))
            error = response.error()
            restarting = "is not healthy" in error.message()  # its process was killed; the server sees to it
            if error.code() != self._pb.TritonError.UNAVAILABLE and not restarting:
                raise HspanError(model.name, error.message())
            if time.monotonic() > deadline:
                raise BusyError(model.name, "stayed too busy for this picture's tiles", "send it again later")
            time.sleep(_RETRY_SECONDS)
