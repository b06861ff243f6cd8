"""Golden tile plans and upscaled pictures of the Python runtime, for programs that run where Python is not.

`PYTHONPATH=.:tests python tests/plugins/runtime/golden_tiles.py` writes golden/tiles.json; a test compares the file
with what the Python runtime gives now.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from support.tile_networks import BoundedRunner

from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.options import UpscaleOptions
from trt_hspan.upscaling.tile_size import plan_for_picture, smaller_tile
from trt_hspan.upscaling.tiling import Span, tile_plan
from trt_hspan.upscaling.upscaler import upscale_array

GOLDEN = Path(__file__).parent / "golden" / "tiles.json"


def golden_document() -> dict[str, Any]:
    """Plans as lists of spans, and the SHA-256 of pictures that were upscaled in tiles."""
    draw = random.Random(1)
    plans = []
    while len(plans) < 60:
        tile, minimum = ((draw.randint(1, 200), draw.randint(1, 200)) for _ in range(2))
        overlap = draw.randint(0, max(1, min(tile)) // 2)
        size = (draw.randint(1, 1500), draw.randint(1, 1500))
        plan = tile_plan(ImageSize(*size), ImageSize(*tile), overlap, minimum=ImageSize(*minimum))
        plans.append(
            {
                "size": size,
                "tile": tile,
                "overlap": overlap,
                "minimum": minimum,
                "rows": _spans(plan.rows),
                "columns": _spans(plan.columns),
            }
        )
    pictures = []
    for channels in (1, 2, 3, 4):
        for bits in (8, 16):
            image = golden_picture(37, 45, channels, bits)
            runner = BoundedRunner((8, 8), (24, 32), scale=3)
            with runner:
                result = upscale_array(runner, image, UpscaleOptions(tile=(16, 20), overlap=7))
            pictures.append(
                {
                    "channels": channels,
                    "bits": bits,
                    "sha256": sha256(result.astype(f"<u{bits // 8}").tobytes()).hexdigest(),
                }
            )
    return {"plans": plans, "profiles": _plans_of_several_profiles(), "pictures": pictures}


def _plans_of_several_profiles() -> list[dict[str, Any]]:
    """Plans for engines with two or three profiles, and the tile that is tried when memory runs out."""
    draw = random.Random(2)
    plans = []
    for number in range(90):
        multiple = 1 if number < 60 else draw.choice((4, 8, 12))

        def side(low: int, high: int, step: int = multiple) -> int:
            return step * draw.randint(-(low // -step), high // step)

        lows = [(side(1, 300), side(1, 300)) for _ in range(draw.randint(2, 3))]
        ranges = [(low, (side(low[0], 400), side(low[1], 400))) for low in lows]
        size = (draw.randint(1, 1500), draw.randint(1, 1500))
        limit = (draw.randint(16, 400), draw.randint(16, 400)) if number % 3 == 0 else None
        low, high = draw.choice(ranges)
        tile = (side(low[0], high[0]), side(low[1], high[1])) if number % 4 == 0 else None
        runner = BoundedRunner(*ranges[0], more=ranges[1:])
        runner.size_multiple = multiple
        plan = plan_for_picture(
            runner, ImageSize(*size), tile=tile or "auto", limit=limit and ImageSize(*limit)
        )
        plans.append(
            {
                "ranges": ranges,
                "multiple": multiple,
                "size": size,
                "limit": limit,
                "tile": tile,
                "rows": _spans(plan.rows),
                "columns": _spans(plan.columns),
                "next": smaller_tile(runner, plan.tile),
            }
        )
    return plans


def _spans(axis: Sequence[Span]) -> list[list[int]]:
    return [[s.start, s.length, s.rise_start, s.rise_length, s.fall_start, s.fall_length] for s in axis]


def golden_picture(height: int, width: int, channels: int, bits: int) -> np.ndarray[Any, np.dtype[Any]]:
    """(height, width, channels): sample number i is (i * i * 7 + i * 13) mod 2^bits."""
    index = np.arange(height * width * channels, dtype=np.uint64)
    samples = (index * index * 7 + index * 13) % (1 << bits)
    return samples.astype(np.uint8 if bits == 8 else np.uint16).reshape(height, width, channels)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_document()) + "\n")
