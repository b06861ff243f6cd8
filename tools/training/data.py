"""Pairs of pictures in memory, and random patches of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trt_hspan.errors import HspanError
from trt_hspan.media.pictures import read_image
from trt_hspan.media.pixels import image_from_tensor

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """A picture at both resolutions: (h, w, 3) and (h * scale, w * scale, 3), uint8 RGB."""

    name: str
    low: Pixels
    high: Pixels


def load_pairs(folder: Path, scale: int) -> list[Pair]:
    """Reads `HR/NAME.png` and `LR_bicubic/X{scale}/NAMEx{scale}.png`, sorted by name.

    Raises:
        HspanError: there are none, or sizes do not fit the scale.
    """
    pairs = []
    for path in sorted((folder / "HR").glob("*.png")):
        low = read_image(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")
        high = read_image(path)
        if high.shape[:2] != (low.shape[0] * scale, low.shape[1] * scale):
            sizes = f"{high.shape[:2]}, its low-resolution picture {low.shape[:2]}"
            raise HspanError(path, f"is {sizes}, which is not scale {scale}", "prepare the data again")
        pairs.append(Pair(path.stem, low, high))
    if not pairs:
        raise HspanError(folder, "contains no HR/*.png", "run scripts/prepare_training_data.py")
    return pairs


def tensor_from_pixels(pixels: Pixels) -> Tensor:
    """(N, H, W, 3) or (H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1], channels last in memory."""
    batch = pixels if pixels.ndim == 4 else pixels[None]
    return torch.from_numpy(batch.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)


def upscaled_pixels(model: torch.nn.Module, low: Pixels) -> Pixels:
    """(h, w, 3) uint8 through the network -> (h * scale, w * scale, 3) uint8: times 255, clamped, rounded."""
    with torch.no_grad():
        return image_from_tensor(model(tensor_from_pixels(low)).numpy())


class PatchSampler:
    """Random patches, flipped and rotated: pictures by area, and of two places the one with more contrast.

    Args:
        pairs: the pictures; those smaller than a patch are not used.
        scale: of the pairs.
        patch: side of a low-resolution patch in pixels.
        seed: of the random numbers.
    """

    def __init__(self, pairs: list[Pair], *, scale: int, patch: int, seed: int) -> None:
        self._pairs = [pair for pair in pairs if min(pair.low.shape[:2]) >= patch]
        if not self._pairs:
            raise HspanError("patch", f"no picture is as large as {patch}x{patch}", "use smaller patches")
        self._scale, self._patch = scale, patch
        areas = np.array([pair.low.shape[0] * pair.low.shape[1] for pair in self._pairs], dtype=np.float64)
        self._chances = areas / areas.sum()
        self._random = np.random.default_rng(seed)

    @property
    def state(self) -> dict[str, Any]:
        """Of the random numbers; assign it to continue where it was read."""
        return dict(self._random.bit_generator.state)

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._random.bit_generator.state = state

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """(size, 3, patch, patch) and (size, 3, patch * scale, patch * scale), float32 in [0, 1]."""
        patches = [self._draw() for _ in range(size)]
        low, high = (np.stack(column) for column in zip(*patches, strict=True))
        return tensor_from_pixels(low), tensor_from_pixels(high)

    def _draw(self) -> tuple[Pixels, Pixels]:
        places = [self._place() for _ in range(2)]
        pair, y, x = max(places, key=lambda place: float(self._low(*place).std(axis=(0, 1)).sum()))
        side = self._patch * self._scale
        top, left = y * self._scale, x * self._scale
        low, high = self._low(pair, y, x), pair.high[top : top + side, left : left + side]
        turns, flip = int(self._random.integers(4)), bool(self._random.integers(2))
        low, high = np.rot90(low, turns), np.rot90(high, turns)
        return (low[:, ::-1], high[:, ::-1]) if flip else (low, high)

    def _place(self) -> tuple[Pair, int, int]:
        pair = self._pairs[self._random.choice(len(self._pairs), p=self._chances)]
        height, width = pair.low.shape[:2]
        y = int(self._random.integers(height - self._patch + 1))
        return pair, y, int(self._random.integers(width - self._patch + 1))

    def _low(self, pair: Pair, y: int, x: int) -> Pixels:
        return pair.low[y : y + self._patch, x : x + self._patch]
