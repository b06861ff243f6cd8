"""The picture of a benchmark: latency against size, one line for each network and batch. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.evaluation.speed.bench import BenchReport, Measurement
from trt_hspan.files import atomic_path
from trt_hspan.machine.install_advice import install_command


def require_plot(path: Path) -> None:
    """Checks, before long work, that a plot can be drawn into this file."""
    if path.suffix.lower() != ".png":
        raise UsageError("--plot", f"got {path}", "name a file that ends in .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise HspanError("matplotlib", "is not installed", install_command("plot"))


def write_plot(report: BenchReport, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    lines: dict[str, list[Measurement]] = {}
    for measurement in report.measurements:
        lines.setdefault(_label(report, measurement), []).append(measurement)
    figure = Figure(figsize=(9, 6), dpi=120, layout="tight")
    axes = figure.subplots()
    for label, points in lines.items():
        points.sort(key=lambda point: point.height * point.width)
        pixels = [point.height * point.width for point in points]
        median = [point.latency.p50_ms for point in points]
        (line,) = axes.plot(pixels, median, marker="o", label=label)
        axes.fill_between(
            pixels, median, [point.latency.p95_ms for point in points], alpha=0.15, color=line.get_color()
        )
    axes.set(
        xscale="log", yscale="log", xlabel="pixels of the input", ylabel="latency in ms: p50, shaded to p95"
    )
    sizes = {f"{m.height}x{m.width}": m.height * m.width for m in report.measurements}
    axes.set_xticks(list(sizes.values()), list(sizes), rotation=30)
    axes.minorticks_off()
    # Times within one power of ten would otherwise have no tick at all.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=30))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.set_title(f"{report.machine['processor']}", fontsize="medium")
    axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _label(report: BenchReport, measurement: Measurement) -> str:
    graph = {None: "", True: ", CUDA graph", False: ", no CUDA graph"}[measurement.cuda_graph]
    batch = "" if measurement.batch == 1 else f", batch {measurement.batch}"
    return f"{report.name_of(measurement)}{graph}{batch}"
