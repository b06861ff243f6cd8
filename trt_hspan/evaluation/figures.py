"""Pictures side by side, with labels and an enlarged detail."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from trt_hspan.files import atomic_path

Uint8Array = npt.NDArray[np.uint8]

_MARGIN: Final = 16
_LABEL_HEIGHT: Final = 54
_BACKGROUND: Final = (24, 26, 30)
_TEXT: Final = (236, 236, 236)
_FAINT: Final = (160, 166, 174)
_FRAME: Final = (255, 196, 0)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One column of a comparison: an (H, W, 3) uint8 RGB image below its title and a note, such as its PSNR."""

    title: str
    note: str
    image: Uint8Array


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle that is shown enlarged below each panel. Pixels of the panels' images."""

    top: int
    left: int
    height: int
    width: int


def save_comparison(path: str | os.PathLike[str], panels: Sequence[Panel], crop: Crop) -> Path:
    """Writes a PNG: the panels in a row, and below each an enlarged detail with its pixels visible.

    Args:
        path: the `.png` file.
        panels: at least one, images of the same size.
        crop: the detail, inside the images.

    Raises:
        HspanError: the file cannot be written.
    """
    height, width, _ = panels[0].image.shape
    detail_height = round(crop.height * width / crop.width)
    canvas = Image.new(
        "RGB",
        (
            _MARGIN + len(panels) * (width + _MARGIN),
            _MARGIN + _LABEL_HEIGHT + height + _MARGIN + detail_height + _MARGIN,
        ),
        _BACKGROUND,
    )
    for index, panel in enumerate(panels):
        _draw_panel(
            canvas, panel, crop, left=_MARGIN + index * (width + _MARGIN), detail_height=detail_height
        )
    target = Path(path)
    with atomic_path(target) as temporary:
        canvas.save(temporary, format="PNG", optimize=True)
    return target


def _draw_panel(canvas: Image.Image, panel: Panel, crop: Crop, *, left: int, detail_height: int) -> None:
    draw = ImageDraw.Draw(canvas)
    height, width, _ = panel.image.shape
    draw.text((left, _MARGIN), panel.title, fill=_TEXT, font=ImageFont.load_default(20))
    draw.text((left, _MARGIN + 26), panel.note, fill=_FAINT, font=ImageFont.load_default(15))
    top = _MARGIN + _LABEL_HEIGHT
    image = Image.fromarray(panel.image)
    canvas.paste(image, (left, top))
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    draw.rectangle(
        (left + box[0], top + box[1], left + box[2] - 1, top + box[3] - 1), outline=_FRAME, width=2
    )
    detail = image.crop(box).resize((width, detail_height), Image.Resampling.NEAREST)
    canvas.paste(detail, (left, top + height + _MARGIN))
