"""Tiles cut from pictures, for calibration and measuring; one picture is in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.datasets import Sample, is_benchmark_set, plain_pictures, samples_from_folder
from trt_hspan.files import error_from_os_error, sha256_from_file
from trt_hspan.media.pixels import Uint8Array
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import ANY_SIZE, SizeRange
from trt_hspan.upscaling.upscaler import grown

BUILTIN: Final = "builtin"
_PHOTOGRAPHS: Final = Path(__file__).parent.parent / "data" / "calibration"
#: Side in low-resolution pixels. Attention costs the fourth power of it on a CPU.
DEFAULT_SIDE: Final = 48
#: Below this, convolutions see more padding than picture.
LEAST_SIDE: Final = 16
#: Every fourth picture is held out of calibration when no others are named for it.
_HELD_OUT_EVERY: Final = 4


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Part of a picture.

    Attributes:
        name: of the picture.
        low: (h, w, 3) uint8, the network's input; reflected at the bottom and right where the network takes no smaller.
        truth: (h * scale, w * scale, 3) uint8 without what is reflected, or None.
        scale: of the network.
    """

    name: str
    low: Uint8Array
    truth: Uint8Array | None
    scale: int


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """How many tiles of which size. At least one tile is cut from each picture.

    Raises:
        UsageError: no tile, or too small ones.
    """

    count: int = 32
    side: int = DEFAULT_SIDE

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError("--tiles", f"got {self.count}, expected at least 1")
        if self.side < LEAST_SIDE:
            raise UsageError("--tile", f"got {self.side}, expected at least {LEAST_SIDE} pixels")


