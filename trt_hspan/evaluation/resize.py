"""Bicubic resizing as super-resolution papers do it.

The low-resolution half of every benchmark set was computed by MATLAB's `imresize`, and so it is here: the cubic
kernel of Keys (IEEE TASSP 29, 1981) with a = -1/2, stretched by the scale when an image shrinks (antialiasing),
pixel centers at half-integers, weights normalized to sum to 1, and the image mirrored at its edges with the edge
pixel repeated.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError

Float64Array = npt.NDArray[np.float64]


def cubic_kernel(x: Float64Array) -> Float64Array:
    """Keys' piecewise cubic with a = -1/2: 1 at 0, 0 at every other integer, 0 from |x| = 2 on."""
    distance = np.abs(x)
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return np.where(distance <= 1.0, near, np.where(distance < 2.0, far, 0.0))


def resampling_weights(input_size: int, output_size: int) -> tuple[Float64Array, npt.NDArray[np.intp]]:
    """Weights and source positions along one axis.

    Args:
        input_size: pixels along the axis before.
        output_size: pixels along the axis after.

    Returns:
        weights: (output_size, taps) float64; every row sums to 1.
        positions: (output_size, taps), each within 0 .. input_size - 1.
    """
    scale = output_size / input_size
    stretch = min(scale, 1.0)
    width = 4.0 / stretch
    taps = math.ceil(width) + 2
    centers = (np.arange(output_size) + 0.5) / scale - 0.5
    first = np.floor(centers - width / 2.0).astype(np.intp)
    positions = first[:, None] + np.arange(taps, dtype=np.intp)[None, :]
    weights = cubic_kernel(stretch * (centers[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    # Mirrored with the edge repeated (... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ...), a sequence of period 2n.
    wrapped = np.mod(positions, 2 * input_size)
    mirrored = np.where(wrapped < input_size, wrapped, 2 * input_size - 1 - wrapped)
    used = np.any(weights != 0.0, axis=0)
    return weights[:, used], mirrored[:, used]


def _resize_axis(image: Float64Array, axis: int, output_size: int) -> Float64Array:
    weights, positions = resampling_weights(image.shape[axis], output_size)
    shape = [1] * image.ndim
    shape[axis] = output_size
    total: Float64Array | None = None
    for weight, position in zip(weights.T, positions.T, strict=True):
        term = np.take(image, position, axis=axis) * weight.reshape(shape)
        total = term if total is None else np.add(total, term, out=total)
    assert total is not None  # a kernel of width >= 4 always has a tap
    return total


def bicubic_resize(image: npt.ArrayLike, output_height: int, output_width: int) -> Float64Array:
    """Resizes an image of any value range, up or down.

    Args:
        image: (H, W, C) with pixels, any real dtype; computed in float64, nothing is clamped or rounded.
        output_height, output_width: at least 1.

    Returns:
        (output_height, output_width, C) float64. The kernel's overshoot (2/27 of the height of a step, on
        each axis) is kept.

    Example:
        >>> import numpy as np
        >>> from trt_hspan.evaluation.resize import bicubic_resize
        >>> bicubic_resize(np.full((4, 6, 3), 0.5), 8, 12).shape
        (8, 12, 3)
    """
    source = np.asarray(image, dtype=np.float64)
    sizes = (output_height, output_width)
    # The axis that shrinks most comes first, as in MATLAB; the second pass then has the fewest pixels to do.
    for axis in sorted((0, 1), key=lambda axis: sizes[axis] / source.shape[axis]):
        source = _resize_axis(source, axis, sizes[axis])
    return source


def bicubic_pixels(low: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) to (H * scale, W * scale, 3), clamped and rounded half up: what a network has to beat."""
    return _uint8_from_float(bicubic_resize(low, low.shape[0] * scale, low.shape[1] * scale))


def _uint8_from_float(image: Float64Array) -> npt.NDArray[np.uint8]:
    """Clamped and rounded half up, as MATLAB's uint8(): values are not negative after clamping."""
    return np.floor(np.clip(image, 0.0, 255.0) + 0.5).astype(np.uint8)


def downscale(image: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """The low-resolution version of a picture, as benchmark sets contain it (`imresize(image, 1/scale)`).

    Rows are resized first, then columns, and as in MATLAB 8-bit pictures are rounded after each of the two.

    Args:
        image: (H, W, C) uint8, 0..255. What exceeds a multiple of `scale` at the bottom and the
            right is cropped.
        scale: whole number, at least 1.

    Returns:
        (H // scale, W // scale, C) uint8.

    Raises:
        HspanError: the picture is smaller than `scale` on a side.

    Example:
        >>> import numpy as np
        >>> from trt_hspan.evaluation.resize import downscale
        >>> downscale(np.zeros((301, 444, 3), np.uint8), 4).shape
        (75, 111, 3)
    """
    height, width = image.shape[0] // scale, image.shape[1] // scale
    if height < 1 or width < 1:
        raise HspanError(
            "downscale",
            f"a picture of {image.shape[0]}x{image.shape[1]} pixels is too small for scale {scale}",
        )
    cropped = image[: height * scale, : width * scale].astype(np.float64)
    rows = _uint8_from_float(_resize_axis(cropped, 0, height))
    return _uint8_from_float(_resize_axis(rows.astype(np.float64), 1, width))
