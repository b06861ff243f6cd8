"""The options that `quantize`, `sensitivity` and `build` share, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from trt_hspan.cli.progress import source_with_progress
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.engine.range_record import RangeAudit
    from trt_hspan.graph import Precision, QuantizedType
    from trt_hspan.precision.audit.range_request import RangeRequest
    from trt_hspan.precision.quantize.pipeline import QuantizationRequest, Quantized
    from trt_hspan.precision.quantize.recipe import Recipe


Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Pictures to measure ranges on; builtin takes the shipped photographs.",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(help="minmax, percentile, entropy or mse: how ranges are chosen.", show_default="mse"),
]
Rounding = Annotated[
    str | None,
    typer.Option(help="adaptive or nearest: how INT8 weights are rounded.", show_default="adaptive"),
]
Table = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Take ranges from this calibration table instead of measuring."),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="fp16, fp32 or bf16: type of what is not quantized.",
        show_default="fp16, or what the ONNX file holds",
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Pictures to measure the loss on.", show_default="every fourth of --calibration"
    ),
]
BudgetDb = Annotated[
    float | None,
    typer.Option(
        metavar="B",
        help="Largest loss of PSNR-Y; sensitive layers stay in the base type.",
        show_default=False,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="NODE", help="Quantize this convolution, sum or attention node too; repeatable."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="NODE", help="Leave this layer in the base type, a name or pattern; repeatable."),
]
Tiles = Annotated[int, typer.Option(help="Tiles to cut; at least one from each picture.")]
TileSide = Annotated[
    int, typer.Option("--tile", help="Side of a tile in input pixels; held-out ones are twice as wide.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure ranges anew, and keep no table.")]
RecipeFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Quantize as this recipe says, bit for bit, without pictures."),
]
DEFAULT_TILES, DEFAULT_SIDE = 32, 48


def request_from_options(
    *,
    precision: str,
    calibration: str | None,
    method: str | None,
    rounding: str | None,
    table: Path | None,
    held_out: str | None,
    budget_db: float | None,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    tiles: int,
    tile: int,
    no_cache: bool,
) -> QuantizationRequest:
    """Raises: UsageError as `QuantizationRequest`."""
    from trt_hspan.precision.crops import TilePlan
    from trt_hspan.precision.quantize.pipeline import QuantizationRequest
    from trt_hspan.precision.quantize.pipeline import Rounding as RoundingName
    from trt_hspan.precision.quantize.table import Method as MethodName

    if precision not in ("int8", "fp8"):
        raise UsageError(
            "--precision",
            f"got {precision!r}, expected int8 or fp8",
            "use trt-hspan export for fp16 and bf16",
        )
    return QuantizationRequest(
        precision=cast("QuantizedType", precision),
        calibration=calibration,
        method=cast("MethodName | None", method),
        rounding=cast("RoundingName | None", rounding),
        table=table,
        held_out=held_out,
        budget_db=budget_db,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        tiles=TilePlan(count=tiles, side=tile),
        use_cache=not no_cache,
    )


def refuse_beside_recipe(**options: object) -> None:
    """Raises: UsageError when one of the options was given: a recipe holds what they would say."""
    for name, value in options.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')}", "is told by the recipe", "leave it or --recipe out"
            )


def base_from_option(text: str | None) -> Precision | None:
    """Raises: UsageError when it is no float type."""
    from trt_hspan.engine.spec import BasePrecision, check_choice

    check_choice("--base", text, BasePrecision)
    return cast("Precision | None", text)


def quantize_from_recipe(
    model: str | Path, recipe: Recipe, *, where: Path, res_scale: float | None
) -> Quantized:
    """Raises: as `source_from_path` and `quantize_by_recipe`."""
    from trt_hspan.precision.quantize.pipeline import quantize_by_recipe

    base: Precision | None = recipe.base
    keep_fp32: Sequence[str] = recipe.keep_fp32
    if Path(model).suffix.lower() == ".onnx":
        if _base_of(model) != "fp32":  # it has its base type already; a wrong one is told by its hash
            base, keep_fp32 = None, ()
    elif res_scale is None:
        res_scale = recipe.res_scale
    source = source_with_progress(model, base=base, res_scale=res_scale, keep_fp32=keep_fp32)
    return quantize_by_recipe(source, recipe, where=where)


def _base_of(model: str | Path) -> Precision:
    from trt_hspan.graph import base_precision_from_model, load_onnx, require_attention

    loaded = load_onnx(model)
    require_attention(loaded, model)
    return base_precision_from_model(loaded)


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


def require_plugin_for(plugin: Path | None, sources: Iterable[object]) -> None:
    """Checks a library that was named, also where the engine will only be emulated and needs none.

    Raises:
        UsageError: none of the sources is an engine.
        HspanError: the file is missing or no plugin library of this package's ABI.
    """
    if plugin is None:
        return
    if not any(Path(str(source)).suffix.lower() == ".plan" for source in sources):
        raise UsageError("--plugin", "is for engines, and there is none", "leave it out")
    from trt_hspan.native.plugin import plugin_info_from_library

    plugin_info_from_library(plugin)


def range_request(
    audit: str | None, keep_fp32: Sequence[str] | None, *, precision: str | None
) -> RangeRequest | None:
    """What the options ask for; None when neither was given.

    Args:
        audit: a folder, or "builtin".
        keep_fp32: names, patterns, "at-risk".
        precision: of the network to export; None for one that exists.

    Raises:
        UsageError: the options contradict each other or the precision.
        HspanError: there is no such folder, or it holds no pictures.
    """
    if audit is None and not keep_fp32:
        return None
    from trt_hspan.precision.audit.range_request import RangeRequest

    request = RangeRequest(pictures=audit, keep_fp32=tuple(keep_fp32 or ()))
    request.require_low(precision)
    if audit is not None:
        from trt_hspan.precision.crops import check_place

        check_place(audit)
    return request


def export_with_ranges(
    checkpoint: str,
    output: Path,
    request: RangeRequest | None,
    *,
    precision: Precision,
    res_scale: float,
    opset: int | None = None,
    static: tuple[int, int] | None = None,
) -> RangeAudit | None:
    """Exports with a progress bar; audits first when that was asked for. Raises: as `export_audited`."""
    from trt_hspan.cli.progress import progress
    from trt_hspan.precision.audit.audited_export import export_audited
    from trt_hspan.precision.audit.range_request import RangeRequest

    with progress(f"exporting {checkpoint}") as bar:
        return export_audited(
            checkpoint,
            output,
            RangeRequest() if request is None else request,
            precision=precision,
            res_scale=res_scale,
            opset=opset,
            static=static,
            on_picture=lambda sample: bar.update(bar.task_ids[0], description=f"audited {sample.name}"),
        )


def audited_onnx(path: Path, request: RangeRequest | None) -> RangeAudit | None:
    """The ranges of an ONNX file that exists already. Raises: as `audit_ranges`; None when not asked for."""
    if request is None or request.pictures is None:
        return None
    from trt_hspan.cli.progress import progress
    from trt_hspan.precision.audit.ranges import audit_ranges
    from trt_hspan.precision.network import variants_from_path

    network = variants_from_path(path)
    kind = network.precision(None, option="--precision")
    samples = request.samples(network.metadata.scale or 1)
    with progress(f"auditing {path}"):
        return audit_ranges(network.template(kind), samples, kind, keep_fp32=network.kept_fp32)
