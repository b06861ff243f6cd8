"""From ranges to scales, and weights to integers or FP8.

Symmetric quantization with zero points 0, as TensorRT takes it: q = clamp(round(x / scale)), x' = q * scale, rounding
half to even. INT8 uses -127..127 for weights, so that both signs reach equally far, and -128..127 for activations.
FP8 is E4M3FN, whose largest value is 448.
"""

from __future__ import annotations

from typing import Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from trt_hspan.graph import QuantizedType

FloatArray = npt.NDArray[np.floating]

#: The largest magnitude that a quantized value takes.
LARGEST: Final[dict[QuantizedType, float]] = {"int8": 127.0, "fp8": 448.0}
_STORED: Final[dict[QuantizedType, npt.DTypeLike]] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}


def scale_from_range(largest: float, kind: QuantizedType, dtype: npt.DTypeLike) -> float:
    """The scale, representable in `dtype`, that maps `largest` to the end of the quantized range.

    Raises:
        ValueError: the range is not positive and finite, or its scale vanishes or overflows in `dtype`.
    """
    scale = float(np.asarray(largest / LARGEST[kind], dtype=np.float64).astype(dtype))
    if not 0.0 < scale < np.inf:
        raise ValueError(f"a range of {largest:g} has no {kind} scale in {np.dtype(dtype).name}")
    return scale


def weight_scales(weight: FloatArray, kind: QuantizedType, dtype: npt.DTypeLike) -> npt.NDArray[np.float64]:
    """One scale per output channel: (O, ...) -> (O,) float64, each representable in `dtype`.

    A channel of zeros, or one so small that its scale vanishes in `dtype`, gets the smallest number of `dtype`.
    """
    largest = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1).max(axis=1)
    scales: npt.NDArray[np.float64] = (largest / LARGEST[kind]).astype(dtype).astype(np.float64)
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]
    return np.where(scales > 0.0, scales, smallest)


def quantized_weights(
    weight: FloatArray,
    scales: npt.NDArray[np.float64],
    kind: QuantizedType,
    flips: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.generic]:
    """(O, ...) floats and (O,) scales -> (O, ...) int8 or float8_e4m3fn, rounded to nearest.

    Args:
        flips: int8 only: True where a weight is rounded to the other of its two neighbors, same shape as `weight`.
    """
    ratio = weight.astype(np.float64) / scales.reshape(-1, *[1] * (weight.ndim - 1))
    limit = LARGEST[kind]
    if kind == "int8":
        rounded = np.rint(ratio)
        if flips is not None:
            rounded = np.where(flips, rounded + np.where(ratio > rounded, 1.0, -1.0), rounded)
        ratio = rounded
    return np.clip(ratio, -limit, limit).astype(_STORED[kind])
