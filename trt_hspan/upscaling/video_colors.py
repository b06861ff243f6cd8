"""Frames of a video as the RGB that networks take, and back. Owns the arithmetic of colors, not streams.

libswscale resamples chroma, with 16 bits and from where a frame says that its samples lie. Matrix and range are applied
here, in float32, because libswscale's own RGB of 16 bits is half an 8-bit level too dark and its full-range chroma as
much too low. Values beyond black and white, which limited range has room for, go through as they are.

Matrices and ranges: ITU-T H.273, section 8.3.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trt_hspan.runtime.runner import Float32Array
from trt_hspan.sizes import ImageSize

#: FFmpeg's numbers of what a tag may say: matrices, and a range.
RGB, BT709, UNSPECIFIED, BT601 = 0, 1, 2, 6
LIMITED_RANGE, FULL_RANGE = 1, 2
_YCGCO, _BT2020 = 8, 9
# Matrix -> the shares of red and blue in luma.
_LUMA_WEIGHTS: Final = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    BT601: (0.299, 0.114),
    7: (0.212, 0.087),
    _BT2020: (0.2627, 0.0593),
}
_LAST_MATRIX: Final = 17  # above are numbers without a meaning yet
_HD_HEIGHT: Final = 720
# SWS_LANCZOS, of all filters the one whose chroma comes back with the least error; SWS_ACCURATE_RND and SWS_BITEXACT,
# which change nothing here with the code of x86-64.
_RESAMPLED: Final = 0x200 | 0x40000 | 0x80000
_CENTER: Final = 1 << 15  # of chroma with 16 bits
# Where samples of halved chroma lie: pixels to the right of and below the first of two, in halves of their distance.
_LOCATIONS: Final = {
    (0, 1): "left",
    (0, 0): "topleft",
    (1, 0): "top",
    (0, 2): "bottomleft",
    (1, 2): "bottom",
}


def matrix_of_frame(frame: Any) -> int:
    """What the frame says, as FFmpeg numbers matrices; if nothing, BT.709 from 720 lines and BT.601 below."""
    tag = int(frame.colorspace)
    if tag in (RGB, UNSPECIFIED, 3) or tag > _LAST_MATRIX:
        return BT709 if frame.height >= _HD_HEIGHT else BT601
    return tag


def has_linear_matrix(matrix: int) -> bool:
    """Whether a matrix is read as it is meant; one that is not linear is read and written as BT.2020's."""
    return matrix in _LUMA_WEIGHTS or matrix == _YCGCO


def bits_of_frame(frame: Any) -> int:
    """Of its first sample."""
    return int(frame.format.components[0].bits)


def is_gray(frame: Any) -> bool:
    """Whether a frame has luma alone."""
    colors = [part for part in frame.format.components if not part.is_alpha]
    return len(colors) == 1 and not frame.format.has_palette


def rgb_from_frame(frame: Any) -> Float32Array:
    """(3, H, W), black 0 and white 1, not clamped."""
    kind, bits = frame.format, bits_of_frame(frame)
    if is_gray(frame) or kind.is_rgb or kind.has_palette or kind.name.startswith("xyz"):
        names = ("gray", "gray16le") if is_gray(frame) else ("rgb24", "rgb48le")
        stored = _resampled(frame, names[bits > 8])
        levels: Float32Array = stored.to_ndarray().astype(np.float32) / np.float32(65535 if bits > 8 else 255)
        if not is_gray(frame):
            return levels.transpose(2, 0, 1)
        if frame.color_range == LIMITED_RANGE:
            white = _largest(bits) / (1 << bits) * 256  # on the scale of 8 bits
            levels = (levels * np.float32(white) - np.float32(16)) / np.float32(219)
        return np.repeat(levels[None], 3, axis=0)
    full, tag = frame.color_range == FULL_RANGE, matrix_of_frame(frame)
    if kind.name.startswith("yuvj"):  # of which libswscale would convert the range
        full, plain = True, kind.name.replace("yuvj", "yuv")
        frame = _resampled(frame, plain, FULL_RANGE)
    planes = _planes(_resampled(frame, "yuv444p16le"))
    codes = np.stack([plane.astype(np.float32) for plane in planes])
    matrix, offsets = _code_matrix(tag, full, bits)
    codes -= offsets.astype(np.float32)[:, None, None]
    return _times(np.linalg.inv(matrix), codes)


def chroma_location(frame: Any) -> str:
    """Where the samples of halved chroma lie, in FFmpeg's words; "left", as most formats take it, if none is halved.

    PyAV does not say, so libswscale shows: it resamples two ramps from there.
    """
    kind = frame.format
    if kind.is_rgb or is_gray(frame) or kind.chroma_width(4) == 4:
        return "left"
    count, first, step = 32, 40, 4  # samples along a ramp, and levels
    ramps = frame.reformat(width=2 * count, height=2 * count, format="yuv420p")
    ramp = np.arange(first, first + count * step, step)
    planes = _planes(ramps)
    planes[1][:], planes[2][:] = ramp, ramp[:, None]
    middle = [plane[count, count] for plane in _planes(_resampled(ramps, "yuv444p16le"))[1:]]
    right, below = (round(4 * (count / 2 - (float(code) / 256 - first) / step)) for code in middle)
    return _LOCATIONS.get((right, below), "center")


