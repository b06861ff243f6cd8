"""`trt-hspan jetson bench`: an engine's times beside the least that the board could take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_hspan.cli import options
from trt_hspan.cli.bench import measurement_row
from trt_hspan.cli.jetson import options as board_options
from trt_hspan.cli.jetson.options import BoardEngineOptions, board_report, printed_advice
from trt_hspan.cli.output import print_json, print_rows, print_table
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import option, takes_request
from trt_hspan.sizes import ImageSize, image_size_from_text

if TYPE_CHECKING:
    from trt_hspan.evaluation.speed.bench import BenchReport, Measurement
    from trt_hspan.jetson.boards import Detection
    from trt_hspan.machine.jetson import DeviceFacts


@dataclass(frozen=True, kw_only=True)
class BoardBenchRequest:
    engine: Path = board_options.engine()
    board: str = board_options.board()
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
