"""Transparency of one tile: what networks see under it, and what it settles whatever a network says.

Under full transparency most programs leave one color, black as a rule, which a network would mix into the edges: there
it gets the colors around them instead. All arithmetic is on integers, so that the C++ runtime gives the same bits.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trt_hspan.media.pixels import luma
from trt_hspan.runtime.runner import Float32Array

_Number = TypeVar("_Number", bound=np.generic)


class TileAlpha:
    """Colors and alpha of a tile, (H, W, 2 or 4) uint8 or uint16.

    Attributes:
        filled: the pixels as a network is to see them. Fully clear ones of the color that most of those have get the
            mean of the visible ones near them, weighted by alpha: of the block of 2x2 pixels around them that has any,
            else of 4x4 and so on.
    """

    def __init__(self, pixels: npt.NDArray[Any]) -> None:
        colors, alpha = pixels[..., :-1], pixels[..., -1]
        white = np.iinfo(pixels.dtype).max
        around = [_around(alpha == level) for level in (0, white)]
        self._clear, self._solid = around
        self._left, self._unused = _unused_color(colors, alpha == 0)
        self._white = np.float32(white)
        self.filled = pixels
        if self._unused.any() and alpha.any():
            self.filled = pixels.copy()
            self.filled[..., :-1][self._unused] = _means(colors, alpha)[self._unused]

    def finished(self, output: Float32Array) -> Float32Array:
        """A network's output (2, 3, s * H, s * W) for `filled`, with what lies, its eight neighbors too, in the clear
        exactly clear, and what lies so in the solid exactly solid. What stayed clear gets back the color it had."""
        scale = output.shape[2] // self._clear.shape[0]
        clear, solid, unused = (
            mask.repeat(scale, axis=0).repeat(scale, axis=1)
            for mask in (self._clear, self._solid, self._unused)
        )
        settled = output.copy()
        settled[1][:, clear], settled[1][:, solid] = 0, 1
        unused &= luma(settled[1])[0] * self._white <= np.float32(0.5)
        settled[0][:, unused] = (self._left.astype(np.float32) / self._white)[:, None]
        return settled


def _around(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Where a mask is set at a pixel and its neighbors within the tile."""
    height, width = mask.shape
    padded = np.pad(mask, 1, constant_values=True)
    rows = padded[:height] & padded[1:-1] & padded[2:]
    return rows[:, :width] & rows[:, 1:-1] & rows[:, 2:]


def _unused_color(
    colors: npt.NDArray[Any], clear: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The color of more than half of the clear pixels, and where it is; nowhere if they have no such color."""
    packed = np.zeros(clear.shape, np.uint64)
    for channel in range(colors.shape[2]):
        packed = packed << np.uint64(16) | colors[..., channel]
    hidden = packed[clear]
    if hidden.size == 0:
        return colors[0, 0], clear
    middle = np.partition(hidden, hidden.size // 2)[hidden.size // 2]  # where a majority is, if there is one
    unused = clear & (packed == middle)
    if 2 * np.count_nonzero(unused) <= hidden.size:
        unused = np.zeros_like(clear)
    return np.array([int(middle) >> 16 * k & 0xFFFF for k in reversed(range(colors.shape[2]))]), unused


def _means(colors: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """For each pixel the rounded mean color of the smallest block around it, of 2x2, 4x4 ..., that is not clear."""
    levels = [(_halved(colors.astype(np.uint32) * alpha[..., None]), _halved(alpha))]
    while max(levels[-1][1].shape) > 1:
        sums, weights = levels[-1]
        levels.append((_halved(sums), _halved(weights)))
    means = np.zeros((1, 1, colors.shape[2]), np.uint64)
    for sums, weights in reversed(levels):
        height, width = weights.shape
        divisors = np.maximum(weights, 1)[..., None]
        own = (2 * sums + divisors) // (2 * divisors)
        means = np.where(weights[..., None] > 0, own, _doubled(means)[:height, :width])
    return _doubled(means)[: alpha.shape[0], : alpha.shape[1]]


def _halved(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Sums of blocks of 2x2 pixels; what is missing at the edges is 0."""
    height, width = values.shape[:2]
    even = np.pad(values, ((0, height % 2), (0, width % 2), *((0, 0),) * (values.ndim - 2)))
    corners = (even[::2, ::2], even[1::2, ::2], even[::2, 1::2], even[1::2, 1::2])
    summed: npt.NDArray[np.uint64] = np.sum(corners, axis=0, dtype=np.uint64)
    return summed


def _doubled(values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    return values.repeat(2, axis=0).repeat(2, axis=1)
