"""Rounding weights up or down so that a convolution's output changes least.

Nearest rounding is the best for each weight alone. A convolution sums weights times inputs that resemble
each other (neighboring pixels of a picture), so errors of one sign add up. With the second moments H = E[x x^T] of
the input patches x, the expected squared error of an output is d^T H d for weight errors d: the quadratic task of
Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, section 3.1. It is solved here
by coordinate descent, the one flip that gains most until none gains, from two starts: nearest rounding, and rounding
weight by weight with the error so far taken into account (Frantar et al., "GPTQ", ICLR 2023, section 3.3). Each output
channel keeps the better end. Deterministic.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from trt_hspan.precision.quantize.scales import LARGEST, FloatArray

#: Patches taken from a tile for each layer; neighboring ones are much the same.
PATCHES_PER_TILE: Final = 1024
# Part of the mean moment that is added to each, so that the inverse exists; GPTQ's own value.
_DAMPING: Final = 0.01
# Weights between two updates of all later ones.
_BLOCK: Final = 64

_Float64 = npt.NDArray[np.float64]


class InputMoments:
    """Second moments of a convolution's input patches, summed up tile by tile.

    Args:
        node: a convolution without groups, dilation or stride.
        weight_shape: (outputs, inputs, height, width) of its weights.
    """

    def __init__(self, node: onnx.NodeProto, weight_shape: tuple[int, ...]) -> None:
        _, channels, height, width = weight_shape
        self.tensor = node.input[0]
        self._kernel = (height, width)
        self._pads = _integers(node, "pads", (0, 0, 0, 0))
        size = channels * height * width
        self._sum = np.zeros((size, size))
        self._count = 0

    @staticmethod
    def is_possible(node: onnx.NodeProto) -> bool:
        """Whether a node is a convolution of the kind that this class takes."""
        return (
            node.op_type == "Conv"
            and set(_integers(node, "strides", (1, 1))) == {1}
            and set(_integers(node, "dilations", (1, 1))) == {1}
            and _integers(node, "group", (1,)) == (1,)
        )

    def add(self, values: FloatArray) -> None:
        """Takes the input (1, C, H, W) of one tile."""
        top, left, bottom, right = self._pads
        padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self._kernel, (1, 2))
        _, height, width = windows.shape[:3]
        step = max(1, -(-height * width // PATCHES_PER_TILE))
        positions = np.arange(0, height * width, step)
        patches = windows[:, positions // width, positions % width].transpose(1, 0, 2, 3)
        flat = patches.reshape(len(positions), -1).astype(np.float32)
        self._sum += flat.T @ flat
        self._count += len(positions)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """E[x x^T], (K, K) with K = C * height * width."""
        moments: npt.NDArray[np.float64] = self._sum / max(self._count, 1)
        return moments


def best_flips(
    weight: FloatArray, scales: npt.NDArray[np.float64], moments: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Which INT8 weights are better rounded to their other neighbor.

    Args:
        weight: (O, C, h, w).
        scales: (O,).
        moments: (K, K), K = C * h * w.

    Returns:
        Booleans of the weights' shape. With them d^T H d is never larger than without, for any output channel.
    """
    ratio = weight.astype(np.float64).reshape(weight.shape[0], -1) / scales[:, None]
    nearest = np.clip(np.rint(ratio), -LARGEST["int8"], LARGEST["int8"])
    direction = np.where(ratio > nearest, 1.0, -1.0)
    # What was clamped would leave the range too.
    allowed = (ratio != nearest) & (np.abs(nearest + direction) <= LARGEST["int8"])
    steps = np.where(allowed, direction, 0.0)
    errors = nearest - ratio
    flipped = _descended(errors, steps, moments, np.zeros(ratio.shape, dtype=bool))
    if not moments.any():
        return flipped.reshape(weight.shape)
    sequential = _descended(errors, steps, moments, _sequential_flips(errors, steps, moments))
    better = _energy(errors + sequential * steps, moments) < _energy(errors + flipped * steps, moments)
    return np.where(better[:, None], sequential, flipped).reshape(weight.shape)


def _descended(
    errors: _Float64, steps: _Float64, moments: _Float64, start: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Coordinate descent.

    Args:
        errors: (O, K), of nearest rounding, in units of a channel's scale.
        steps: (O, K), what a flip adds to an error; 0 where there is none.
        start: (O, K) flips to begin with.
    """
    flipped = start.copy()
    slope = (errors + flipped * steps) @ moments
    curvature = np.diag(moments)
    channels = np.arange(len(errors))
    while True:
        step = np.where(flipped, -steps, steps)
        gain = np.where(step != 0.0, curvature + 2.0 * step * slope, 0.0)
        best = gain.argmin(axis=1)
        # A gain below rounding noise is none, or two flips could undo each other for ever.
        gains = gain[channels, best] < -1e-9 * curvature.max(initial=0.0)
        if not gains.any():
            return flipped
        rows, columns = channels[gains], best[gains]
        slope[rows] += step[rows, columns][:, None] * moments[columns]
        flipped[rows, columns] ^= True


def _sequential_flips(errors: _Float64, steps: _Float64, moments: _Float64) -> npt.NDArray[np.bool_]:
    """Rounds weight by weight, largest moment first; each is rounded where the errors of those before it, as far as it
    can make up for them, come nearest to 0. Arguments as of `_descended`; `moments` is not all 0."""
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments + _DAMPING * np.diag(moments).mean() * np.eye(len(moments))
    # With an upper triangular U, U^T U = H^-1: row k is how the rest compensates an error of weight k.
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    base, step = errors[:, order], steps[:, order]
    correction = np.zeros_like(base)  # of each later weight, for the errors so far
    flips = np.zeros(base.shape, dtype=bool)
    for begin in range(0, base.shape[1], _BLOCK):
        end = min(begin + _BLOCK, base.shape[1])
        left = np.empty((len(base), end - begin))
        for k in range(begin, end):
            kept = base[:, k] - correction[:, k]
            flips[:, k] = np.abs(kept + step[:, k]) < np.abs(kept)
            error = (kept + np.where(flips[:, k], step[:, k], 0.0)) / upper[k, k]
            correction[:, k + 1 : end] += np.outer(error, upper[k, k + 1 : end])
            left[:, k - begin] = error
        correction[:, end:] += left @ upper[begin:end, end:]
    result = np.empty_like(flips)
    result[:, order] = flips
    return result


def _energy(errors: _Float64, moments: _Float64) -> _Float64:
    """d^T H d of each row: (O, K) and (K, K) -> (O,)."""
    energy: _Float64 = np.einsum("ok,ok->o", errors @ moments, errors)
    return energy


def _integers(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    for attribute in node.attribute:
        if attribute.name == name:
            return tuple(attribute.ints) or (attribute.i,)
    return default