class FrameWriter:
    """Makes frames of one size and pixel format: 4:2:0, 4:2:2 or 4:4:4 in planes, planar RGB, bgr0 or rgb24.

    Args:
        tags: matrix, range, primaries and transfer of the frames, by PyAV's names of them.
        location: of halved chroma, as `chroma_location`.
        gray: whether chroma is none.
    """

    def __init__(
        self, av: Any, name: str, size: ImageSize, *, tags: dict[str, int], location: str, gray: bool
    ) -> None:
        self._av, self._name, self._size, self._tags, self._gray = av, name, size, tags, gray
        self._kind = av.VideoFormat(name)
        self._bits = int(self._kind.components[0].bits)
        # Of 4:4:4, from which chroma is halved.
        self._whole = self._located(location) if "420" in name or "422" in name else None

    def frame(self, rgb: Float32Array) -> Any:
        """A frame of (3, H, W), rounded to the nearest codes."""
        if not self._kind.is_rgb:
            frame = self._filled(self._codes_of_yuv(rgb))
        else:
            white = _largest(self._bits)
            codes = _rounded(rgb * np.float32(white), white)
            if self._kind.is_planar:
                frame = self._filled(codes[[1, 2, 0]])
            else:
                packed = np.ascontiguousarray(codes.astype(np.uint8).transpose(1, 2, 0))
                frame = self._av.VideoFrame.from_ndarray(packed, format="rgb24").reformat(format=self._name)
        for name, tag in self._tags.items():
            setattr(frame, name, tag)
        return frame

    def _located(self, location: str) -> Any:
        """A frame of 4:4:4 and 16 bits that says where its chroma lies."""
        frame = self._av.VideoFrame(self._size.width, self._size.height, "yuv444p16le")
        frame.pts = 0
        graph = self._av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
            ),
            graph.add("setparams", f"chroma_location={location}"),
            graph.add("buffersink"),
        ).configure()
        graph.push(frame)
        located = graph.pull()
        located.make_writable()
        return located

    def _codes_of_yuv(self, rgb: Float32Array) -> list[npt.NDArray[np.uint16]]:
        matrix, offsets = _code_matrix(
            self._tags["colorspace"], self._tags["color_range"] == FULL_RANGE, self._bits
        )
        codes = _times(matrix, rgb)
        codes += offsets.astype(np.float32)[:, None, None]
        if self._gray:
            codes[1:] = _CENTER
        step = 1 << 16 - self._bits
        white = _largest(self._bits)
        if self._whole is None:
            return list(_rounded(codes / np.float32(step), white))
        _fill(self._whole, _rounded(codes, white * step))
        halved = "yuv420p16le" if "420" in self._name else "yuv422p16le"
        planes = _planes(_resampled(self._whole, halved))
        chroma = [_rounded(plane / np.float32(step), white) for plane in planes[1:]]
        return [_rounded(codes[0] / np.float32(step), white), *chroma]

    def _filled(self, planes: Any) -> Any:
        frame = self._av.VideoFrame(self._size.width, self._size.height, self._name)
        _fill(frame, planes)
        return frame


def _resampled(frame: Any, name: str, color_range: int = LIMITED_RANGE) -> Any:
    """The frame with another layout of samples, whose codes stay what they are: both sides claim one matrix and range.

    With full range libswscale would spread luma, and luma alone, to another white where it has no chroma to resample.
    """
    return frame.reformat(
        format=name,
        src_colorspace=BT709,
        dst_colorspace=BT709,
        src_color_range=color_range,
        dst_color_range=color_range,
        interpolation=_RESAMPLED,
    )


def _planes(frame: Any) -> list[npt.NDArray[Any]]:
    """Views of a frame's planes, without the bytes that end their lines."""
    deep = frame.format.components[0].bits > 8
    return [
        np.frombuffer(plane, np.uint16 if deep else np.uint8).reshape(plane.height, -1)[:, : plane.width]
        for plane in frame.planes
    ]


def _fill(frame: Any, planes: Any) -> None:
    for stored, values in zip(_planes(frame), planes, strict=True):
        stored[:] = values


def _largest(bits: int) -> int:
    return (1 << bits) - 1


def _rounded(codes: npt.NDArray[Any], largest: int) -> npt.NDArray[np.uint16]:
    rounded: npt.NDArray[np.uint16] = np.clip(np.rint(codes), 0, largest).astype(np.uint16)
    return rounded


def _times(matrix: npt.NDArray[np.floating], planes: Float32Array) -> Float32Array:
    product: Float32Array = matrix.astype(np.float32) @ planes.reshape(3, -1)
    return product.reshape(planes.shape)


@lru_cache
def _code_matrix(
    matrix: int, full: bool, bits: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What turns (R, G, B) into codes of 16 bits, whose upper `bits` are stored, and what is added then."""
    if matrix == _YCGCO:
        weights = np.array([[0.25, 0.5, 0.25], [-0.25, 0.5, -0.25], [0.5, 0, -0.5]])
    else:
        red, blue = _LUMA_WEIGHTS.get(matrix, _LUMA_WEIGHTS[_BT2020])
        luma = np.array([red, 1 - red - blue, blue])
        differences = np.array([[0, 0, 1], [1, 0, 0]]) - luma  # B - Y, R - Y
        weights = np.stack([luma, differences[0] / (2 - 2 * blue), differences[1] / (2 - 2 * red)])
    step = 1 << 16 - bits
    if full:
        return weights * (_largest(bits) * step), np.array([0.0, _CENTER, _CENTER])
    scales = np.array([219.0, 224.0, 224.0]) * 256
    return weights * scales[:, None], np.array([16.0 * 256, _CENTER, _CENTER])
