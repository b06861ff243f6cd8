"""`trt-hspan refit`: other weights of the same architecture into an engine, without building it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trt_hspan.cli import options
from trt_hspan.cli.build import engine_report, engine_rows
from trt_hspan.cli.output import print_report
from trt_hspan.cli.request import argument, option, takes_request


@dataclass(frozen=True, kw_only=True)
class RefitRequest:
    engine: Path = argument("A .plan that was built with --refittable.", "ENGINE")
    checkpoint: str = option(
        "The weights: a .pt, .pth or .safetensors file, a preset's name, or an ONNX file of the engine's "
        "precision.",
        "FILE",
        default=...,
    )
    output: Path | None = options.output(
        "NAME.plan", "The new engine.", default=None, shown="ENGINE, replaced"
    )
    plugin: Path | None = options.plugin()
    json: bool = options.json()


@takes_request
def refit(request: RefitRequest) -> None:
    """Put other weights of the same architecture into ENGINE, on the GPU that it is for."""
    from trt_hspan.precision.engine_job import refit_from_network

    manifest = refit_from_network(
        request.engine, request.checkpoint, output=request.output, plugin=request.plugin
    )
    plan = request.output or request.engine
    rows = engine_rows(plan, manifest) | {
        "weights of": request.checkpoint,
        "checkpoint sha256": manifest.source_sha256,
        "plan sha256": manifest.plan_sha256,
    }
    print_report(f"Refitted {plan}", engine_report(plan, manifest), rows, as_json=request.json)
