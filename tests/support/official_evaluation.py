"""How the official code evaluates a network, in PyTorch, written down anew as a reference for tests.

Pictures are read by Pillow, so that nothing of the package is on the way but the network itself.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from support.official_chop import Network, chop_reference, self_ensemble_reference


def official_psnrs(
    network: Network, folder: Path, scale: int, *, chop: bool = True, self_ensemble: bool = False
) -> dict[str, float]:
    """PSNR of each picture of a benchmark set, by name: in float32, pixels from 0 to 1, as `--rgb_range 1` has it."""

    def once(x: torch.Tensor) -> torch.Tensor:
        return chop_reference(network, x, scale) if chop else network(x)

    psnrs = {}
    for file in sorted((folder / "HR").iterdir()):
        low = _tensor(folder / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png")
        height, width = (scale * side for side in low.shape[2:])
        high = _tensor(file)[:, :, :height, :width]
        with torch.no_grad():
            output = self_ensemble_reference(once, low) if self_ensemble else once(low)
        shown = (output * 255).clamp(0, 255).round() / 255
        weights = torch.tensor([65.738, 129.057, 25.064]) / 256
        luma = ((shown - high) * weights[:, None, None]).sum(dim=1)
        inner = luma[..., scale:-scale, scale:-scale]
        psnrs[file.stem] = -10 * math.log10(inner.pow(2).mean().item())
    return psnrs


def _tensor(file: Path) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]; gray becomes three equal channels."""
    pixels = np.asarray(Image.open(file))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255
