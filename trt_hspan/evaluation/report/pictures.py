"""Pictures for the report's page: heat maps, crops, data URIs."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trt_hspan.sizes import ImageSize

Uint8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]

# Longest side of a picture on the page, in pixels.
LONGEST_SIDE: Final = 1024
# Side of a zoomed crop, in pixels of the output.
CROP_SIDE: Final = 40
# The heat maps' logarithmic scale, in gray levels of 8 bits (1/255 of the range).
HEAT_RANGE: Final = (1e-3, 1e1)
# Dark to bright, evenly spaced; lightness rises throughout, so that the order survives without color vision.
HEAT_STOPS: Final = ((8, 8, 24), (66, 21, 100), (150, 42, 97), (222, 84, 58), (250, 160, 30), (252, 246, 180))


def heat_map(error: Float64Array) -> Uint8Array:
    """(H, W) absolute error in gray levels -> (H, W, 3) uint8. Values outside of `HEAT_RANGE` take its ends."""
    low, high = np.log10(HEAT_RANGE)
    with np.errstate(divide="ignore"):
        position = (np.log10(error) - low) / (high - low)
    position = np.clip(np.nan_to_num(position, nan=1.0, posinf=1.0, neginf=0.0), 0, 1)
    stops = np.linspace(0, 1, len(HEAT_STOPS))
    channels = [np.interp(position, stops, [stop[c] for stop in HEAT_STOPS]) for c in range(3)]
    colors: Uint8Array = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colors


def heat_gradient() -> str:
    """The same scale as a CSS gradient, from left to right."""
    return f"linear-gradient(90deg, {', '.join(f'rgb{stop}' for stop in HEAT_STOPS)})"


def shown_size(height: int, width: int) -> ImageSize:
    """The size that a picture has on the page: its own, or with `LONGEST_SIDE` as its longest side."""
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    return ImageSize(max(1, round(height * factor)), max(1, round(width * factor)))


def photograph_uri(image: Uint8Array) -> str:
    """(H, W, 3) as a WebP of at most `LONGEST_SIDE` pixels; quality 92, which hides less than a gray level or two."""
    size = shown_size(*image.shape[:2])
    picture = Image.fromarray(image)
    if picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.LANCZOS)
    return _uri(picture, lossless=False)


def heat_uri(error: Float64Array) -> str:
    """(H, W) absolute error in gray levels as a picture; a smaller one keeps the largest error of each cell."""
    step = max(1, -(-max(error.shape) // (LONGEST_SIDE // 2)))
    rows, columns = (-(-size // step) for size in error.shape)
    padded = np.full((rows * step, columns * step), 0.0)
    padded[: error.shape[0], : error.shape[1]] = error
    pooled = padded.reshape(rows, step, columns, step).max(axis=(1, 3))
    return _uri(Image.fromarray(heat_map(pooled)), lossless=False)


def crop_uri(image: Uint8Array) -> str:
    return _uri(Image.fromarray(np.ascontiguousarray(image)), lossless=True)


def worst_window(error: Float64Array, side: int = CROP_SIDE) -> tuple[slice, slice]:
    """The side x side window with the largest mean error; the whole picture along an axis that is shorter."""
    rows, columns = (min(side, size) for size in error.shape)
    finite = np.nan_to_num(error, nan=1e9, posinf=1e9)
    sums = np.pad(finite, ((1, 0), (1, 0))).cumsum(0).cumsum(1)  # summed-area table
    windows = (
        sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    )
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return slice(int(top), int(top) + rows), slice(int(left), int(left) + columns)


def _uri(picture: Image.Image, *, lossless: bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", lossless=lossless, quality=92, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
