"""`trt-hspan validate`: does an engine compute what the checkpoint computes in PyTorch?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_hspan.cli.options import MinPsnrOption, require_bar, require_plugin_for
from trt_hspan.errors import HspanError, UsageError

if TYPE_CHECKING:
    from trt_hspan.evaluation.compare import Quality, ValidationReport


def validate(
    checkpoint: Annotated[
        str, typer.Option(help="The .pt, .pth or .safetensors file, or preset, that they were made from.")
    ],
    engines: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="ENGINE_OR_ONNX...",
            help="A .plan with its manifest beside it, or an .onnx file; several are compared in one go.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="bf16",
            help="Also compare --checkpoint itself as PyTorch runs it in this precision, where the processor has its "
            "instructions.",
            show_default="none",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="A folder of pictures, or a benchmark set: HR/NAME.png and LR_bicubic/X4/NAMEx4.png.",
            show_default="the shipped photograph",
        ),
    ] = None,
    min_psnr: MinPsnrOption = None,
    budget_db: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="The most PSNR-Y that may be lost against ground truth, as a mean over the pictures.",
            show_default="no budget",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write DIR/index.html, one self-contained page, and DIR/report.json."
        ),
    ] = None,
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
    tile: Annotated[
        str,
        typer.Option(
            metavar="HxW", help="auto, none, or the tiles that all networks get; auto cuts large pictures."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, or gpu:1: where engines run.")] = "auto",
    plugin: Annotated[
        Path | None,
        typer.Option(help="Plugin library of the engine.", show_default="the one that `plugin build` writes"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare engines, or ONNX files on a CPU, with PyTorch on real pictures. Exit code 1 below the bar."""
    engines = engines or []
    _check_options(engines, min_psnr, budget_db, precision, report)
    require_plugin_for(plugin, engines)
    from trt_hspan.cli.output import print_json
    from trt_hspan.cli.progress import progress
    from trt_hspan.evaluation.compare import Outputs, common_scale, validate_all
    from trt_hspan.evaluation.datasets import samples_from_folder, shipped_samples
    from trt_hspan.evaluation.report import EvidenceCollector
    from trt_hspan.evaluation.report.rows import labels_of
    from trt_hspan.runtime.opening import open_runner
    from trt_hspan.runtime.torch_runner import TorchRunner
    from trt_hspan.sizes import tile_from_text
    from trt_hspan.upscaling.options import UpscaleOptions

    options = UpscaleOptions(tile=tile_from_text(tile))
    if report is not None:
        _check_report_folder(report)
    candidates = [
        open_runner(
            path, plugin=plugin if path.suffix.lower() == ".plan" else None, device=_device(path, device)
        )
        for path in engines
    ]
    known = [runner.res_scale for runner in candidates]
    scaling = next(value for value in (res_scale, *known, 0.1) if value is not None)
    reference = TorchRunner(checkpoint, res_scale=scaling)
    names: list[object] = [*engines]
    if precision is not None:
        candidates.append(TorchRunner(checkpoint, res_scale=scaling, precision=precision))
        names.append(f"{checkpoint} in {precision}")
    scale = common_scale(reference, candidates)
    samples = shipped_samples(scale) if images is None else samples_from_folder(images, scale)
    samples = samples[:limit]
    evidence = EvidenceCollector(labels_of(engines, candidates)) if report is not None else None
    with progress("comparing", total=len(samples)) as bar:

        def told(outputs: Outputs) -> None:
            if evidence is not None:
                evidence(outputs)
            bar.advance(bar.task_ids[0])

        reports = validate_all(
            candidates,
            reference,
            samples,
            min_psnr_db=min_psnr,
            budget_db=budget_db,
            options=options,
            on_outputs=told,
        )
    page = None
    if report is not None and evidence is not None:
        from trt_hspan.evaluation.report.rows import written_report

        source = "the shipped photograph" if images is None else str(images)
        with progress("writing the report"):
            page = written_report(
                report,
                checkpoint=checkpoint,
                images=source,
                files=engines,
                runners=candidates,
                reports=reports,
                evidence=evidence,
                sample=samples[0],
                reference=reference,
            )
    if json:
        print_json(_as_dict(reports, page))
    else:
        for one in reports:
            _print_report(one)
        if page is not None:
            typer.echo(f"report: {page}")
    for name, one in zip(names, reports, strict=True):
        if not one.passed:
            raise HspanError(name, _failure(one), _next_step(one))


