"""What cutting a picture into tiles changes. Owns the measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trt_hspan.runtime.runner import Float32Array
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.upscaler import Upscaler, upscale_batch


@dataclass(frozen=True, kw_only=True)
class TileEffect:
    """The result in tiles against the result as a whole, before clamping and rounding, white being 1.

    Attributes:
        psnr_db: 10 log10(1 / mean squared difference); infinite when there is none.
        max_abs_difference: the largest difference of a value.
    """

    psnr_db: float
    max_abs_difference: float


def tile_effect(upscaler: Upscaler, batch: Float32Array) -> TileEffect:
    """Runs a batch in tiles and as a whole. The attention of a tile sees that tile only, so the two differ.

    Args:
        upscaler: with an active runner; its options say how tiles are cut.
        batch: (N, 3, H, W) float32 in [0, 1].

    Raises:
        HspanError: the whole does not fit the network or the memory.
    """
    ensemble = upscaler.options.self_ensemble
    whole = upscale_batch(upscaler.runner, batch, UpscaleOptions(tile="none", self_ensemble=ensemble))
    tiled = Upscaler(upscaler.runner, upscaler.options)
    tiled.limit = upscaler.limit
    difference = np.abs(tiled.batch(batch).astype(np.float64) - whole)
    mean = float(np.mean(difference**2))
    return TileEffect(
        psnr_db=-10 * math.log10(mean) if mean > 0 else math.inf, max_abs_difference=float(difference.max())
    )
