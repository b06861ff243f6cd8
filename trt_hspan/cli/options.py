"""Options that several commands share, each spelled out once, and the groups in which they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trt_hspan.cli.request import given_options
from trt_hspan.errors import UsageError
from trt_hspan.model.config import DEFAULT_RES_SCALE

if TYPE_CHECKING:
    from trt_hspan.graph import Precision
    from trt_hspan.precision.audit.range_request import RangeRequest
    from trt_hspan.precision.quantize.request import QuantizationJob, QuantizationRequest


def output(metavar: str, help: str, *, show_default: str | bool = True) -> Any:
    """The option --output of one command."""
    return typer.Option("--output", "-o", metavar=metavar, help=help, show_default=show_default)


def res_scale(*, show_default: str = str(DEFAULT_RES_SCALE)) -> Any:
    """The option --res-scale."""
    return typer.Option(
        min=0, help="Residual scale of a checkpoint, which does not store it.", show_default=show_default
    )


def keep_fp32(more: str = "") -> Any:
    """The option --keep-fp32, and what else it takes beside names and patterns."""
    return typer.Option(
        metavar="NODE", help=f"A node to keep in float32, a name or pattern{more}; repeatable."
    )


ResScale = Annotated[float | None, res_scale()]

Json = Annotated[bool, typer.Option(help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu, gpu, or gpu:1 for the second GPU.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="CPU threads.", show_default="the backend's choice")
]
Plugin = Annotated[
    Path | None,
    typer.Option(
        metavar="LIBRARY",
        help="The plugin library of an engine.",
        show_default="that of trt-hspan plugin build",
    ),
]
IntegerKernels = Annotated[
    bool,
    typer.Option(
        help="For INT8 ONNX files: convolutions in ONNX Runtime's integer kernels (VNNI where the processor has it). "
        "Faster on large networks; single values differ by one quantization step.",
    ),
]
Network = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="An ONNX file, a .pt, .pth or .safetensors file, or a preset's name."
    ),
]
Tile = Annotated[
    str,
    typer.Option(
        metavar="auto|none|HxW",
        help="auto: the whole picture where the network, memory and time allow it, else the largest tiles "
        "that do. Attention sees one tile at a time, so tiles change the result.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Take the first N pictures only.")]
MinPsnr = Annotated[
    float | None,
    typer.Option(
        metavar="DB",
        help="The bar for the worst picture, in dB against PyTorch.",
        show_default="50, and 40 for INT8 and FP8",
    ),
]
Seconds = Annotated[float, typer.Option(help="Time of sampling for each figure.")]
Opset = Annotated[
    int | None,
    typer.Option(help="Version of the ONNX operators to export with.", show_default="18, for bf16 22"),
]
OptLevel = Annotated[
    int | None,
    typer.Option(help="0 (fast build) to 5 (fast engine); tensorrt only.", show_default="TensorRT's"),
]


def residual_scale(res_scale: float | None) -> float:
    """The value of --res-scale, given or not."""
    return DEFAULT_RES_SCALE if res_scale is None else res_scale


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where an engine runs."""

    device: Device = "auto"
    plugin: Plugin = None

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

    res_scale: ResScale = None
    opset: Opset = None
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Audit ranges on these pictures first; builtin: the shipped photographs."
        ),
    ] = None
    keep_fp32: Annotated[tuple[str, ...], keep_fp32(", or with --audit at-risk or budget:DB")] = ()

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

    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Pictures to measure ranges on; builtin: the shipped photographs.",
            show_default=False,
        ),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(help="minmax, percentile, entropy or mse: how ranges are chosen.", show_default="mse"),
    ] = None
    rounding: Annotated[
        str | None,
        typer.Option(help="adaptive or nearest: how INT8 weights are rounded.", show_default="adaptive"),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            help="fp16, fp32 or bf16: type of what is not quantized.",
            show_default="fp16, or what the ONNX file contains",
        ),
    ] = None
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Pictures to measure the loss on.",
            show_default="every fourth of --calibration",
        ),
    ] = None
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take ranges from this calibration table instead of measuring."),
    ] = None
    include: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="NODE", help="Quantize this convolution, sum or attention node too; repeatable."
        ),
    ] = ()
    exclude: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="NODE", help="Leave this layer in the base type, a name or pattern; repeatable."
        ),
    ] = ()
    tiles: Annotated[int, typer.Option(help="Tiles to cut; at least one from each picture.")] = 32
    tile: Annotated[
        int, typer.Option(help="Side of a tile in input pixels; held-out ones are twice as wide and high.")
    ] = 48
    no_cache: Annotated[bool, typer.Option(help="Measure ranges anew, and keep no table.")] = False

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

    budget_db: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Largest loss of PSNR-Y; sensitive layers stay in the base type.",
            show_default=False,
        ),
    ] = None
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Quantize as this recipe says, bit for bit, without pictures."),
    ] = None

    def job(
        self, model: str | Path, precision: str | None, *, res_scale: float | None, keep_fp32: tuple[str, ...]
    ) -> QuantizationJob:
        """Raises: UsageError for an option beside --recipe, which contains them all, or as `QuantizationRequest`."""
        from trt_hspan.precision.quantize.request import QuantizationJob, recipe_from_file

        base = self.base_type()
        if self.recipe is None:
            how = self.request(precision or "int8", budget_db=self.budget_db)
            return QuantizationJob(model=model, how=how, base=base, res_scale=res_scale, keep_fp32=keep_fp32)
        given = [option for option in given_options(self) if option != "--recipe"]
        given += ["--keep-fp32"] if keep_fp32 else []
        if given:
            raise UsageError(given[0], "is part of the recipe", "leave it or --recipe out")
        recipe = recipe_from_file(self.recipe)
        if precision not in (None, recipe.precision):
            raise UsageError(
                "--precision", f"{precision}, but {self.recipe} is for {recipe.precision}", "leave it out"
            )
        return QuantizationJob(model=model, how=recipe, res_scale=res_scale)
