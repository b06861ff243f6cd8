"""`trt-hspan jetson build`: an engine that fits the board, built on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_hspan.cli import options
from trt_hspan.cli.jetson import options as board_options
from trt_hspan.cli.jetson.options import board_report, printed_advice
from trt_hspan.cli.output import print_report, size_text
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, option, takes_request
from trt_hspan.sizes import image_size_from_text

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest
    from trt_hspan.jetson.board_build import BoardBuild
    from trt_hspan.jetson.boards import Detection


@dataclass(frozen=True, kw_only=True)
class BoardBuildRequest:
    onnx: Path = argument("An ONNX file of trt-hspan export.", "MODEL.onnx")
    output: Path = options.output("NAME.plan", "The engine; NAME.onnx and NAME.json are written beside it.")
    board: str = board_options.board()
    size: str | None = option(
        "Of the pictures or frames that are to go in; what does not fit is cut into tiles.",
        "HxW",
        shown="256x256, or the model's own",
    )
    plugin: Path | None = board_options.plugin()
    opt_level: int | None = options.opt_level()
    json: bool = options.json()


@takes_request
def build(request: BoardBuildRequest) -> None:
    """Build an engine on the board, within its memory."""
    from trt_hspan.engine.build import build_engine
    from trt_hspan.jetson.board_build import board_build, require_builder
    from trt_hspan.jetson.boards import chosen_board
    from trt_hspan.machine import jetson as device

    facts = device.this_device()
    detection = chosen_board(request.board, facts)
    planned = board_build(
        request.onnx,
        request.output,
        detection.board,
        facts,
        size=None if request.size is None else image_size_from_text(request.size, option="--size"),
        plugin=request.plugin,
        optimization_level=request.opt_level,
    )
    require_builder(detection.board)
    advice = printed_advice(detection, facts)
    with progress(f"building {request.output.name}") as bar:
        manifest = build_engine(planned.spec, on_progress=bar.phases(f"building {request.output.name}"))
    report = {
        **board_report(detection, advice),
        "plan": str(request.output),
        "planned_memory_bytes": planned.plan.memory.total,
        "workspace_limit_mib": planned.spec.workspace_mib,
        "tactic_memory_limit_mib": planned.spec.tactic_dram_mib,
        **json.loads(manifest.as_json()),
    }
    rows = _build_table(detection, planned, manifest)
    print_report(f"Built {request.output}", report, rows, as_json=request.json)


def _build_table(detection: Detection, planned: BoardBuild, manifest: EngineManifest) -> dict[str, Any]:
    spec, plan = planned.spec, planned.plan
    largest = manifest.largest_profile
    least, best, most = largest.sizes
    reported = largest.activation_memory_bytes
    plugin = "-" if manifest.plugin is None else f"{manifest.plugin.file} {manifest.plugin.sha256[:12]}"
    return {
        "board": f"{detection.board.name}: {detection.why}",
        "engine": f"{spec.output} ({size_text(manifest.plan_size_bytes)})",
        "manifest": spec.manifest_output,
        "TensorRT": f"{manifest.flavor} {manifest.tensorrt_version}, {', '.join(manifest.targets)}",
        "precision": manifest.precision,
        "plugin": plugin,
        "sizes": f"{least} to {most}, tuned for {best}",
        "larger pictures": "are cut into tiles",
        "memory planned": f"{plan.memory.total / 1e9:.2f} of {plan.board.memory_bytes / 1e9:.2f} GB, of them "
        f"{plan.memory.reserved / 1e9:.2f} GB for the system",
        "activation memory": reported and f"{size_text(reported)}, as TensorRT reports it",
        "limits of the build": f"workspace {spec.workspace_mib} MiB, trial runs {spec.tactic_dram_mib} MiB",
        "build time": f"{manifest.build_time_seconds:.1f} s",
    }
