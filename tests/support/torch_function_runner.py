"""A PyTorch function in the shape of a runner, and small networks whose properties follow from their formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from trt_hspan.runtime.runner import Float32Array, Runner, ShapeLimit

Network = Callable[[torch.Tensor], torch.Tensor]

# A sum of a hundred float32 products of size one differs by less than this when its order changes.
ROUNDING = 2e-5


class TorchFunctionRunner(Runner):
    """Runs a function on tensors; may limit shapes, claim memory, and run out of it.

    Args:
        function: (N, 3, H, W) -> (N, 3, scale * H, scale * W).
        scale: of both axes.
        low, high: the one pair of `shape_ranges`.
        memory: bytes that `memory_bytes` claims for each pixel.
        most_pixels: a run on more raises `failure`.
        failure: what to raise then.
    """

    def __init__(
        self,
        function: Network,
        scale: int,
        *,
        low: ShapeLimit = (None, 3, None, None),
        high: ShapeLimit = (None, 3, None, None),
        memory: int = 0,
        most_pixels: int | None = None,
        failure: Callable[[], Exception] = MemoryError,
    ) -> None:
        self.where, self.name, self.precision, self.emulated = "function", "torch", "fp32", False
        self.scale: int | None = scale
        self._function, self._low, self._high, self._memory = function, low, high, memory
        self.most_pixels, self._failure = most_pixels, failure
        self.shapes: list[tuple[int, ...]] = []

    @property
    def shape_ranges(self) -> tuple[tuple[ShapeLimit, ShapeLimit], ...]:
        return ((self._low, self._high),)

    def require_shape(self, shape: tuple[int, ...], what: object) -> None:
        limits = zip(self._low, shape, self._high, strict=True)
        assert all((low or 1) <= size <= (high or size) for low, size, high in limits), shape

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def infer(self, batch: Float32Array) -> Float32Array:
        self.shapes.append(batch.shape)
        if self.most_pixels is not None and batch.shape[2] * batch.shape[3] > self.most_pixels:
            raise self._failure()
        with torch.inference_mode():
            output: Float32Array = self._function(torch.from_numpy(batch)).numpy()
        return output

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        return self._memory * shape[2] * shape[3]


def convolutions(scale: int, *, layers: int = 2, seed: int = 0) -> Network:
    """3x3 convolutions and a pixel shuffle: an output pixel depends on inputs at most `layers` pixels away."""
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn((6, 3 if i == 0 else 6, 3, 3), generator=generator) * 0.2 for i in range(layers - 1)
    ]
    last = torch.randn((3 * scale**2, 6 if layers > 1 else 3, 3, 3), generator=generator) * 0.2

    def network(x: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = torch.relu(F.conv2d(x, weight, padding=1))
        return F.pixel_shuffle(F.conv2d(x, last, padding=1), scale)

    return network


def global_network(scale: int, *, seed: int = 0) -> Network:
    """Convolutions, plus the mean of everything that the network sees: like attention, it notices the tile."""
    local = convolutions(scale, seed=seed)
    return lambda x: local(x) + 0.1 * x.mean(dim=(2, 3), keepdim=True)


def batch(height: int, width: int, *, n: int = 1, seed: int = 0) -> Float32Array:
    """(N, 3, H, W), 0..1."""
    return np.random.default_rng(seed).random((n, 3, height, width), dtype=np.float32)


def untiled(function: Network, x: Float32Array) -> Float32Array:
    """What it gives of the whole."""
    with torch.inference_mode():
        return function(torch.from_numpy(x)).numpy()
