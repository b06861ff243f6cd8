"""How pixels of any kind become the RGB tensors that networks take, and back. Knows neither files nor networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.errors import HspanError

Uint8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
#: rows(top, bottom) -> pixels (bottom - top, W, ...), a view that the next call may end; `top` never goes back.
RowsSource = Callable[[int, int], npt.NDArray[Any]]

# ITU-R BT.601 luma, as picture libraries convert RGB to gray.
_LUMA: Final = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """Pixels (H, W, C) of a picture: gray and alpha travel as RGB pictures of their own.

    A gray picture goes through the network as three equal channels; its result is the luma of the three that come
    out. Alpha goes through the network as a gray picture does, so that its edges stay where those of the colors are.

    Attributes:
        channels: 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).
        dtype: uint8 or uint16; white is 255 or 65535.
        where: what an error is about.
    """

    channels: int
    dtype: type[np.uint8] | type[np.uint16]
    where: object = "network output"

    @classmethod
    def of(cls, image: npt.NDArray[Any], *, where: object = "network output") -> PixelFormat:
        """The format of a picture in memory.

        Raises:
            HspanError: not (H, W, C) of uint8 or uint16 with 1 to 4 channels, or without pixels.
        """
        if (
            image.ndim != 3
            or image.shape[2] not in (1, 2, 3, 4)
            or image.dtype not in (np.uint8, np.uint16)
            or 0 in image.shape
        ):
            raise HspanError(
                where,
                f"expected pixels as (H, W, C) uint8 or uint16, C 1 to 4, got {image.shape} {image.dtype}",
            )
        return cls(
            channels=image.shape[2], dtype=np.uint8 if image.dtype == np.uint8 else np.uint16, where=where
        )

    @property
    def white(self) -> int:
        """The largest value."""
        return int(np.iinfo(self.dtype).max)

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels in (2, 4)

    def tensor_from_pixels(self, image: npt.NDArray[Any]) -> Float32Array:
        """(H, W, C) -> (N, 3, H, W) float32 in [0, 1]: colors first, then alpha as three equal channels."""
        planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(self.white)
        color = planes[:3] if self.channels >= 3 else np.repeat(planes[:1], 3, axis=0)
        items = [color, np.repeat(planes[-1:], 3, axis=0)] if self.has_alpha else [color]
        return np.stack(items)

    def pixels_from_tensor(self, tensor: npt.NDArray[np.floating]) -> npt.NDArray[Any]:
        """(N, 3, H, W) -> (H, W, C): clamped, rounded half to even as the official code does; raises for NaN."""
        require_finite(tensor, self.where)
        planes = [tensor[0]] if self.channels >= 3 else [luma(tensor[0])]
        if self.has_alpha:
            planes.append(luma(tensor[1]))
        values = np.concatenate(planes)
        values *= values.dtype.type(self.white)
        np.rint(np.clip(values, 0, self.white, out=values), out=values)
        return np.ascontiguousarray(values.astype(self.dtype).transpose(1, 2, 0))


@dataclass(frozen=True)
class TensorFormat:
    """Tensors as they are: "pixels" are (H, W, N, 3) float32 views of (N, 3, H, W)."""

    has_alpha: ClassVar[bool] = False

    def tensor_from_pixels(self, image: npt.NDArray[Any]) -> Float32Array:
        """(H, W, N, 3) -> (N, 3, H, W), contiguous."""
        return np.ascontiguousarray(image.transpose(2, 3, 0, 1))

    def pixels_from_tensor(self, tensor: Float32Array) -> Float32Array:
        """(N, 3, H, W) -> (H, W, N, 3), a view."""
        return tensor.transpose(2, 3, 0, 1)


def tensor_from_image(image: Uint8Array) -> Float32Array:
    """(H, W, 3) uint8 in 0..255 -> (1, 3, H, W) float32 in [0, 1], contiguous."""
    return PixelFormat(channels=3, dtype=np.uint8).tensor_from_pixels(image)


def image_from_tensor(tensor: npt.NDArray[np.floating], *, where: object = "network output") -> Uint8Array:
    """A network's output, (1, 3, H, W) or (3, H, W), as (H, W, 3): times 255, clamped, rounded half to even.

    Raises: HspanError: another shape, or a value that is NaN or infinite: such a pixel is never painted black or white.
    """
    planes = tensor[0] if tensor.ndim == 4 and tensor.shape[0] == 1 else tensor
    if planes.ndim != 3 or planes.shape[0] != 3:
        raise HspanError(where, f"expected shape (1, 3, H, W), got {tensor.shape}")
    pixels = PixelFormat(channels=3, dtype=np.uint8, where=where)
    return pixels.pixels_from_tensor(planes[None])


def eight_bit(pixels: npt.NDArray[Any]) -> Uint8Array:
    """uint16 pixels rounded to uint8 (65535 = 257 * 255); uint8 as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def on_white(pixels: Uint8Array) -> Uint8Array:
    """(H, W, 2 or 4) without alpha: color * alpha + white * (1 - alpha), rounded."""
    color, alpha = pixels[..., :-1].astype(np.uint32), pixels[..., -1:].astype(np.uint32)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def rgb_on_white(pixels: npt.NDArray[Any]) -> Uint8Array:
    """(H, W, C) uint8 or uint16 -> (H, W, 3) uint8: what a viewer shows.

    16 bits are rounded to 8, transparency is laid on white, gray becomes three equal channels.
    """
    shown = eight_bit(pixels)
    if shown.shape[2] in (2, 4):
        shown = on_white(shown)
    return np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown


def require_finite(tensor: npt.NDArray[np.floating], where: object) -> None:
    """Raises: HspanError when a value is NaN or infinite."""
    broken = int(tensor.size - np.count_nonzero(np.isfinite(tensor)))
    if broken:
        raise HspanError(
            where,
            f"{broken} of {tensor.size} values are NaN or infinite",
            "see where with trt-hspan audit; FP16 overflows at 65504, BF16 and FP32 do not",
        )


def luma(rgb: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """(3, H, W) -> (1, H, W). Three equal channels stay what they are within one rounding."""
    red, green, blue = (np.float32(weight) for weight in _LUMA)
    weighted: npt.NDArray[np.floating] = (red * rgb[0] + green * rgb[1] + blue * rgb[2])[None]
    return weighted
