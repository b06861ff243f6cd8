"""The eight flips and turns of a self-ensemble, in the order of the official code's `forward_x8`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from trt_hspan.runtime.runner import Float32Array

TURNS: Final = 8


def ensemble_mean(batch: Float32Array, run: Callable[[Float32Array, int], Float32Array]) -> Float32Array:
    """The mean over all turns of the outputs, each turned back; `run` takes a contiguous turn and its number."""
    # `np.ascontiguousarray` would keep the negative stride of a flipped axis of one pixel, which PyTorch refuses.
    outputs = (inverse_transform(run(transform(batch, index).copy(), index), index) for index in range(TURNS))
    total = next(outputs).copy()
    for output in outputs:
        total += output
    total /= np.float32(TURNS)
    return total


def transform(batch: Float32Array, index: int) -> Float32Array:
    """Turn `index` (0 to 7) of a self-ensemble: mirrored left-right if bit 0, top-bottom if bit 1, then transposed
    if bit 2. (N, 3, H, W) -> the same, or (N, 3, W, H); a view."""
    if index & 1:
        batch = batch[:, :, :, ::-1]
    if index & 2:
        batch = batch[:, :, ::-1]
    return batch.transpose(0, 1, 3, 2) if index & 4 else batch


def inverse_transform(batch: Float32Array, index: int) -> Float32Array:
    """Takes `transform` back; a view."""
    if index & 4:
        batch = batch.transpose(0, 1, 3, 2)
    if index & 2:
        batch = batch[:, :, ::-1]
    return batch[:, :, :, ::-1] if index & 1 else batch
