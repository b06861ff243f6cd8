"""`trt-hspan bench`: how fast networks run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trt_hspan.evaluation.speed.bench import Measurement


def bench(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Engines, ONNX files, checkpoints or presets.")
    ],
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW", help="Size of the input, repeatable.", show_default="48x48 96x96, or the fixed one"
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Pictures in one run, repeatable.", show_default="1, or an engine's fewest"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, or gpu:1 for the second GPU.")] = "auto",
    cuda_graph: Annotated[
        str | None,
        typer.Option(
            "--cuda-graph", metavar="on|off|both", help="For engines on a GPU.", show_default="both"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time of sampling for each figure.")] = 3.0,
    peer: Annotated[
        str | None, typer.Option(metavar="torch", help="Measure eager PyTorch in the same run.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The network of --peer.", show_default="FILE, if it is one")
    ] = None,
    res_scale: Annotated[float, typer.Option(help="Residual scale of checkpoints.")] = 0.1,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads.", show_default="the backend's choice")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="fp32|bf16", help="Of checkpoints, repeatable.", show_default="fp32"),
    ] = None,
    integer_kernels: Annotated[
        bool,
        typer.Option(
            "--integer-kernels",
            help="INT8 ONNX files with convolutions in ONNX Runtime's integer kernels, not in the exact emulation.",
        ),
    ] = False,
    plugin: Annotated[
        Path | None, typer.Option(metavar="LIBRARY", help="The plugin library of engines.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw latency against size and precision.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Time networks: latency percentiles, throughput, stages, memory; sweeps over sizes and batches."""
    from dataclasses import asdict

    from trt_hspan.cli.options import require_plugin_for
    from trt_hspan.cli.output import print_json, print_rows, print_table
    from trt_hspan.cli.progress import progress
    from trt_hspan.evaluation.speed.bench import BenchSpec, run_bench
    from trt_hspan.evaluation.speed.plot import require_plot, write_plot
    from trt_hspan.files import check_writable
    from trt_hspan.sizes import image_size_from_text

    spec = BenchSpec(
        sources=tuple(dict.fromkeys(sources)),
        sizes=tuple(dict.fromkeys(image_size_from_text(text, option="--size") for text in size or ())),
        batches=tuple(dict.fromkeys(batch or ())),
        device=device,
        graphs=cuda_graph,  # type: ignore[arg-type]  # the spec checks it
        seconds=seconds,
        peer=peer,  # type: ignore[arg-type]
        checkpoint=checkpoint,
        res_scale=res_scale,
        threads=threads,
        plugin=plugin,
        precisions=tuple(dict.fromkeys(precision or ())),
        integer_kernels=integer_kernels,
    )
    require_plugin_for(plugin, sources)
    if plot is not None:
        require_plot(plot)
        check_writable(plot)
    with progress("opening") as bar:
        task = bar.task_ids[0]
        report = run_bench(spec, on_step=lambda step: bar.update(task, description=step))
    if plot is not None:
        write_plot(report, plot)
    if json:
        print_json(asdict(report))
        return
    columns = ["network", "size", "batch", "p50 ms", "p90", "p95", "p99", "images/s", "x peer", "peak MB"]
    rows = [_row(report.name_of(measurement), measurement) for measurement in report.measurements]
    print_rows("Latency of one run, host to host", columns, rows, [""] * len(columns))
    stages = [
        row
        for measurement in report.measurements
        for row in _stage_rows(report.name_of(measurement), measurement)
    ]
    if stages:
        print_rows("Stages, median ms", ["network", "size", "stage", "ms"], stages, [""] * 4)
    print_table("", _footnotes(report.measurements, report.machine, report.picked))


def _row(name: str, found: Measurement) -> list[str]:
    latency, peak = found.latency, found.host_peak_bytes
    if found.gpu_bytes is not None:
        peak = sum(found.gpu_bytes.values())
    graph = {None: "", True: ", graph", False: ", no graph"}[found.cuda_graph]
    profile = "" if found.profile is None else f", profile {found.profile}"
    unstable = "" if latency.stable else " *"
    return [
        f"{name}{profile}{graph}",
        f"{found.height}x{found.width}",
        str(found.batch),
        f"{latency.p50_ms:.2f}{unstable}",
        *(f"{value:.2f}" for value in (latency.p90_ms, latency.p95_ms, latency.p99_ms)),
        f"{found.images_per_second:.2f}",
        "-" if found.speedup_over_peer is None else f"{found.speedup_over_peer:.2f}",
        "-" if peak is None else f"{peak / 1e6:.0f}",
    ]


def _stage_rows(name: str, found: Measurement) -> list[list[str]]:
    stages = (found.gpu_stages_ms or {}) | (found.end_to_end_ms or {})
    size = f"{found.height}x{found.width}"
    return [[name, size, stage, f"{value:.2f}"] for stage, value in stages.items()]


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
    notes["versions"] = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    notes["runs sampled"] = ", ".join(str(found.latency.runs) for found in measurements)
    if not all(found.latency.stable for found in measurements):
        notes["*"] = "the warm-up did not become stable: repeat it on an idle machine, or with more --seconds"
    for found in measurements:
        if found.note is not None:
            notes[f"no CUDA graph at {found.height}x{found.width}"] = found.note
    return notes
