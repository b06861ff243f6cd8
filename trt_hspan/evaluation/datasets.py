"""Pictures to evaluate on, and their ground truth. Owns folder layouts and sizes; reads one picture at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.resize import downscale
from trt_hspan.media.formats import kind_of_file
from trt_hspan.media.pictures import read_image, size_from_image_file
from trt_hspan.media.pixels import Uint8Array
from trt_hspan.sizes import ImageSize

_SHIPPED: Final = Path(__file__).parent.parent / "data"
# Side in pixels of the low-resolution square cut from a shipped photograph.
SHIPPED_SIDE: Final = 64


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture to upscale.

    Attributes:
        name: for tables.
        low_resolution: the picture; None means that it is made from the ground truth.
        ground_truth: the picture at `scale` times the size, or None.
        scale: the network's scale.
        side: cut the middle of the ground truth to a square of `side * scale` pixels; None takes all of it.
    """

    name: str
    low_resolution: Path | None
    ground_truth: Path | None
    scale: int
    side: int | None = None

    def size(self) -> ImageSize:
        """Size of the low-resolution picture, from file headers alone. Raises: HspanError as `load`."""
        truth = None if self.ground_truth is None else size_from_image_file(self.ground_truth)
        low = None if self.low_resolution is None else size_from_image_file(self.low_resolution)
        return self._input_size(low, truth)

    def load(self) -> tuple[Uint8Array, Uint8Array | None]:
        """Reads the pictures.

        Returns:
            The low-resolution picture (H, W, 3) uint8, and the ground truth (H * scale, W * scale, 3) uint8,
            cropped at the bottom and the right as the official code does, or None.

        Raises:
            HspanError: a picture cannot be read, or the sizes of the two do not belong together.
        """
        truth = None if self.ground_truth is None else read_image(self.ground_truth)
        low = None if self.low_resolution is None else read_image(self.low_resolution)
        height, width = self._input_size(
            *(None if p is None else ImageSize(*p.shape[:2]) for p in (low, truth))
        )
        if truth is not None:
            top, left = 0, 0
            if low is None:  # the middle
                top, left = (
                    (truth.shape[0] - height * self.scale) // 2,
                    (truth.shape[1] - width * self.scale) // 2,
                )
            truth = truth[top : top + height * self.scale, left : left + width * self.scale]
        if low is None:
            assert truth is not None
            low = downscale(truth, self.scale)
        return low, truth

    def _input_size(self, low: ImageSize | None, truth: ImageSize | None) -> ImageSize:
        """A benchmark's low-resolution side is its high-resolution side divided by the scale, rounded down."""
        if truth is None:
            assert low is not None
            return low
        shrunk = ImageSize(*(side // self.scale for side in truth))
        if low is None:
            return shrunk if self.side is None else shrunk.within(ImageSize(self.side, self.side))
        if low != shrunk:
            raise HspanError(
                self.ground_truth,
                f"has {truth} pixels, not {self.scale} times the {low} of {self.low_resolution}",
                "give the pair of one picture at the network's scale",
            )
        return low


def samples_from_folder(path: str | os.PathLike[str], scale: int) -> list[Sample]:
    """The pictures of a folder, by name.

    A folder in the benchmark sets' layout contains `HR/NAME.png` and `LR_bicubic/X<scale>/NAMEx<scale>.png`;
    then every picture has its ground truth. Any other folder contains pictures without one. Sub-folders and
    other files are left alone. A single picture may be named instead of a folder.

    Raises:
        HspanError: no such folder, no pictures in it, a picture of a pair is missing, or no `X<scale>`
            folder.
    """
    folder = Path(path)
    if folder.is_file():
        return [Sample(name=folder.name, low_resolution=folder, ground_truth=None, scale=scale)]
    if (folder / "HR").is_dir() or (folder / "LR_bicubic").is_dir():
        return _benchmark_samples(folder, scale)
    pictures = plain_pictures(folder, scale)
    return [Sample(name=p.name, low_resolution=p, ground_truth=None, scale=scale) for p in pictures]


def plain_pictures(folder: Path, scale: int | None = None) -> list[Path]:
    """The pictures of a folder that is no benchmark set, by name. `scale` is for the hint; None is not known.

    Raises:
        HspanError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise HspanError(folder, "no such folder", "check the path")
    pictures = _pictures(folder)
    if not pictures:
        factor = "SCALE" if scale is None else scale
        raise HspanError(
            folder,
            "contains no pictures",
            f"put pictures there, or HR/NAME.png and LR_bicubic/X{factor}/NAMEx{factor}.png",
        )
    return pictures


def shipped_samples(scale: int) -> list[Sample]:
    """The photographs that come with the package, as ground truth; their middle is shrunk to the input.

    Raises:
        HspanError: none is there: the installation is incomplete.
    """
    pictures = _pictures(_SHIPPED) if _SHIPPED.is_dir() else []
    if not pictures:
        raise HspanError(_SHIPPED, "contains no photograph", "name pictures of your own with --images")
    return [
        Sample(name=p.name, low_resolution=None, ground_truth=p, scale=scale, side=SHIPPED_SIDE)
        for p in pictures
    ]


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and kind_of_file(path) == "picture"
    )


def _benchmark_samples(folder: Path, scale: int) -> list[Sample]:
    high, low = folder / "HR", folder / "LR_bicubic" / f"X{scale}"
    for part in (high, low):
        if not part.is_dir():
            raise HspanError(
                part,
                f"no such folder, and the network's scale is {scale}",
                f"a benchmark set contains HR/NAME.png and LR_bicubic/X{scale}/NAMEx{scale}.png",
            )
    truths = {p.stem: p for p in _pictures(high)}
    suffix = f"x{scale}"
    lows = {p.stem: p for p in _pictures(low)}
    missing = [
        *(low / f"{name}{suffix}{p.suffix}" for name, p in truths.items() if name + suffix not in lows),
        *(
            high / f"{name.removesuffix(suffix)}{p.suffix}"
            for name, p in lows.items()
            if not name.endswith(suffix) or name.removesuffix(suffix) not in truths
        ),
    ]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise HspanError(missing[0], f"is missing{more}", "complete the pair or remove its other half")
    if not truths:
        raise HspanError(high, "contains no pictures", "check the path")
    return [
        Sample(name=name, low_resolution=lows[name + suffix], ground_truth=truth, scale=scale)
        for name, truth in truths.items()
    ]
