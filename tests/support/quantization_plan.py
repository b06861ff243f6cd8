"""How the quantization tests cut tiles: few and small."""

from __future__ import annotations

from trt_hspan.precision.crops import TilePlan

PLAN = TilePlan(count=6, side=20)
