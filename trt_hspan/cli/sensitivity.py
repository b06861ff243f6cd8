"""`trt-hspan sensitivity`: what each layer costs when only it is quantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_hspan.cli import options
from trt_hspan.cli.progress import source_with_progress, step_progress
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.precision.quantize.sensitivity import SensitivityReport


def sensitivity(
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
            metavar="NAME.json",
            help="The figures; NAME.png, a bar chart, is drawn beside them.",
        ),
    ],
    precision: Annotated[str, typer.Option(help="int8 or fp8.")] = "int8",
    calibration: options.Calibration = None,
    method: options.Method = None,
    rounding: options.Rounding = None,
    base: options.Base = None,
    held_out: options.HeldOut = None,
    table: options.Table = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    tiles: options.Tiles = options.DEFAULT_TILES,
    tile: options.TileSide = options.DEFAULT_SIDE,
    no_cache: options.NoCache = False,
    res_scale: Annotated[
        float | None, typer.Option(help="Residual scale; checkpoints do not store it.", show_default="0.1")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON too.")] = False,
) -> None:
    """Measure, layer by layer, what quantizing it alone costs against FP32 and against ground truth."""
    if output.suffix != ".json":
        raise UsageError(output, "the figures' name ends in .json", "name another file")
    request = options.request_from_options(
        precision=precision,
        calibration=calibration,
        method=method,
        rounding=rounding,
        table=table,
        held_out=held_out,
        budget_db=None,
        include=include,
        exclude=exclude,
        tiles=tiles,
        tile=tile,
        no_cache=no_cache,
    )
    if request.calibration is None and request.held_out is None:
        raise UsageError("--held-out", "is missing: a table holds no pictures to measure on", "name some")
    from trt_hspan.cli.output import print_json, print_table
    from trt_hspan.files import check_writable
    from trt_hspan.precision.quantize.pipeline import check_places, measure_sensitivity
    from trt_hspan.precision.quantize.sensitivity import require_matplotlib, write_sensitivity

    check_writable(output)
    require_matplotlib()
    check_places(request)
    source = source_with_progress(model, base=options.base_from_option(base), res_scale=res_scale)
    with step_progress(f"{precision}, layer by layer") as show:
        report = measure_sensitivity(source, request, on_progress=show)
    chart = write_sensitivity(report, output)
    if json:
        print_json({"json": str(output), "chart": str(chart), **report.as_dict()})
    else:
        print_table(f"Measured {output}, {chart}", _rows(report))


def _rows(report: SensitivityReport) -> dict[str, object]:
    from trt_hspan.cli.output import rounded

    def text(psnr_db: float, loss_db: float | None) -> str:
        return f"{psnr_db:6.2f} dB against FP32" + (
            "" if loss_db is None else f", loss {rounded(loss_db, 4):+.4f} dB"
        )

    return {
        f"{report.base_precision} alone": text(report.base.psnr_db, report.base.loss_db),
        f"all layers in {report.precision}": text(report.everything.psnr_db, report.everything.loss_db),
        **{layer.name: text(layer.psnr_db, layer.loss_db) for layer in report.layers},
    }
