"""What is quantized, and how: by measured ranges or as a recipe says. Pure data."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trt_hspan.engine.spec import check_choice
from trt_hspan.errors import UsageError
from trt_hspan.graph import Precision, QuantizedType
from trt_hspan.precision.crops import TilePlan
from trt_hspan.precision.quantize.recipe import Recipe
from trt_hspan.precision.quantize.table import Method

Rounding = Literal["adaptive", "nearest"]


@dataclass(frozen=True, kw_only=True)
class QuantizationRequest:
    """What is quantized, and how its ranges are measured.

    Args:
        precision: "int8" or "fp8".
        calibration: a folder of pictures, or "builtin"; None needs a table.
        table: a calibration table to take ranges from instead of measuring them.
        method: how ranges are chosen; None is "mse".
        rounding: of INT8 weights; None is adaptive wherever there are pictures for it or the table contains it.
        budget_db: largest loss of PSNR-Y on held-out pictures; None quantizes every layer.
        held_out: pictures to measure on; None holds out every fourth of the calibration's when there is a budget.
        include, exclude: as in `layers.layers_to_quantize`.
        tiles: cut for calibration; as many are cut for measuring, at most 16.
        use_cache: whether a table of the same model, pictures and method may be reused, and is kept.

    Raises:
        UsageError: options that contradict each other, or make no sense.
    """

    precision: QuantizedType
    calibration: str | None = None
    table: Path | None = None
    method: Method | None = None
    rounding: Rounding | None = None
    budget_db: float | None = None
    held_out: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tiles: TilePlan = field(default_factory=TilePlan)
    use_cache: bool = True

    def __post_init__(self) -> None:
        check_choice("--precision", self.precision, QuantizedType)
        check_choice("--rounding", self.rounding, Rounding)
        check_choice("--method", self.method, Method)
        if self.calibration is None and self.table is None:
            raise UsageError(
                "--calibration",
                f"is missing: {self.precision} ranges are measured on pictures",
                "name a folder, or builtin for the shipped photographs",
            )
        if self.table is not None:
            for option, value in (("--method", self.method), ("--rounding", self.rounding)):
                if value is not None:
                    raise UsageError(option, "is part of the table", "leave it or --table out")
        if self.precision == "fp8" and self.rounding == "adaptive":
            raise UsageError("--rounding", "adaptive is for int8 weights", "leave it out")
        if self.budget_db is None:
            return
        if not (math.isfinite(self.budget_db) and self.budget_db > 0.0):
            raise UsageError("--budget-db", f"got {self.budget_db:g}, expected a positive number of dB")
        if self.calibration is None and self.held_out is None:
            raise UsageError("--budget-db", "needs pictures to measure on", "name some with --held-out")


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe, and the file that errors about it name."""

    path: Path
    recipe: Recipe

    @property
    def precision(self) -> QuantizedType:
        """Of the quantized layers."""
        return self.recipe.precision


@dataclass(frozen=True, kw_only=True)
class QuantizationJob:
    """A network that is to be quantized.

    Args:
        model: an ONNX file, a checkpoint file or a preset.
        how: what to measure, or the recipe to follow.
        base, res_scale, keep_fp32: as `source_from_path` takes them; a recipe contains its own.
    """

    model: str | os.PathLike[str]
    how: QuantizationRequest | RecipeFile
    base: Precision | None = None
    res_scale: float | None = None
    keep_fp32: tuple[str, ...] = ()
