"""Sizes of pictures and tiles, height first, as TensorRT orders them."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from trt_hspan.errors import UsageError

_SIDE = "([0-9]{1,6})"
_FORMS = (
    re.compile(rf"\s*(?P<height>{_SIDE})\s*[xX]\s*(?P<width>{_SIDE})\s*", re.ASCII),
    re.compile(rf"\s*height\s*=\s*(?P<height>{_SIDE})\s*,\s*width\s*=\s*(?P<width>{_SIDE})\s*", re.ASCII),
    re.compile(rf"\s*width\s*=\s*(?P<width>{_SIDE})\s*,\s*height\s*=\s*(?P<height>{_SIDE})\s*", re.ASCII),
)


class _Sides(NamedTuple):
    height: int
    width: int


class ImageSize(_Sides):
    """Height and width in pixels, both at least 1: a tuple in the order of `array.shape`; `str()` gives "360x640".

    Raises:
        UsageError: a side is not a whole number from 1.

    Example:
        >>> from trt_hspan.sizes import ImageSize
        >>> size = ImageSize(height=360, width=640)
        >>> str(size), size.pixels, size.scaled(2), size == (360, 640)
        ('360x640', 230400, ImageSize(height=720, width=1280), True)
    """

    __slots__ = ()

    def __new__(cls, height: int, width: int) -> ImageSize:
        for name, value in (("height", height), ("width", width)):
            if type(value) is not int or value < 1:
                raise UsageError("image size", f"{name} is {value!r}, expected a whole number from 1")
        return super().__new__(cls, height, width)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width

    @property
    def turned(self) -> ImageSize:
        """The size on its side."""
        return ImageSize(height=self.width, width=self.height)

    def within(self, limit: ImageSize) -> ImageSize:
        """The size with neither side longer than that of `limit`."""
        return ImageSize(height=min(self.height, limit.height), width=min(self.width, limit.width))

    def scaled(self, factor: int) -> ImageSize:
        """Both sides times a whole factor."""
        return ImageSize(height=self.height * factor, width=self.width * factor)


#: "auto", "none", or the (height, width) of a tile in input pixels; an `ImageSize` is such a tuple.
TileChoice = Literal["auto", "none"] | tuple[int, int]


def image_size_from_text(text: str, *, option: str) -> ImageSize:
    """Reads "360x640", or "height=360,width=640" in either order, as height 360, width 640.

    Raises:
        UsageError: anything else; the line names `option`.
    """
    return _size_from_text(text, option, "height x width in pixels", "360x640 or height=360,width=640")


def tile_size_from_text(text: str, *, expected: str = "one number or HxW in pixels") -> ImageSize:
    """Reads one number for both sides, or a size as `image_size_from_text`.

    Raises:
        UsageError: anything else; the line names --tile and what is `expected`.
    """
    size = f"{text}x{text}" if text.isdecimal() else text
    return _size_from_text(size, "--tile", expected, "128 or 96x128")


def tile_from_text(text: str) -> TileChoice:
    """Reads auto, none, or a size as `tile_size_from_text`. Raises: UsageError as that."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else "none"
    return tile_size_from_text(text, expected="auto, none, one number or HxW")


def _size_from_text(text: str, option: str, expected: str, example: str) -> ImageSize:
    match = next((match for form in _FORMS if (match := form.fullmatch(text))), None)
    if match is None or 0 in (int(match["height"]), int(match["width"])):
        raise UsageError(option, f"got {text!r}, expected {expected}", f"write it like {example}")
    return ImageSize(height=int(match["height"]), width=int(match["width"]))
