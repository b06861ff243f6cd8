"""Runners in numpy, whose results are known without a network."""

from __future__ import annotations

import numpy as np

from trt_hspan.runtime.runner import Float32Array, Runner, RunnerPrecision


class NearestRunner(Runner):
    """Repeats every pixel `scale` times and adds a constant; may spoil one value, or claim memory.

    Args:
        scale: of both axes.
        offset: added to every value.
        spoil: replaces the first value of every output.
        memory: what `memory_bytes` says.
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        offset: float = 0.0,
        spoil: float | None = None,
        memory: int = 0,
        precision: RunnerPrecision = "fp32",
        emulated: bool = False,
        source_sha256: str | None = None,
    ) -> None:
        self.where, self.name, self.precision, self.emulated = "nearest", "numpy", precision, emulated
        self.scale = scale
        self.source_sha256 = source_sha256
        self.factor, self.offset, self.spoil, self.memory = scale, offset, spoil, memory
        self.active = False
        self.calls: list[tuple[int, ...]] = []

    def activate(self) -> None:
        self.active = True

    def deactivate(self) -> None:
        self.active = False

    def infer(self, batch: Float32Array) -> Float32Array:
        assert self.active
        assert batch.flags.c_contiguous
        self.calls.append(batch.shape)
        output = batch.repeat(self.factor, axis=2).repeat(self.factor, axis=3) + np.float32(self.offset)
        if self.spoil is not None:
            output[0, 0, 0, 0] = self.spoil
        return output

    def memory_bytes(self, shape: tuple[int, int, int, int]) -> int:
        return self.memory
