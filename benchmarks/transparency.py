#!/usr/bin/env python3
"""What a network should see under transparency: the stored black, colors multiplied by alpha, or colors filled in.

Photographs get four masks and are halved, colors weighted by alpha; where alpha is then 0 the color is black, as most
programs leave it. Doubled again, they are laid on white and on black and compared with the original. Prints PSNR in
decibels, the mean of all photographs. On the CPU, a minute.

    python benchmarks/transparency.py [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trt_hspan import data
from trt_hspan.media.pictures import read_image
from trt_hspan.runtime.torch_runner import TorchRunner
from trt_hspan.upscaling.upscaler import upscale_array

Pixels = npt.NDArray[np.uint8]
SIDE: Final = 120
PHOTOGRAPHS: Final = ("hopper.jpg", "grass.jpg", "bricks.jpg")
WAYS: Final = ("as stored", "multiplied", "filled")


def masks() -> dict[str, npt.NDArray[np.float64]]:
    """Shares of each pixel, of shapes that were drawn four times as large."""
    y, x = (np.mgrid[: 4 * SIDE, : 4 * SIDE] + 0.5) / SIDE - 2  # -2 to 2
    dots = np.random.default_rng(0).uniform(-2, 2, (60, 2))
    shapes = {
        "disc": np.hypot(y, x) < 1.6,
        "bars": np.abs((x + y) % 0.5 - 0.25) < 0.08,
        "dots": np.any([np.hypot(y - top, x - left) < 0.15 for top, left in dots], axis=0),
        "soft": np.clip(1.6 - np.hypot(y, x), 0, 1),
    }
    return {name: shape.reshape(SIDE, 4, SIDE, 4).mean((1, 3)) for name, shape in shapes.items()}


def halved(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(H, W) by Pillow's bicubic filter."""
    small = Image.fromarray(values.astype(np.float32)).resize(
        (SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC
    )
    return np.asarray(small, np.float64)


def stored(photograph: Pixels, mask: npt.NDArray[np.float64]) -> Pixels:
    """Half the size, (H, W, 4): colors as they are, and black where alpha is 0."""
    alpha = np.rint(255 * np.clip(halved(mask), 0, 1))
    weighted = np.stack([halved(photograph[..., k] * mask) for k in range(3)], axis=-1)
    colors = weighted * 255 / np.maximum(alpha, 1)[..., None]
    picture = np.dstack([np.clip(np.rint(colors), 0, 255), alpha])
    picture[alpha == 0] = 0
    return picture.astype(np.uint8)


def doubled(runner: TorchRunner, picture: Pixels, way: str) -> npt.NDArray[np.float64]:
    """(H, W, 4), colors times alpha, 0 to 255."""
    if way == "filled":
        result = upscale_array(runner, picture).astype(float)
        return np.dstack([result[..., :3] * result[..., 3:] / 255, result[..., 3]])
    colors = picture[..., :3]
    if way == "multiplied":
        colors = np.rint(colors * (picture[..., 3:] / 255)).astype(np.uint8)
    alpha = upscale_array(runner, np.ascontiguousarray(picture[..., 3:])).astype(float)
    result = upscale_array(runner, colors).astype(float)
    if way == "as stored":
        result *= alpha / 255
    return np.dstack([result, alpha])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    folder = Path(data.__file__).parent / "calibration"
    photographs = [read_image(data.DEMO_PHOTOGRAPH)[60:, 150:]]
    photographs += [read_image(folder / name) for name in PHOTOGRAPHS]
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with TorchRunner("hspan-tiny-x2") as runner:
        for name, mask in masks().items():
            for way in WAYS:
                losses: dict[str, list[float]] = {"white": [], "black": []}
                for whole in photographs:
                    photograph = whole[:SIDE, :SIDE]
                    result = doubled(runner, stored(photograph, mask), way)
                    for background, level in (("white", 255), ("black", 0)):
                        shown = result[..., :3] + level * (1 - result[..., 3:] / 255)
                        shares = mask[..., None]
                        error = np.rint(shown) - np.rint(photograph * shares + level * (1 - shares))
                        losses[background].append(10 * np.log10(255**2 / np.mean(error**2)))
                figures.setdefault(name, {})[way] = {key: float(np.mean(dbs)) for key, dbs in losses.items()}
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print("| mask | " + " | ".join(f"{way}, on white / black" for way in WAYS) + " |")
    print("| --- " * (1 + len(WAYS)) + "|")
    for name, ways in figures.items():
        print(
            f"| {name} | "
            + " | ".join(f"{db['white']:.1f} / {db['black']:.1f}" for db in ways.values())
            + " |"
        )


if __name__ == "__main__":
    main()
