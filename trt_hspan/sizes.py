"""Sizes of pictures and tiles, height first, as TensorRT orders them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from trt_hspan.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Height and width in pixels, both at least 1. `str()` gives "128x96": height first."""

    height: int
    width: int

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if type(value) is not int or value < 1:
                raise UsageError("image size", f"{name} is {value!r}, expected a whole number from 1")

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def image_size_from_text(text: str, *, option: str) -> ImageSize:
    """Reads "128x96" as height 128, width 96.

    Raises:
        UsageError: anything else; the line names `option`.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*[xX]\s*([0-9]{1,6})\s*", text, flags=re.ASCII)
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise UsageError(option, f"got {text!r}, expected height x width in pixels", "write it like 128x96")
    return ImageSize(height=int(match[1]), width=int(match[2]))


def tile_from_text(text: str) -> TileChoice:
    """Reads auto, none, HxW, or one number for both sides. Raises: UsageError for anything else."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else "none"
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(re.fullmatch("[0-9]{1,6}", side) for side in sides):
        return int(sides[0]), int(sides[-1])
    raise UsageError("--tile", f"got {text!r}, expected auto, none or HxW", "give for example --tile 128x128")


#: "auto", "none", or (height, width) in input pixels.
TileChoice = Literal["auto", "none"] | tuple[int, int]