class Crops:
    """Tiles of some pictures, the same ones each time; a picture is read when its turn comes.

    Args:
        samples: the pictures. One that is smaller than a tile gives one tile: itself.
        plan: how tiles are cut.
        sizes: that the network takes: a tile has the largest that is no larger than the plan's, or the smallest.

    Attributes:
        pictures, count: how many pictures and tiles there are.

    Raises:
        HspanError: a picture cannot be read or has less than 16 pixels on a side.
    """

    def __init__(self, samples: Sequence[Sample], plan: TilePlan, sizes: SizeRange = ANY_SIZE) -> None:
        self._samples, self._plan, self._sizes = samples, plan, sizes
        self.pictures = len(samples)
        self.count = 0
        for sample in samples:
            self.count += self._count(sample, sample.size())

    def __iter__(self) -> Iterator[Tile]:
        for index, sample in enumerate(self._samples):
            low, truth = sample.load()
            picture = ImageSize(*low.shape[:2])
            tile = self._tile(picture)
            height, width = tile.within(picture)
            random = np.random.default_rng(index)
            for _ in range(self._count(sample, picture)):
                top = int(random.integers(low.shape[0] - height + 1))
                left = int(random.integers(low.shape[1] - width + 1))
                s = sample.scale
                yield Tile(
                    name=sample.name,
                    low=grown(low[top : top + height, left : left + width], tile),
                    truth=None
                    if truth is None
                    else np.ascontiguousarray(
                        truth[top * s : (top + height) * s, left * s : (left + width) * s]
                    ),
                    scale=s,
                )

    @cached_property
    def sha256(self) -> str:
        """Hash of the contents of the pictures, in their order, and of how tiles are cut."""
        sizes = "" if self._sizes == ANY_SIZE else f" {self._sizes}"
        digest = hashlib.sha256(f"{self._plan.count} {self._plan.side}{sizes}".encode())
        for sample in self._samples:
            for path in (sample.low_resolution, sample.ground_truth):
                digest.update(b"-" if path is None else bytes.fromhex(sha256_from_file(path)))
        return digest.hexdigest()

    def _count(self, sample: Sample, size: ImageSize) -> int:
        if min(size) < LEAST_SIDE:
            raise HspanError(
                sample.low_resolution or sample.ground_truth,
                f"gives an input of {size} pixels, expected at least {LEAST_SIDE}x{LEAST_SIDE}",
                "leave the picture out or give a larger one",
            )
        return 1 if size.within(self._tile(size)) == size else -(-self._plan.count // self.pictures)

    def _tile(self, picture: ImageSize) -> ImageSize:
        return self._sizes.within(ImageSize(self._plan.side, self._plan.side).within(picture))


def calibration_crops(
    calibration: str | None,
    held_out: str | None,
    plan: TilePlan,
    scale: int,
    sizes: SizeRange,
    *,
    hold_out: bool,
    need_truth: bool,
) -> tuple[Crops, Crops]:
    """Tiles to calibrate on and to measure on; no tiles where there are no pictures.

    Held-out tiles are fewer and larger: a small one may be all smooth background, whose loss in dB says nothing about
    the picture's.

    Args:
        calibration, held_out: folders, or "builtin"; None for no such pictures.
        plan: of the calibration's tiles.
        scale, sizes: of the network and its inputs.
        hold_out: measure on every fourth picture where none are named for it.
        need_truth: measure on pictures with ground truth only: others become it, and are shrunk to be the input.

    Raises:
        HspanError: as `samples_from_place` and `Crops`; there is one picture only to split.
    """
    samples = [] if calibration is None else samples_from_place(calibration, scale)
    measured = [] if held_out is None else samples_from_place(held_out, scale)
    if hold_out and held_out is None:
        samples, measured = split(samples, str(calibration))
    if need_truth:
        measured = with_ground_truth(measured)
    larger = TilePlan(count=min(plan.count, 16), side=2 * plan.side)
    return Crops(samples, plan, sizes), Crops(measured, larger, sizes)


def samples_from_place(place: str, scale: int) -> list[Sample]:
    """The pictures of a folder, as `samples_from_folder` finds them, or the shipped photographs ("builtin").

    Pictures of a plain folder are inputs of the network. Shipped photographs are shrunk by the scale first.

    Raises:
        HspanError: no such folder, not readable, no pictures.
    """
    if place == BUILTIN:
        return [Sample(name=p.name, low_resolution=None, ground_truth=p, scale=scale) for p in _shipped()]
    try:
        return samples_from_folder(place, scale)
    except OSError as error:
        raise error_from_os_error(Path(place), error, action="read") from error


def check_place(place: str) -> None:
    """Checks what can be checked without knowing the scale. Raises: HspanError as `samples_from_place`."""
    folder = Path(place)
    if place == BUILTIN:
        _shipped()
        return
    try:
        if not (folder.is_file() or is_benchmark_set(folder)):
            plain_pictures(folder)
    except OSError as error:
        raise error_from_os_error(folder, error, action="read") from error


def with_ground_truth(samples: Sequence[Sample]) -> list[Sample]:
    """The same pictures; those without ground truth become it, and their shrunk version the input."""
    return [
        replace(each, low_resolution=None, ground_truth=each.low_resolution)
        if each.ground_truth is None
        else each
        for each in samples
    ]


def split(samples: Sequence[Sample], place: str) -> tuple[list[Sample], list[Sample]]:
    """Pictures to calibrate on, and pictures to measure on: every fourth, at least one.

    Raises:
        HspanError: there is one picture only.
    """
    if len(samples) < 2:
        raise HspanError(place, "one picture cannot be split", "add pictures, or name others with --held-out")
    step = min(_HELD_OUT_EVERY, len(samples))
    held_out = list(samples[step - 1 :: step])
    return [sample for sample in samples if sample not in held_out], held_out


def _shipped() -> list[Path]:
    pictures = sorted(_PHOTOGRAPHS.glob("*.jpg")) if _PHOTOGRAPHS.is_dir() else []
    if not pictures:
        raise HspanError(_PHOTOGRAPHS, "contains no photograph", "name a folder with --calibration")
    return pictures
