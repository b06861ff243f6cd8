"""The option --min-psnr of commands that compare networks with PyTorch."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from trt_hspan.errors import UsageError

MinPsnrOption = Annotated[
    float | None,
    typer.Option(
        metavar="DB",
        help="The bar for the worst picture, in dB against PyTorch.",
        show_default="50, and 40 for INT8 and FP8",
    ),
]


def require_bar(min_psnr: float | None) -> None:
    """Raises: UsageError when the bar is infinite or no number."""
    if min_psnr is not None and not math.isfinite(min_psnr):
        raise UsageError("--min-psnr", f"got {min_psnr}, expected a number of decibels")
