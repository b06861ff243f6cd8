"""`trt-hspan validate`: does an engine compute what the network computes that it was made from?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trt_hspan.cli import options
from trt_hspan.cli.output import print_json, print_rows, print_table, rounded
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, option, takes_request
from trt_hspan.errors import HspanError, printable
from trt_hspan.sizes import tile_from_text

if TYPE_CHECKING:
    from trt_hspan.evaluation.compare import ValidationReport
    from trt_hspan.evaluation.metrics import Quality
    from trt_hspan.evaluation.validation import Validation, ValidationRequest


@dataclass(frozen=True, kw_only=True)
class ValidateRequest:
    reference: str = option(
        "What they were made from: a checkpoint or preset, which PyTorch runs, or an FP32 ONNX file.",
        default=...,
        names=("--reference", "--checkpoint"),
    )
    files: tuple[Path, ...] = argument(
        "A .plan with its manifest beside it, or an .onnx file; several are compared in one go.",
        "ENGINE_OR_ONNX...",
        default=(),
    )
    precision: str | None = option(
        "Also compare a checkpoint itself as PyTorch runs it in this precision on --device: fp16 on a GPU, "
        "bf16 where processor or GPU has it.",
        "fp32|fp16|bf16",
        shown="none, and fp32 for --device gpu alone",
    )
    images: Path | None = option(
        "A folder of pictures, or a benchmark set: HR/NAME.png and LR_bicubic/X4/NAMEx4.png.",
        shown="the shipped photograph",
    )
    limit: int | None = options.limit()
    min_psnr: float | None = options.min_psnr()
    budget_db: float | None = option(
        "The most PSNR-Y that may be lost against ground truth, as a mean over the pictures.",
        "DB",
        shown="no budget",
    )
    report: Path | None = option("Write DIR/index.html, one self-contained page, and DIR/report.json.", "DIR")
    res_scale: float | None = options.res_scale(shown="what the ONNX file says, else 0.1")
    tile: str = options.tile()
    engine: options.EngineOptions
    json: bool = options.json()

    def validation(self) -> ValidationRequest:
        """Raises: UsageError as `ValidationRequest`, or for a malformed tile."""
        from trt_hspan.evaluation.validation import ValidationRequest
        from trt_hspan.upscaling.options import UpscaleOptions

        return ValidationRequest(
            reference=self.reference,
            files=self.files,
            precision=self.precision,
            pictures=self.images,
            limit=self.limit,
            min_psnr_db=self.min_psnr,
            budget_db=self.budget_db,
            options=UpscaleOptions(tile=tile_from_text(self.tile)),
            res_scale=self.res_scale,
            device=self.engine.device,
            plugin=self.engine.plugin,
            report=self.report,
        )


@takes_request
def validate(request: ValidateRequest) -> None:
    """Compare engines, or ONNX files on a CPU, with their reference on real pictures. Exit code 1 below the bar."""
    from trt_hspan.evaluation.validation import validate_files

    validation = request.validation()
    request.engine.require_plugin_for(request.files)
    with progress("opening the networks") as bar:
        result = validate_files(validation, on_progress=bar.show)
    if request.json:
        print_json(_as_dict(result))
    else:
        for name, report in zip(result.names, result.reports, strict=True):
            _print_report(report, name if len(result.reports) > 1 else "")
        if result.page is not None:
            typer.echo(f"report: {printable(str(result.page))}")
    for name, report in zip(result.names, result.reports, strict=True):
        if not report.passed:
            raise HspanError(name, _failure(report), _next_step(report))


def _as_dict(result: Validation) -> dict[str, object]:
    """One network's report as it is; several in a list, with the verdict on all."""
    where = {} if result.page is None else {"report_page": str(result.page)}
    pairs = zip(result.names, result.reports, strict=True)
    reports = [{"network": name, **asdict(report)} for name, report in pairs]
    if len(reports) == 1:
        return {**reports[0], **where}
    return {"passed": all(report.passed for report in result.reports), "reports": reports, **where}


def _next_step(report: ValidationReport) -> str:
    """Another checkpoint where that is what differs; else a precision with more digits than the file has, if any."""
    if report.same_source is False:
        return "give the network that it was made from"
    if report.total.nan_count:
        is_half = report.precision in ("fp16", "bf16")
        kept = ", and export with --audit DIR --keep-fp32 at-risk, or --precision fp32" if is_half else ""
        return f"see where with trt-hspan audit{kept}"
    relaxed = "raise --budget-db" if report.total.worst_psnr_db >= report.min_psnr_db else "lower --min-psnr"
    finer = {"fp32": (), "fp16": ("fp32",), "bf16": ("fp32", "fp16")}.get(report.precision, ("fp32", "fp16"))
    if not finer:
        return f"see with --report DIR where it differs, or {relaxed}"
    return f"try --precision {' or '.join(finer)}, or {relaxed}"


def _failure(report: ValidationReport) -> str:
    if report.total.nan_count:
        return f"{report.total.nan_count} values are NaN or infinite"
    if report.total.worst_psnr_db >= report.min_psnr_db:
        return f"loses {report.total.psnr_y_loss_db:.4f} dB of PSNR-Y, the budget is {report.budget_db:g} dB"
    worst = min(report.pictures, key=lambda picture: picture.agreement.psnr_db)
    return (
        f"agrees with {_short(report)} to {worst.agreement.psnr_db:.2f} dB on {worst.name}, "
        f"the bar is {report.min_psnr_db:g} dB"
    )


def _print_report(report: ValidationReport, name: str) -> None:
    total = report.total
    with_truth = total.reference_quality is not None
    columns = ["picture", "input", "PSNR dB", "max error", "mean error", "NaN"]
    if with_truth:
        columns += [f"PSNR-Y {_short(report)}", "PSNR-Y", f"SSIM {_short(report)}", "SSIM"]
    rows = [
        [
            picture.name,
            f"{picture.height}x{picture.width}",
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
    print_rows(
        f"{name}{': ' if name else ''}{report.candidate}, against {report.reference}", columns, rows, totals
    )
    same = {True: "the same", False: "differs", None: "not known"}[report.same_source]
    notes = {
        "result": f"{'passed' if report.passed else 'FAILED'}: worst {total.worst_psnr_db:.2f} dB, "
        f"mean {total.mean_psnr_db:.2f} dB, bar {report.min_psnr_db:g} dB",
        "checkpoint of both": same,
    }
    if total.psnr_y_loss_db is not None:
        budget = "" if report.budget_db is None else f", budget {report.budget_db:g} dB"
        notes["PSNR-Y lost"] = f"{rounded(total.psnr_y_loss_db, 4):+.4f} dB{budget}"
    if report.warning is not None:
        notes["warning"] = report.warning
    if report.emulated:
        notes["executed"] = "emulated on CPU" + (f": {report.why_emulated}" if report.why_emulated else "")
    for number, remark in enumerate(report.remarks, 1):
        notes["remark" if len(report.remarks) == 1 else f"remark {number}"] = remark
    print_table("", notes)


def _short(report: ValidationReport) -> str:
    """The reference in one word."""
    return "PyTorch" if report.reference.startswith("PyTorch") else "reference"


def _quality_cells(reference: Quality | None, candidate: Quality | None) -> tuple[str, ...]:
    if reference is None or candidate is None:
        return ("-", "-", "-", "-")
    return (
        f"{reference.psnr_y_db:.3f}",
        f"{candidate.psnr_y_db:.3f}",
        f"{reference.ssim_y:.4f}",
        f"{candidate.ssim_y:.4f}",
    )
