"""`trt-hspan validate`: does an engine compute what the checkpoint computes in PyTorch?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_hspan.errors import HspanError, UsageError

if TYPE_CHECKING:
    from trt_hspan.evaluation.compare import Quality, ValidationReport


def validate(
    engine_or_onnx: Annotated[
        Path,
        typer.Argument(
            metavar="ENGINE_OR_ONNX", help="A .plan with its manifest beside it, or an .onnx file."
        ),
    ],
    checkpoint: Annotated[
        str, typer.Option(help="The .pt, .pth or .safetensors file, or preset, that it was made from.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="A folder of pictures, or a benchmark set: HR/NAME.png and LR_bicubic/X4/NAMEx4.png.",
            show_default="the shipped photograph",
        ),
    ] = None,
    min_psnr: Annotated[
        float, typer.Option(metavar="DB", help="The bar for the worst picture, in dB against PyTorch.")
    ] = 50.0,
    res_scale: Annotated[
        float | None,
        typer.Option(
            help="Residual scale; checkpoints do not store it.",
            show_default="what the ONNX file says, else 0.1",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Compare on the first N pictures only.")
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option(help="Plugin library of the engine.", show_default="the one that `plugin build` writes"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare an engine, or its ONNX file on a CPU, with PyTorch on real pictures. Exit code 1 below the bar."""
    if not math.isfinite(min_psnr):
        raise UsageError("--min-psnr", f"got {min_psnr}, expected a number of decibels")
    if engine_or_onnx.suffix.lower() not in (".plan", ".onnx"):
        raise UsageError(
            engine_or_onnx, "is neither an engine nor an ONNX file", "name a .plan or an .onnx file"
        )
    from trt_hspan.cli.output import print_json, progress
    from trt_hspan.evaluation.compare import common_scale
    from trt_hspan.evaluation.compare import validate as compare
    from trt_hspan.evaluation.datasets import samples_from_folder, shipped_samples
    from trt_hspan.runtime.opening import open_runner
    from trt_hspan.runtime.torch_runner import TorchRunner

    candidate = open_runner(engine_or_onnx, plugin=plugin)
    chosen = next(value for value in (res_scale, candidate.res_scale, 0.1) if value is not None)
    reference = TorchRunner(checkpoint, res_scale=chosen)
    scale = common_scale(candidate, reference)
    samples = shipped_samples(scale) if images is None else samples_from_folder(images, scale)
    samples = samples[:limit]
    with progress("comparing", total=len(samples)) as bar:
        report = compare(
            candidate,
            reference,
            samples,
            min_psnr_db=min_psnr,
            on_picture=lambda _: bar.advance(bar.task_ids[0]),
        )
    if json:
        print_json(report.as_dict())
    else:
        _print_report(report)
    if not report.passed:
        raise HspanError(
            engine_or_onnx, _failure(report), "try --precision fp32 or bf16, or lower --min-psnr"
        )


def _failure(report: ValidationReport) -> str:
    if report.total.nan_count:
        return f"{report.total.nan_count} values are NaN or infinite"
    worst = min(report.pictures, key=lambda picture: picture.agreement.psnr_db)
    return (
        f"agrees with PyTorch to {worst.agreement.psnr_db:.2f} dB on {worst.name}, "
        f"the bar is {report.min_psnr_db:g} dB"
    )


def _print_report(report: ValidationReport) -> None:
    from trt_hspan.cli.output import print_rows, print_table

    total = report.total
    with_truth = total.reference_quality is not None
    columns = ["picture", "input", "PSNR dB", "max error", "mean error", "NaN"]
    if with_truth:
        columns += ["PSNR-Y PyTorch", "PSNR-Y", "SSIM PyTorch", "SSIM"]
    rows = [
        [
            picture.name,
            f"{picture.width}x{picture.height}",
            f"{picture.agreement.psnr_db:.2f}",
            f"{picture.agreement.max_abs_error:.2e}",
            f"{picture.agreement.mean_abs_error:.2e}",
            str(picture.agreement.nan_count),
            *(_quality_cells(picture.reference_quality, picture.candidate_quality) if with_truth else ()),
        ]
        for picture in report.pictures
    ]
    totals = [
        "total: worst PSNR",
        "",
        f"{total.worst_psnr_db:.2f}",
        f"{total.max_abs_error:.2e}",
        f"{total.mean_abs_error:.2e}",
        str(total.nan_count),
        *(_quality_cells(total.reference_quality, total.candidate_quality) if with_truth else ()),
    ]
    print_rows(f"{report.candidate}, against {report.reference}", columns, rows, totals)
    same = {True: "the same", False: "differs", None: "not known"}[report.same_source]
    notes = {
        "result": f"{'passed' if report.passed else 'FAILED'}: worst {total.worst_psnr_db:.2f} dB, "
        f"mean {total.mean_psnr_db:.2f} dB, bar {report.min_psnr_db:g} dB",
        "checkpoint of both": same,
    }
    if report.emulated:
        notes["executed"] = "emulated on CPU" + (f": {report.why_emulated}" if report.why_emulated else "")
    print_table("", notes)


def _quality_cells(reference: Quality | None, candidate: Quality | None) -> tuple[str, ...]:
    if reference is None or candidate is None:
        return ("-", "-", "-", "-")
    return (
        f"{reference.psnr_y_db:.3f}",
        f"{candidate.psnr_y_db:.3f}",
        f"{reference.ssim_y:.4f}",
        f"{candidate.ssim_y:.4f}",
    )
