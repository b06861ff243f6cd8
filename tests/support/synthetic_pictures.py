"""Pictures made of smooth waves and sharp discs, with their exact half- and quarter-size versions."""

from __future__ import annotations

import numpy as np

from tools.training.data import Pair, Pixels
from trt_hspan.evaluation.resize import downscale


def picture(height: int, width: int, *, seed: int) -> Pixels:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    channels = []
    for _ in range(3):
        a, b, phase = random.uniform(-0.3, 0.3, 3)
        channels.append(0.5 + 0.25 * np.sin(a * y + b * x + 6 * phase))
    image = np.stack(channels, axis=-1)
    for _ in range(12):
        cy, cx, radius = random.uniform(0, height), random.uniform(0, width), random.uniform(3, 12)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = random.uniform(0, 1, 3)
    return np.round(image * 255).astype(np.uint8)


def pairs(scale: int, *, count: int = 3, height: int = 96, width: int = 80) -> list[Pair]:
    pictures = [picture(height, width, seed=seed) for seed in range(count)]
    return [Pair(f"synthetic{i}", downscale(high, scale), high) for i, high in enumerate(pictures)]
