"""`trt-hspan bench`: how fast networks run on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_hspan.cli import options
from trt_hspan.cli.output import print_json, print_rows, print_table
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import argument, option, takes_request
from trt_hspan.sizes import image_size_from_text

if TYPE_CHECKING:
    from trt_hspan.evaluation.speed.bench import BenchReport, BenchSpec, Measurement


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    sources: tuple[str, ...] = argument("Engines, ONNX files, checkpoints or presets.", "FILE...")
    size: tuple[str, ...] = option(
        "Size of the input, repeatable.", "HxW", default=(), shown="48x48 96x96, or the fixed one"
    )
    batch: tuple[int, ...] = option(
        "Pictures in one run, repeatable.", "N", default=(), shown="1, or an engine's fewest"
    )
    engine: options.EngineOptions
    cuda_graph: str | None = option("For engines on a GPU.", "on|off|both", shown="both")
    seconds: float = options.seconds()
    peer: str | None = option("Measure eager PyTorch in the same run.", "torch")
    checkpoint: str | None = option("The network of --peer.", shown="FILE, if it is one")
    res_scale: float | None = options.res_scale()
    threads: int | None = options.threads()
    precision: tuple[str, ...] = option(
        "Of checkpoints, repeatable.", "fp32|fp16|bf16", default=(), shown="fp32"
    )
    plot: Path | None = option("Draw latency against size and precision.", "OUT.png")
    json: bool = options.json()

    def spec(self) -> BenchSpec:
        """Raises: UsageError as `BenchSpec`, or for a malformed size."""
        from trt_hspan.evaluation.speed.bench import BenchSpec

        sizes = (image_size_from_text(text, option="--size") for text in self.size)
        return BenchSpec(
            sources=tuple(dict.fromkeys(self.sources)),
            sizes=tuple(dict.fromkeys(sizes)),
            batches=tuple(dict.fromkeys(self.batch)),
            device=self.engine.device,
            graphs=self.cuda_graph,  # type: ignore[arg-type]  # the spec checks both names
            seconds=self.seconds,
            peer=self.peer,  # type: ignore[arg-type]
            checkpoint=self.checkpoint,
            res_scale=self.res_scale,
            threads=self.threads,
            plugin=self.engine.plugin,
            precisions=tuple(dict.fromkeys(self.precision)),
        )


@takes_request
def bench(request: BenchRequest) -> None:
    """Time networks: latency percentiles, throughput, stages, memory; sweeps over sizes and batches."""
    from trt_hspan.evaluation.speed.bench import run_bench
    from trt_hspan.evaluation.speed.plot import require_plot, write_plot
    from trt_hspan.files import check_writable

    spec = request.spec()
    request.engine.require_plugin_for(spec.sources)
    if request.plot is not None:
        require_plot(request.plot)
        check_writable(request.plot)
    with progress("opening") as bar:
        report = run_bench(spec, on_step=bar.show)
    if request.plot is not None:
        write_plot(report, request.plot)
    if request.json:
        print_json(asdict(report))
    else:
        _print(report)


def _print(report: BenchReport) -> None:
    columns = ["network", "size", "batch", "p50 ms", "p90", "p95", "p99", "images/s", "x peer", "peak MB"]
    rows = [measurement_row(report.name_of(measurement), measurement) for measurement in report.measurements]
    print_rows("Latency of one run, host to host", columns, rows)
    stages = [
        [report.name_of(measured), f"{measured.height}x{measured.width}", stage, f"{value:.2f}"]
        for measured in report.measurements
        for stage, value in ((measured.gpu_stages_ms or {}) | (measured.end_to_end_ms or {})).items()
    ]
    if stages:
        print_rows("Stages, median ms", ["network", "size", "stage", "ms"], stages)
    print_table("", _footnotes(report.measurements, report.machine, report.picked))


def measurement_row(name: str, measurement: Measurement) -> list[str]:
    """Network, size, batch, p50, p90, p95, p99, images/s, times the peer, peak memory."""
    latency, peak = measurement.latency, measurement.host_peak_bytes
    if measurement.gpu_bytes is not None:
        peak = sum(measurement.gpu_bytes.values())
    graph = {None: "", True: ", graph", False: ", no graph"}[measurement.cuda_graph]
    profile = "" if measurement.profile is None else f", profile {measurement.profile}"
    unstable = "" if latency.stable else " *"
    return [
        f"{name}{profile}{graph}",
        f"{measurement.height}x{measurement.width}",
        str(measurement.batch),
        f"{latency.p50_ms:.2f}{unstable}",
        *(f"{value:.2f}" for value in (latency.p90_ms, latency.p95_ms, latency.p99_ms)),
        f"{measurement.images_per_second:.2f}",
        "-" if measurement.speedup_over_peer is None else f"{measurement.speedup_over_peer:.2f}",
        "-" if peak is None else f"{peak / 1e6:.0f}",
    ]


def _footnotes(
    measurements: tuple[Measurement, ...], machine: dict[str, Any], picked: dict[str, str]
) -> dict[str, Any]:
    clocks = machine["clocks"]
    notes: dict[str, Any] = {
        f"picked, {number}": f"{source}: {why}"
        for number, (source, why) in enumerate(picked.items(), start=1)
    }
    notes["processor"] = f"{machine['processor']}, {machine['processors']} usable"
    notes["CPU MHz before, after"] = f"{clocks['before']['cpu_mhz']}, {clocks['after']['cpu_mhz']}"
    if machine["gpus"]:
        notes["GPU"] = machine["gpus"][0]["name"]
        notes["GPU clocks before, after"] = f"{clocks['before']['gpus']}, {clocks['after']['gpus']}"
    notes["versions"] = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version
    )
    notes["runs sampled"] = ", ".join(str(measurement.latency.runs) for measurement in measurements)
    if not all(measurement.latency.stable for measurement in measurements):
        notes["*"] = "the warm-up did not become stable: repeat it on an idle machine, or with more --seconds"
    for measurement in measurements:
        if measurement.note is not None:
            notes[f"no CUDA graph at {measurement.height}x{measurement.width}"] = measurement.note
    return notes
