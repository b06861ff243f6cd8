"""The options that `quantize`, `sensitivity` and `build` share, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.graph import Precision, QuantizedType
    from trt_hspan.quantization.pipeline import QuantizationRequest, Quantized
    from trt_hspan.quantization.recipe import Recipe
    from trt_hspan.quantization.source import Source

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
        help="fp16, fp32 or bf16: type of what is not quantised.",
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
    typer.Option(metavar="NODE", help="Quantise this convolution, sum or attention node too; repeatable."),
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
    typer.Option(metavar="FILE", help="Quantise as this recipe says, bit for bit, without pictures."),
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
    from trt_hspan.quantization.pipeline import QuantizationRequest
    from trt_hspan.quantization.pipeline import Rounding as RoundingName
    from trt_hspan.quantization.table import Method as MethodName
    from trt_hspan.quantization.tiles import TilePlan

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


def source_with_progress(
    model: str | Path,
    *,
    base: Precision | None,
    res_scale: float | None = None,
    keep_fp32: Sequence[str] = (),
) -> Source:
    """Reads or exports the network. Raises: as `source_from_path`."""
    from trt_hspan.cli.output import progress
    from trt_hspan.quantization.source import source_from_path

    with progress(f"reading {model}"):
        return source_from_path(model, base=base, res_scale=res_scale, keep_fp32=keep_fp32)


@contextmanager
def step_progress(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar that follows `pipeline.OnProgress`."""
    from trt_hspan.cli.output import progress

    with progress(description) as bar:
        task = bar.task_ids[0]

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{description}: {what}", completed=done, total=total)

        yield show


def quantize_with_progress(source: Source, request: QuantizationRequest) -> Quantized:
    """Raises: as `pipeline.quantize`."""
    from trt_hspan.quantization.pipeline import quantize

    with step_progress(request.precision) as show:
        return quantize(source, request, on_progress=show)


def quantize_from_recipe(
    model: str | Path, recipe: Recipe, *, where: Path, res_scale: float | None
) -> Quantized:
    """Raises: as `source_from_path` and `quantize_by_recipe`."""
    from trt_hspan.quantization.pipeline import quantize_by_recipe

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
