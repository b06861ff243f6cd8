"""`trt-hspan quantize`: a network to its INT8 or FP8 form, with the recipe and the calibration table beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_hspan.cli import options
from trt_hspan.cli.progress import quantize_with_progress, source_with_progress
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.precision.quantize.pipeline import Quantized


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="An ONNX file, a .pt, .pth or .safetensors file, or a preset's name."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="NAME.onnx",
            help="The model; NAME.recipe.yaml and NAME.calibration.json are written beside it.",
        ),
    ],
    precision: Annotated[str | None, typer.Option(help="int8 or fp8.", show_default="int8")] = None,
    calibration: options.Calibration = None,
    method: options.Method = None,
    rounding: options.Rounding = None,
    budget_db: options.BudgetDb = None,
    base: options.Base = None,
    held_out: options.HeldOut = None,
    table: options.Table = None,
    recipe: options.RecipeFile = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="A node to keep in float32, a name or pattern; repeatable."),
    ] = None,
    tiles: options.Tiles = options.DEFAULT_TILES,
    tile: options.TileSide = options.DEFAULT_SIDE,
    no_cache: options.NoCache = False,
    res_scale: Annotated[
        float | None, typer.Option(help="Residual scale; checkpoints do not store it.", show_default="0.1")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write MODEL with explicit Q/DQ around its convolutions, as TensorRT builds it and ONNX Runtime runs it."""
    if output.suffix != ".onnx":
        raise UsageError(output, "an ONNX file's name ends in .onnx", "name another file")
    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.files import check_writable
    from trt_hspan.precision.quantize.pipeline import check_places, write_quantized

    check_writable(output)
    if recipe is not None:
        options.refuse_beside_recipe(
            precision=precision,
            base=base,
            calibration=calibration,
            method=method,
            rounding=rounding,
            table=table,
            held_out=held_out,
            budget_db=budget_db,
            include=include,
            exclude=exclude,
            keep_fp32=keep_fp32,
        )
        from trt_hspan.precision.quantize.recipe import read_recipe

        quantized = options.quantize_from_recipe(
            model, read_recipe(recipe), where=recipe, res_scale=res_scale
        )
    else:
        request = options.request_from_options(
            precision=precision or "int8",
            calibration=calibration,
            method=method,
            rounding=rounding,
            table=table,
            held_out=held_out,
            budget_db=budget_db,
            include=include,
            exclude=exclude,
            tiles=tiles,
            tile=tile,
            no_cache=no_cache,
        )
        check_places(request)
        source = source_with_progress(
            model, base=options.base_from_option(base), res_scale=res_scale, keep_fp32=keep_fp32 or ()
        )
        quantized = quantize_with_progress(source, request)
    written = write_quantized(quantized, output)
    report = _report(quantized, written)
    if json:
        print_json(report)
    else:
        print_table(f"Quantized {output}", report)


def _report(quantized: Quantized, written: list[Path]) -> dict[str, object]:
    from trt_hspan.cli.output import rounded
    from trt_hspan.files import sha256_from_file

    recipe, facts, table, measured = quantized.recipe, quantized.facts, quantized.table, quantized.measurement
    return {
        "onnx": str(written[0]),
        "recipe": str(written[1]),
        "calibration": str(written[2]) if len(written) > 2 else None,
        "size_bytes": written[0].stat().st_size,
        "sha256": sha256_from_file(written[0]),
        "precision": recipe.precision,
        "base": recipe.base,
        "opset": next(
            entry.version for entry in quantized.model.opset_import if entry.domain in ("", "ai.onnx")
        ),
        "convolutions": facts.convolutions,
        "quantized_convolutions": facts.quantized_convolutions,
        "quantized_mac_share": round(facts.mac_share, 4),
        "method": recipe.method,
        "calibration_pictures": None if table is None else table.pictures,
        "calibration_tiles": None if table is None else table.tiles,
        "calibration_from_cache": quantized.calibration_was_cached,
        "budget_db": recipe.budget_db,
        "loss_db": None if recipe.loss_db is None else rounded(recipe.loss_db, 4),
        "psnr_against_fp32_db": None if measured is None else round(measured.psnr_db, 2),
        "worst_psnr_against_fp32_db": None if measured is None else round(measured.worst_psnr_db, 2),
        "model_sha256": recipe.model_sha256,
        "recipe_sha256": recipe.sha256,
        "calibration_sha256": recipe.calibration_sha256,
    }
