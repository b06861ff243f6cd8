"""`trt-hspan demo`: the main job on the shipped network and photograph."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trt_hspan.cli import options
from trt_hspan.cli.build import engine_report
from trt_hspan.cli.output import print_json, print_rows, size_text
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import takes_request

if TYPE_CHECKING:
    from trt_hspan.demo import DemoReport


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    output: Path = options.output("FOLDER", "For everything that is written.", default=Path("demo-output"))
    json: bool = options.json()


@takes_request
def demo(request: DemoRequest) -> None:
    """Export, compile the plugin, build two engines, validate, and upscale a photograph. Needs no GPU."""
    from trt_hspan.demo import run_demo

    with progress("starting") as bar:
        report = run_demo(request.output, on_step=bar.show)
    if request.json:
        print_json(_as_dict(report))
    else:
        _print(report)


def _as_dict(report: DemoReport) -> dict[str, object]:
    engines = {kind: engine_report(plan, manifest) for kind, (plan, manifest) in report.engines.items()}
    paths = {
        name: str(getattr(report, name)) for name in ("onnx", "plugin_library", "upscaled", "comparison")
    }
    return {
        **paths,
        "engines": engines,
        "validation": asdict(report.validation),
        "bicubic": asdict(report.bicubic),
        "upscale_run": asdict(report.upscale_run),
        "seconds": report.seconds,
    }


def _print(report: DemoReport) -> None:
    engines = [
        [
            kind,
            plan.name,
            str(size_text(manifest.plan_size_bytes)),
            size_text(manifest.activation_memory_bytes) or "-",
            str(manifest.network_layer_counts.get("PLUGIN_V3", 0)),
            f"{manifest.build_time_seconds:.1f} s",
        ]
        for kind, (plan, manifest) in report.engines.items()
    ]
    columns = ["attention", "plan", "size", "activation memory", "plugin layers", "build"]
    print_rows("Engines (TensorRT-RTX, FP16, up to 128x128 input)", columns, engines)
    total = report.validation.total
    qualities = {
        "bicubic": report.bicubic,
        report.validation.reference: total.reference_quality,
        report.validation.candidate: total.candidate_quality,
    }
    print_rows(
        "Photograph, x4, official protocol",
        ["", "PSNR-Y dB", "SSIM"],
        [
            [name, f"{quality.psnr_y_db:.3f}", f"{quality.ssim_y:.4f}"]
            for name, quality in qualities.items()
            if quality is not None
        ],
    )
    verdict = "passed" if report.validation.passed else "FAILED"
    why = "" if report.validation.why_emulated is None else f" ({report.validation.why_emulated})"
    typer.echo(
        f"FP16 against PyTorch FP32: {total.worst_psnr_db:.2f} dB, largest error {total.max_abs_error:.1e}, "
        f"NaN {total.nan_count}: {verdict}{why}"
    )
    for step, seconds in report.seconds.items():
        typer.echo(f"{seconds:7.1f} s  {step}")
    for name, path in (
        ("model", report.onnx),
        ("plugin", report.plugin_library),
        ("picture", report.upscaled),
        ("side by side", report.comparison),
        ("engines", next(iter(report.engines.values()))[0].parent),
    ):
        typer.echo(f"{name + ':':<14}{path}")
    typer.echo("\nWhat to type next, with any picture:\n")
    for line in next_lines(report):
        typer.echo(f"  {line}")


def next_lines(report: DemoReport) -> list[str]:
    """Lines that work as typed in the folder of the demo: the environment, unless it is active, and a picture."""
    is_active = Path(os.environ.get("VIRTUAL_ENV", sys.base_prefix)).resolve() == Path(sys.prefix).resolve()
    activate = Path(sys.prefix) / "bin" / "activate"
    with contextlib.suppress(ValueError):
        activate = activate.relative_to(Path.cwd())
    plan, _ = report.engines["function"]
    upscale = ["trt-hspan", "upscale", str(report.photograph), "-o", "larger.png", "--engine", str(plan)]
    return [
        *([] if is_active else [f". {shlex.quote(str(activate))}"]),
        shlex.join(upscale),
        "trt-hspan --help",
    ]