def _check_options(
    engines: list[Path],
    min_psnr: float | None,
    budget_db: float | None,
    precision: str | None,
    report: Path | None,
) -> None:
    if not engines and precision is None:
        raise UsageError("ENGINE_OR_ONNX", "nothing to compare", "name a .plan or an .onnx file")
    require_bar(min_psnr)
    if budget_db is not None and not (math.isfinite(budget_db) and budget_db >= 0):
        raise UsageError("--budget-db", f"got {budget_db}, expected decibels, 0 or more")
    for path in engines:
        if path.suffix.lower() not in (".plan", ".onnx"):
            raise UsageError(path, "is neither an engine nor an ONNX file", "name a .plan or an .onnx file")
    twice = {path for path in engines if engines.count(path) > 1}
    if twice:
        raise UsageError(min(twice), "was named twice", "name each file once")
    if precision is not None and report is not None:
        raise UsageError(
            "--report", "compares layers of ONNX files, and --precision has none", "leave one of them out"
        )


def _check_report_folder(folder: Path) -> None:
    """Finds out before the work whether the report can be written."""
    from trt_hspan.evaluation.report.page import PAGE_NAME, require_report_tools
    from trt_hspan.files import check_writable

    if folder.is_file():
        raise UsageError("--report", f"{folder} is a file, expected a folder")
    require_report_tools()
    check_writable(folder / PAGE_NAME)


def _device(path: Path, device: str) -> str:
    """ONNX files run on the CPU whatever engines do."""
    from trt_hspan.runtime.opening import device_from_text

    device_from_text(device)
    return device if path.suffix.lower() == ".plan" else "auto"


def _as_dict(reports: list[ValidationReport], page: Path | None) -> dict[str, object]:
    """One network's report as it is; several in a list, with the verdict on all."""
    where = {} if page is None else {"report_page": str(page)}
    if len(reports) == 1:
        return {**reports[0].as_dict(), **where}
    return {"passed": all(r.passed for r in reports), "reports": [r.as_dict() for r in reports], **where}


def _next_step(report: ValidationReport) -> str:
    if report.total.nan_count and report.precision in ("fp16", "bf16"):
        return "see trt-hspan audit, and export with --audit DIR --keep-fp32 at-risk, or --precision fp32"
    if report.total.worst_psnr_db >= report.min_psnr_db:
        return "use another precision, or raise --budget-db"
    return "try --precision fp32 or bf16, or lower --min-psnr"


def _failure(report: ValidationReport) -> str:
    if report.total.nan_count:
        return f"{report.total.nan_count} values are NaN or infinite"
    if report.total.worst_psnr_db >= report.min_psnr_db:
        return f"loses {report.total.psnr_y_loss_db:.4f} dB of PSNR-Y, the budget is {report.budget_db:g} dB"
    worst = min(report.pictures, key=lambda picture: picture.agreement.psnr_db)
    return (
        f"agrees with PyTorch to {worst.agreement.psnr_db:.2f} dB on {worst.name}, "
        f"the bar is {report.min_psnr_db:g} dB"
    )


def _print_report(report: ValidationReport) -> None:
    from trt_hspan.cli.output import print_rows, print_table, rounded

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
    if total.psnr_y_loss_db is not None:
        budget = "" if report.budget_db is None else f", budget {report.budget_db:g} dB"
        notes["PSNR-Y lost"] = f"{rounded(total.psnr_y_loss_db, 4):+.4f} dB{budget}"
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
