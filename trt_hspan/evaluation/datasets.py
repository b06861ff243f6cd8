"""Pictures to evaluate on, and their ground truth. Owns folder layouts and sizes; reads one picture at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from trt_hspan.errors import HspanError
from trt_hspan.evaluation.metrics import agreement
from trt_hspan.evaluation.resize import downscale
from trt_hspan.media.formats import kind_of_file
from trt_hspan.media.pictures import read_image, size_from_image_file
from trt_hspan.media.pixels import Uint8Array
from trt_hspan.sizes import ImageSize

_LOG = logging.getLogger(__name__)
_NAMED: Final = 5  # of files that are left out
_SHIPPED: Final = Path(__file__).parent.parent / "data"
# Side in pixels of the low-resolution square cut from a shipped photograph.
SHIPPED_SIDE: Final = 64
#: The sets of the published tables, in their order.
PUBLISHED_SETS: Final = ("Set5", "Set14", "B100", "Urban100", "Manga109")
_ALSO_CALLED: Final = {"b100": ("bsd100", "bsds100")}
# Where sets lie in a folder of data: in it, or in one of these.
_SHELVES: Final = (".", "benchmark", "SrBenchmark")
_TRUTHS: Final = ("HR", "GTmod12", "GT")
# Two pictures are some 10 dB apart; blur, noise and another way of making smaller leave one picture above this.
_ONE_PICTURE_DB: Final = 17.0
# Of a picture with more pixels than so often its input's on both axes, the scale is another.
_OTHER_SCALE: Final = 1.5


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
            if self.side is not None:  # the middle
                top, left = (
                    (truth.shape[0] - height * self.scale) // 2,
                    (truth.shape[1] - width * self.scale) // 2,
                )
            truth = truth[top : top + height * self.scale, left : left + width * self.scale]
        if low is None:
            assert truth is not None
            low = downscale(truth, self.scale)
        return low, truth

    def remark(self, low: Uint8Array, truth: Uint8Array) -> str | None:
        """What is odd about what `load` gave: the two do not look like one picture; None when they do."""
        smaller = downscale(truth, self.scale)
        apart_db = agreement(*(image / np.float32(255) for image in (low, smaller))).psnr_db
        if apart_db >= _ONE_PICTURE_DB:
            return None
        return f"{self.name}: its ground truth, made smaller, is {apart_db:.1f} dB from it: are they of one picture?"

    def _input_size(self, low: ImageSize | None, truth: ImageSize | None) -> ImageSize:
        """Of the input. A ground truth may be larger than that times the scale: what exceeds it is cropped."""
        if truth is None:
            assert low is not None
            return low
        if min(truth) < self.scale:
            raise HspanError(
                self.ground_truth,
                f"has {truth} pixels, too few for scale {self.scale}",
                "leave the picture out",
            )
        shrunk = ImageSize(*(side // self.scale for side in truth))
        if low is None:
            return shrunk if self.side is None else shrunk.within(ImageSize(self.side, self.side))
        needed = low.scaled(self.scale)
        is_larger = all(side > _OTHER_SCALE * other for side, other in zip(truth, needed, strict=True))
        if is_larger or shrunk.within(low) != low:
            raise HspanError(
                self.ground_truth,
                f"has {truth} pixels, not {self.scale} times the {low} of {self.low_resolution}",
                "give the pair of one picture at the network's scale",
            )
        return low


@dataclass(frozen=True, kw_only=True)
class PictureSample(Sample):
    """A picture in memory, without ground truth.

    Attributes:
        pixels: (H, W, 3) uint8.
    """

    pixels: Uint8Array

    def size(self) -> ImageSize:
        return ImageSize(*self.pixels.shape[:2])

    def load(self) -> tuple[Uint8Array, Uint8Array | None]:
        return self.pixels, None


def sample_from_picture(picture: str | os.PathLike[str] | Uint8Array, scale: int, number: int) -> Sample:
    """A picture's file, or a picture (H, W, 3) uint8. Raises: HspanError for an array of another kind."""
    if isinstance(picture, str | os.PathLike):
        return Sample(name=Path(picture).name, low_resolution=Path(picture), ground_truth=None, scale=scale)
    pixels, name = np.asarray(picture), f"picture {number}"
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise HspanError(name, f"expected (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
    return PictureSample(name=name, low_resolution=None, ground_truth=None, scale=scale, pixels=pixels)


def samples_from_folder(path: str | os.PathLike[str], scale: int) -> list[Sample]:
    """The pictures of a folder, by name.

    In the layout of a benchmark set every picture has its ground truth, see `benchmark_sets`. Any other folder
    contains pictures without one. Sub-folders are left alone, other files are counted in a warning. A single picture
    may be named instead of a folder.

    Raises:
        HspanError: no such folder, no pictures in it, or as `benchmark_sets`.
    """
    folder = Path(path)
    if folder.is_file():
        return [Sample(name=folder.name, low_resolution=folder, ground_truth=None, scale=scale)]
    if is_benchmark_set(folder):
        return _set_samples(folder, "", scale)
    pictures = plain_pictures(folder, scale)
    others = [path.name for path in _files(folder) if path.is_file() and kind_of_file(path) != "picture"]
    if others:
        names = ", ".join((*others[:_NAMED], *["..."] * (len(others) > _NAMED)))
        _LOG.warning("%s: left out %d, no pictures: %s", folder, len(others), names)
    return [Sample(name=p.name, low_resolution=p, ground_truth=None, scale=scale) for p in pictures]


def is_benchmark_set(folder: Path) -> bool:
    """Whether a folder is laid out in halves, complete or not."""
    return any((folder / name).is_dir() for name in (*_TRUTHS, "LR_bicubic"))


def benchmark_sets(
    path: str | os.PathLike[str], scale: int, names: Sequence[str] = ()
) -> dict[str, list[Sample]]:
    """The benchmark sets in a folder of data: of each name its pictures, all with ground truth.

    A set is a folder of its name, in the folder of data, its `benchmark` or its `SrBenchmark`. It contains ground truth
    in `HR` (or `GTmod12`, `GT`) and inputs as `LR_bicubic/X<scale>/PICTUREx<scale>.png` (or `LRbicx<scale>`);
    DIV2K has `NAME_HR` and `NAME_LR_bicubic` instead. A set without inputs, or a folder of nothing but pictures, is
    ground truth from which the inputs are computed. The folder of data may be a set itself.

    Args:
        names: of the sets, in any case; none is all there are, in the order of the published tables.

    Raises:
        HspanError: no such folder or set, no pictures in it, half of a pair is missing, or there are inputs for other
            scales only.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise HspanError(folder, "no such folder", "check the path")
    parts = [
        part
        for shelf in reversed(_SHELVES)  # what lies in the folder itself comes last and counts
        if (folder / shelf).is_dir()
        for part in sorted((folder / shelf).iterdir())
        if part.is_dir() and not part.name.startswith(".")
    ]
    laid_out = _sets_at(folder) or {name: place for part in parts for name, place in _sets_at(part).items()}
    own = {folder.resolve().name: (folder, "")} if not laid_out and _pictures(folder) else {}
    plain = {part.name: (part, "") for part in parts if _pictures(part)}
    there = plain | own | laid_out
    if not there:
        raise HspanError(
            folder,
            "contains no benchmark set",
            f"a set is a folder with HR/NAME.png and LR_bicubic/X{scale}/NAMEx{scale}.png, or with HR alone",
        )
    if names:
        chosen = [_name_of(name, there) for name in names]
        if None in chosen:
            missing = names[chosen.index(None)]
            raise HspanError(folder, f"contains no set {missing}", f"there is {', '.join(sorted(there))}")
    else:
        all_names = sorted(laid_out or own or plain)
        published = [_name_of(name, all_names) for name in PUBLISHED_SETS]
        chosen = [*published, *(name for name in all_names if name not in published)]
    return {name: _set_samples(*there[name], scale) for name in chosen if name is not None}


def _name_of(requested: str, there: Iterable[str]) -> str | None:
    called = (requested.lower(), *_ALSO_CALLED.get(requested.lower(), ()))
    return next((name for name in there if name.lower() in called), None)


def _sets_at(folder: Path) -> dict[str, tuple[Path, str]]:
    """The sets whose halves lie in a folder: name -> the folder, and how the names of the halves begin."""
    sets = {
        half.name.removesuffix("_HR"): (folder, half.name.removesuffix("HR"))
        for half in sorted(folder.glob("*_HR"))
        if half.is_dir()
    }
    return sets | ({folder.resolve().name: (folder, "")} if is_benchmark_set(folder) else {})


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
    return [path for path in _files(folder) if kind_of_file(path) == "picture"]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _set_samples(folder: Path, prefix: str, scale: int) -> list[Sample]:
    """The pairs of a set whose halves are named `<prefix>HR` and so on; of a folder without halves, its pictures."""
    halves = (folder / f"{prefix}{name}" for name in _TRUTHS)
    high = next((half for half in halves if half.is_dir()), None)
    bicubic = folder / f"{prefix}LR_bicubic"
    lows = (bicubic / f"X{scale}", bicubic / f"x{scale}", folder / f"{prefix}LRbicx{scale}")
    low = next((half for half in lows if half.is_dir()), None)
    has_inputs = bicubic.is_dir() or any(folder.glob(f"{prefix}LRbicx*"))
    if has_inputs and (high is None or low is None):
        raise HspanError(
            folder / f"{prefix}HR" if high is None else lows[0],
            f"no such folder, and the network's scale is {scale}",
            f"a benchmark set contains HR/NAME.png and LR_bicubic/X{scale}/NAMEx{scale}.png, or HR alone",
        )
    high = folder if high is None else high
    truths = _by_stem(high)
    if not truths:
        raise HspanError(high, "contains no pictures", "check the path")
    inputs = dict.fromkeys(truths) if low is None else _inputs(low, high, truths, scale)
    return [
        Sample(name=name, low_resolution=inputs[name], ground_truth=truth, scale=scale)
        for name, truth in truths.items()
    ]


def _inputs(low: Path, high: Path, truths: dict[str, Path], scale: int) -> dict[str, Path]:
    """The input of each ground truth; `NAMEx4.png`, or `NAME.png` as some have it."""
    lows, suffix = _by_stem(low), f"x{scale}"
    inputs = {name: lows.get(name + suffix) or lows.get(name) for name in truths}
    taken = set(inputs.values())
    missing = [low / f"{name}{suffix}{truths[name].suffix}" for name, path in inputs.items() if path is None]
    for path in lows.values():
        truth = high / f"{path.stem.removesuffix(suffix)}{path.suffix}"
        if path not in taken:
            missing.append(path if truth.stem in truths else truth)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        what = "is a second input of one picture" if missing[0] in lows.values() else "is missing"
        raise HspanError(missing[0], what + more, "complete the pair or remove its other half")
    return {name: path for name, path in inputs.items() if path is not None}


def _by_stem(folder: Path) -> dict[str, Path]:
    pictures: dict[str, Path] = {}
    for path in _pictures(folder):
        if pictures.setdefault(path.stem, path) != path:
            raise HspanError(path, f"has the name of {pictures[path.stem].name}", "rename one of them")
    return pictures
