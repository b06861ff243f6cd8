"""`trt-hspan jetson reference|validate`: outputs of PyTorch, stored, and an engine compared with them on the board."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_hspan.cli import options
from trt_hspan.cli.jetson.board import BoardEngineOptions
from trt_hspan.cli.output import print_json, print_report, print_rows, print_table
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, option, takes_request
from trt_hspan.errors import HspanError, UsageError

if TYPE_CHECKING:
    from trt_hspan.jetson.reference import ReferenceReport


@dataclass(frozen=True, kw_only=True)
class ReferenceRequest:
    checkpoint: str = argument("A .pt, .pth or .safetensors file, or a preset: runs in PyTorch.")
    output: Path = options.output("REF.npz", "For `jetson validate --reference`.")
    picture: tuple[Path, ...] = option(
        "A picture to compute, repeatable.", "FILE", default=(), shown="the two shipped ones"
    )
    res_scale: float | None = options.res_scale()
    json: bool = options.json()


@takes_request
def reference(request: ReferenceRequest) -> None:
    """Compute reference outputs in PyTorch, to take along to a board."""
    from trt_hspan.jetson.reference import (
        default_pictures,
        made_reference,
        pictures_from_files,
        require_reference_name,
        write_reference,
    )

    require_reference_name(request.output)
    pictures = pictures_from_files(request.picture) if request.picture else default_pictures()
    with progress(f"running {request.checkpoint}"):
        stored = made_reference(request.checkpoint, pictures, res_scale=request.res_scale)
    write_reference(request.output, stored)
    report = {
        "reference": str(request.output),
        "network": stored.network,
        "source_sha256": stored.source_sha256,
        "scale": stored.scale,
        "res_scale": stored.res_scale,
        "made_by": stored.made_by,
        "pictures": {picture.name: list(picture.picture.shape[:2]) for picture in stored.pictures},
        "size_bytes": request.output.stat().st_size,
    }
    print_report(f"Wrote {request.output}", report, as_json=request.json)


@dataclass(frozen=True, kw_only=True)
class BoardValidateRequest:
    engine: Path = argument("A .plan with its manifest beside it, or an .onnx file.", "ENGINE")
    reference: Path | None = option(
        "Of `trt-hspan jetson reference`.", "REF.npz", shown="what is shipped for hspan-tiny-x2 and -x4"
    )
    min_psnr: float | None = options.min_psnr()
    execution: BoardEngineOptions
    json: bool = options.json()


@takes_request
def validate(request: BoardValidateRequest) -> None:
    """Compare an engine with stored outputs of PyTorch. Exit code 1 below the bar."""
    from trt_hspan.evaluation.metrics import require_bar
    from trt_hspan.jetson.reference import compared_with_reference, reference_for
    from trt_hspan.runtime.opening import open_runner

    require_bar(request.min_psnr)
    engine, suffix = request.engine, request.engine.suffix.lower()
    if suffix not in (".plan", ".onnx"):
        raise UsageError(engine, "is neither an engine nor an ONNX file", "name a .plan or an .onnx file")
    if suffix == ".onnx" and request.execution.plugin is not None:
        raise UsageError("--plugin", "is for engines", "leave it out")
    plugin = request.execution.library if suffix == ".plan" else None
    runner = open_runner(engine, device=request.execution.device, plugin=plugin)
    stored = reference_for(runner, request.reference)
    with progress("comparing", total=len(stored.pictures)) as bar:
        report = compared_with_reference(runner, stored, min_psnr_db=request.min_psnr, on_picture=bar.advance)
    if request.json:
        print_json(asdict(report))
    else:
        _print_comparison(report)
    if not report.passed:
        raise _failure(engine, report)


def _failure(engine: Path, report: ReferenceReport) -> HspanError:
    name, worst = report.worst
    if worst.nan_count:
        what = f"{worst.nan_count} values are NaN or infinite on {name}"
        return HspanError(engine, what, "export it with --precision fp32")
    return HspanError(
        engine,
        f"agrees with PyTorch to {worst.psnr_db:.2f} dB on {name}, the bar is {report.min_psnr_db:g} dB",
        "use another precision, or lower --min-psnr",
    )


def _print_comparison(report: ReferenceReport) -> None:
    rows = [
        [
            name,
            f"{agreement.psnr_db:.2f}",
            f"{agreement.max_abs_error:.2e}",
            f"{agreement.mean_abs_error:.2e}",
            str(agreement.nan_count),
        ]
        for name, agreement in report.agreements.items()
    ]
    columns = ["picture", "PSNR dB", "max error", "mean error", "NaN"]
    print_rows(f"{report.candidate}, against stored outputs", columns, rows)
    worst = report.worst[1].psnr_db
    notes = {
        "result": f"{'passed' if report.passed else 'FAILED'}: worst {worst:.2f} dB, bar {report.min_psnr_db:g} dB",
        "reference": report.reference,
    }
    if report.emulated:
        notes["executed"] = "emulated on CPU" + (f": {report.why_emulated}" if report.why_emulated else "")
    print_table("", notes)
