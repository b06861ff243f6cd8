"""Options that several commands share, each spelled out once, and the groups in which they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trt_hspan.cli.request import argument, flag, given_options, option
from trt_hspan.errors import UsageError
from trt_hspan.model.config import DEFAULT_RES_SCALE

if TYPE_CHECKING:
    from trt_hspan.graph import Precision
    from trt_hspan.precision.audit.range_request import RangeRequest
    from trt_hspan.precision.quantize.request import QuantizationJob, QuantizationRequest


def output(metavar: str, help: str, *, default: Any = ..., shown: str | bool = True) -> Any:
    """The option --output of one command."""
    return option(help, metavar, default=default, shown=shown, names=("--output", "-o"))


def res_scale(*, shown: str = f"what it says, else {DEFAULT_RES_SCALE}") -> Any:
    """The option --res-scale."""
    return option("Residual scale of a checkpoint.", min=0, shown=shown)


def keep_fp32(more: str = "") -> Any:
    """The option --keep-fp32, and what else it takes beside names and patterns."""
    return option(f"A node to keep in float32, a name or pattern{more}; repeatable.", "NODE", default=())


json = partial(flag, "Print the result as JSON.")
device = partial(
    option,
    "auto, cpu, gpu, or gpu:1 for the second GPU; for ONNX files cpu:onnxruntime, which computes as an engine would, "
    "or cpu:openvino, which is faster in INT8 and BF16 and taken for INT8 where it is installed.",
    default="auto",
)
threads = partial(option, "CPU threads.", "N", shown="the backend's choice")
plugin = partial(
    option, "The plugin library of an engine.", "LIBRARY", shown="that of trt-hspan plugin build"
)
network = partial(argument, "An ONNX file, a .pt, .pth or .safetensors file, or a preset's name.", "MODEL")
tile = partial(
    option,
    "auto: the whole picture where the network, memory and time allow it, else the largest tiles that do. Attention "
    "sees one tile at a time, so tiles change the result.",
    "auto|none|HxW",
    default="auto",
)
limit = partial(option, "Take the first N pictures only.", "N", min=1)
min_psnr = partial(
    option, "The bar for the worst picture, in dB against PyTorch.", "DB", shown="50, and 40 for INT8 and FP8"
)
seconds = partial(option, "Time of sampling for each figure.", default=3.0)
opset = partial(option, "Version of the ONNX operators to export with.", shown="18, for bf16 22")
opt_level = partial(option, "0 (fast build) to 5 (fast engine); tensorrt only.", shown="TensorRT's")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where an engine runs."""

    device: str = device()
    plugin: Path | None = plugin()

    def require_plugin_for(self, sources: Iterable[object]) -> None:
        """Checks a library that was named, also where the engine will only be emulated and needs none."""
        if self.plugin is None:
            return
        if not any(Path(str(source)).suffix.lower() == ".plan" for source in sources):
            raise UsageError("--plugin", "is for engines, and there is none", "leave it out")
        from trt_hspan.native.plugin import plugin_info_from_library

        plugin_info_from_library(self.plugin)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint becomes an ONNX file."""

    res_scale: float | None = res_scale()
    opset: int | None = opset()
    audit: str | None = option(
        "Audit ranges on these pictures first; builtin: the shipped photographs.", "DIR"
    )
    keep_fp32: tuple[str, ...] = keep_fp32(", or with --audit at-risk or budget:DB")

    def ranges(self, precision: str | None) -> RangeRequest:
        """What is audited and kept in float32; `precision` is that of the export, None for a network that exists."""
        from trt_hspan.precision.audit.range_request import RangeRequest

        request = RangeRequest(pictures=self.audit, keep_fp32=self.keep_fp32)
        request.require_low(precision)
        request.check_pictures()
        return request


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """How the ranges of a network are measured."""

    calibration: str | None = option(
        "Pictures to measure ranges on; builtin: the shipped photographs.", "DIR", shown=False
    )
    method: str | None = option("minmax, percentile, entropy or mse: how ranges are chosen.", shown="mse")
    rounding: str | None = option("adaptive or nearest: how INT8 weights are rounded.", shown="adaptive")
    base: str | None = option(
        "fp16, fp32 or bf16: type of what is not quantized.", shown="fp16, or what the ONNX file contains"
    )
    held_out: str | None = option(
        "Pictures to measure the loss on.", "DIR", shown="every fourth of --calibration"
    )
    table: Path | None = option("Take ranges from this calibration table instead of measuring.", "FILE")
    include: tuple[str, ...] = option(
        "Quantize this convolution, sum or attention node too; repeatable.", "NODE", default=()
    )
    exclude: tuple[str, ...] = option(
        "Leave this layer in the base type, a name or pattern; repeatable.", "NODE", default=()
    )
    tiles: int = option("Tiles to cut; at least one from each picture.", default=32)
    tile: int = option(
        "Side of a tile in input pixels; held-out ones are twice as wide and high.", default=48
    )
    no_cache: bool = flag("Measure ranges anew, and keep no table.")

    def request(self, precision: str, *, budget_db: float | None = None) -> QuantizationRequest:
        """Raises: UsageError as `QuantizationRequest`."""
        from trt_hspan.precision.crops import TilePlan
        from trt_hspan.precision.quantize.request import QuantizationRequest

        if precision not in ("int8", "fp8"):
            raise UsageError(
                "--precision",
                f"got {precision!r}, expected int8 or fp8",
                "use trt-hspan export for fp16 and bf16",
            )
        return QuantizationRequest(
            precision=precision,  # type: ignore[arg-type]  # checked above, the others by the request
            calibration=self.calibration,
            method=self.method,  # type: ignore[arg-type]
            rounding=self.rounding,  # type: ignore[arg-type]
            table=self.table,
            held_out=self.held_out,
            budget_db=budget_db,
            include=self.include,
            exclude=self.exclude,
            tiles=TilePlan(count=self.tiles, side=self.tile),
            use_cache=not self.no_cache,
        )

    def base_type(self) -> Precision | None:
        """Raises: UsageError when --base is no float type."""
        from trt_hspan.engine.spec import BasePrecision, check_choice

        check_choice("--base", self.base, BasePrecision)
        return cast("Precision | None", self.base)


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions(CalibrationOptions):
    """How a network is quantized: as was measured, within a budget, or as a recipe says."""

    budget_db: float | None = option(
        "Largest loss of PSNR-Y; sensitive layers stay in the base type.", "DB", shown=False
    )
    recipe: Path | None = option("Quantize as this recipe says, bit for bit, without pictures.", "FILE")

    def job(
        self, model: str | Path, precision: str | None, *, res_scale: float | None, keep_fp32: tuple[str, ...]
    ) -> QuantizationJob:
        """Raises: UsageError for an option beside --recipe, which contains them all, or as `QuantizationRequest`."""
        from trt_hspan.precision.quantize.recipe import read_recipe
        from trt_hspan.precision.quantize.request import QuantizationJob, RecipeFile

        base = self.base_type()
        if self.recipe is None:
            how = self.request(precision or "int8", budget_db=self.budget_db)
            return QuantizationJob(model=model, how=how, base=base, res_scale=res_scale, keep_fp32=keep_fp32)
        given = [option for option in given_options(self) if option != "--recipe"]
        given += ["--keep-fp32"] if keep_fp32 else []
        if given:
            raise UsageError(given[0], "is part of the recipe", "leave it or --recipe out")
        recipe = RecipeFile(path=self.recipe, recipe=read_recipe(self.recipe))
        if precision not in (None, recipe.precision):
            raise UsageError(
                "--precision", f"{precision}, but {self.recipe} is for {recipe.precision}", "leave it out"
            )
        return QuantizationJob(model=model, how=recipe, res_scale=res_scale)
