"""`trt-hspan jetson build|bench|watch`: what is done on the board, and the options of the commands for boards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trt_hspan.cli import options
from trt_hspan.cli.bench import measurement_row
from trt_hspan.cli.build import engine_report, engine_rows
from trt_hspan.cli.output import print_json, print_report, print_rows, print_table, say
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, flag, option, takes_request
from trt_hspan.errors import printable
from trt_hspan.sizes import ImageSize, image_size_from_text

if TYPE_CHECKING:
    from trt_hspan.engine.manifest import EngineManifest
    from trt_hspan.evaluation.speed.bench import BenchReport, Measurement
    from trt_hspan.jetson.advice import Advice
    from trt_hspan.jetson.board_build import BoardBuild
    from trt_hspan.jetson.boards import Detection
    from trt_hspan.machine.jetson import DeviceFacts

board_option = partial(
    option, "auto is the board that this runs on; `trt-hspan jetson boards` lists all names.", default="auto"
)
engine_argument = partial(argument, "A .plan with its manifest beside it.", "ENGINE")
plugin_option = partial(
    option, "The plugin library.", "LIBRARY", shown="TRT_HSPAN_PLUGIN, or that of the .deb under /opt/hspan"
)


@dataclass(frozen=True, kw_only=True)
class BoardEngineOptions:
    """Where an engine runs on a board."""

    device: str = options.device()
    plugin: Path | None = plugin_option()

    @property
    def library(self) -> Path:
        """The plugin library that was named, or the one of the board."""
        from trt_hspan.jetson.board_build import device_plugin

        return self.plugin or device_plugin()


def printed_advice(detection: Detection, facts: DeviceFacts) -> list[Advice]:
    """What stands in the way, also on stderr as notes with the commands that change it."""
    from trt_hspan.jetson.advice import advice_for_board

    advice = advice_for_board(detection.board, facts)
    for note in advice:
        say(f"note: {note.what}")
        for command in note.commands:
            typer.echo(f"    {command}", err=True)
    return advice


def board_report(detection: Detection, advice: Sequence[Advice]) -> dict[str, Any]:
    """What JSON output says about the board."""
    notes = [asdict(note) for note in advice]
    return {"board": detection.board.name, "board_found": detection.why, "advice": notes}


@dataclass(frozen=True, kw_only=True)
class BoardBuildRequest:
    onnx: Path = argument("An ONNX file of trt-hspan export.", "MODEL.onnx")
    output: Path = options.output("NAME.plan", "The engine; NAME.onnx and NAME.json are written beside it.")
    board: str = board_option()
    size: str | None = option(
        "Of the pictures or frames that are to go in; what does not fit is cut into tiles.",
        "HxW",
        shown="256x256, or the model's own",
    )
    plugin: Path | None = plugin_option()
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
        "planned_memory_bytes": planned.plan.memory.total,
        "workspace_limit_mib": planned.spec.workspace_mib,
        "tactic_memory_limit_mib": planned.spec.tactic_dram_mib,
        **engine_report(request.output, manifest),
    }
    rows = _build_table(detection, planned, manifest)
    print_report(f"Built {request.output}", report, rows, as_json=request.json)


def _build_table(detection: Detection, planned: BoardBuild, manifest: EngineManifest) -> dict[str, Any]:
    spec, plan = planned.spec, planned.plan
    return {
        "board": f"{detection.board.name}: {detection.why}",
        **engine_rows(spec.output, manifest),
        "larger pictures": "are cut into tiles",
        "memory planned": f"{plan.memory.total / 1e9:.2f} of {plan.board.memory_bytes / 1e9:.2f} GB, of them "
        f"{plan.memory.reserved / 1e9:.2f} GB for the system",
        "limits of the build": f"workspace {spec.workspace_mib} MiB, trial runs {spec.tactic_dram_mib} MiB",
    }


@dataclass(frozen=True, kw_only=True)
class BoardBenchRequest:
    engine: Path = engine_argument()
    board: str = board_option()
    size: tuple[str, ...] = option(
        "Of the input, repeatable.", "HxW", default=(), shown="what the engine is tuned for"
    )
    execution: BoardEngineOptions
    seconds: float = options.seconds()
    json: bool = options.json()

    def sizes(self) -> tuple[ImageSize, ...]:
        """Raises: UsageError for what is no size."""
        return tuple(dict.fromkeys(image_size_from_text(text, option="--size") for text in self.size))


@takes_request
def bench(request: BoardBenchRequest) -> None:
    """Time an engine beside the least time that the board could take, with power mode and clocks."""
    from trt_hspan.evaluation.speed.bench import BenchSpec, run_bench
    from trt_hspan.jetson.boards import chosen_board
    from trt_hspan.jetson.plan import floors_of_engine
    from trt_hspan.machine import jetson as device

    facts = device.this_device()
    detection = chosen_board(request.board, facts)
    floors = floors_of_engine(request.engine, detection.board, request.sizes())
    spec = BenchSpec(
        sources=(str(request.engine),),
        sizes=tuple(floors),
        device=request.execution.device,
        seconds=request.seconds,
        plugin=request.execution.library,
    )
    advice = printed_advice(detection, facts)
    with progress("opening") as bar:
        report = run_bench(spec, on_step=bar.show)
    if request.json:
        times = {str(size): floor for size, floor in floors.items()}
        print_json({**board_report(detection, advice), "floors_ms": times, **asdict(report)})
        return
    _print(report, floors, detection, facts)


def _print(
    report: BenchReport, floors: dict[ImageSize, float], detection: Detection, facts: DeviceFacts
) -> None:
    from trt_hspan.machine.gpu import gpu_architectures

    columns = ["network", "size", "p50 ms", "p95", "images/s", "floor ms", "x floor"]
    on_board = gpu_architectures()[:1] == (f"sm_{detection.board.rates.architecture}",)
    rows = [
        _bench_row(measurement, floors[ImageSize(measurement.height, measurement.width)], on_board=on_board)
        for measurement in report.measurements
    ]
    print_rows("Latency of one run, host to host", columns, rows)
    notes = _board_notes(detection, facts)
    notes["floor"] = (
        f"arithmetic or traffic at published peaks of the {detection.board.title}, not a measurement"
    )
    if any(measurement.emulated for measurement in report.measurements):
        (picked,) = report.picked.values()
        notes["measured on"] = f"this machine, not the board: {picked}"
    print_table("", notes)


def _bench_row(measurement: Measurement, floor_ms: float, *, on_board: bool) -> list[str]:
    # What another machine takes is no multiple of the board's floor.
    is_multiple = on_board and not measurement.emulated
    times = f"{measurement.latency.p50_ms / floor_ms:.1f}" if is_multiple else "-"
    name, size, _, p50, _, p95, _, throughput, *_ = measurement_row(measurement.network, measurement)
    return [name, size, p50, p95, throughput, f"{floor_ms:.2f}", times]


def _board_notes(detection: Detection, facts: DeviceFacts) -> dict[str, Any]:
    clock = facts.gpu_clock
    notes: dict[str, Any] = {
        "board": f"{detection.board.name}: {detection.why}",
        "power mode": None if facts.power_mode is None else str(facts.power_mode),
        "GPU clock": None,
    }
    if clock is not None:
        how = "fixed" if clock.is_fixed else "follows the load"
        limits = f"{clock.min_hz / 1e6:.0f} to {clock.max_hz / 1e6:.0f} MHz"
        notes["GPU clock"] = f"{limits}, {how}; the floor is for {detection.board.gpu_mhz:.0f} MHz"
    return notes


@dataclass(frozen=True, kw_only=True)
class WatchRequest:
    engine: Path = engine_argument()
    incoming: Path = option(
        "Pictures to upscale; then they move to its done/ or failed/.", "DIR", names=("--from",), default=...
    )
    outgoing: Path = option("Results, under the same names.", "DIR", names=("--to",), default=...)
    delete: bool = flag("Delete upscaled pictures instead of moving them.")
    seconds: float = option("Between two looks at the folder.", default=1.0)
    execution: BoardEngineOptions
    once: bool = flag("End when no pictures are left.")


@takes_request
def watch(request: WatchRequest) -> None:
    """Upscale every picture that appears in a folder, with the engine kept open. Ends at SIGTERM or Ctrl-C."""
    from trt_hspan.jobs.watch import WatchSpec, watch_folder
    from trt_hspan.runtime.opening import open_runner

    spec = WatchSpec(
        incoming=request.incoming,
        outgoing=request.outgoing,
        delete=request.delete,
        seconds=request.seconds,
        once=request.once,
    )
    runner = open_runner(request.engine, device=request.execution.device, plugin=request.execution.library)
    stop, ending = threading.Event(), (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in ending}
    try:
        watch_folder(
            spec,
            runner,
            stop,
            on_begin=lambda: typer.echo(f"watching {request.incoming}: {runner.picked}", err=True),
            on_picture=lambda picture: typer.echo(
                printable(f"{picture.source.name}: {picture.line or picture.target}")
            ),
        )
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
