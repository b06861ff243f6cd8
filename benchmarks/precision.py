#!/usr/bin/env python3
"""Accuracy, size and CPU time of every precision, beside ONNX Runtime's own post-training quantization.

Networks, all exported from one checkpoint in one run: FP32, FP16, BF16; INT8 by `trt-hspan quantize` with each
calibration method, every convolution of the body quantized, and within each of `--budget-db`; and
`onnxruntime.quantization.quantize_static` with its defaults, on the FP32 file. All INT8 networks see the same
calibration tiles; a budget is held on tiles of calibration pictures that are left out for it. All are compared with
PyTorch FP32 on the same pictures, whole.

Everything runs on the CPU. FP16 and BF16 are emulated there (a rounding after every node), so their times say nothing
about a GPU; INT8 convolutions really run as integers where ONNX Runtime has a kernel for them. Time is the best of
several runs of the middle of the first picture, at most 64x64 input pixels, after one run to warm up.

    python benchmarks/precision.py [--json] [--images DIR] [--calibration builtin|DIR] [--checkpoint hspan-tiny-x4]
        [--budget-db 0.03]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from measuring import best_seconds

from trt_hspan.errors import HspanError

if TYPE_CHECKING:
    from trt_hspan.evaluation.compare import ValidationReport
    from trt_hspan.precision.crops import Tile

FLOATS: Final = ("fp32", "fp16", "bf16")
METHODS: Final = ("minmax", "percentile", "entropy", "mse")
TIMED_SIDE: Final = 64


@dataclass(frozen=True, kw_only=True)
class Network:
    """One file to compare."""

    label: str
    path: Path


def main() -> int:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="hspan-tiny-x4", help="a path or a preset's name")
    parser.add_argument(
        "--images", type=Path, help="folder or benchmark set; the shipped photograph otherwise"
    )
    parser.add_argument("--calibration", default="builtin", help="folder of pictures, or builtin")
    parser.add_argument("--base", default="fp16", choices=FLOATS, help="type of what INT8 leaves alone")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="of INT8 calibration")
    parser.add_argument(
        "--budget-db", nargs="+", type=float, default=[], help="of further INT8 networks, mse"
    )
    parser.add_argument("--held-out", help="pictures to hold the budget on; some of --calibration otherwise")
    parser.add_argument("--tiles", type=int, default=32, help="calibration tiles")
    parser.add_argument("--limit", type=int, help="compare on the first so many pictures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="trt-hspan-precision-") as folder:
            report = measured(arguments, Path(folder))
    except HspanError as error:
        print(f"precision: error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        print_table(report)
    return 0


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Makes every network, compares them all with PyTorch, and times them."""
    from trt_hspan.evaluation.compare import validate_all
    from trt_hspan.evaluation.datasets import samples_from_folder, shipped_samples
    from trt_hspan.media.pixels import tensor_from_image
    from trt_hspan.runtime.onnxruntime_runner import OnnxRuntimeRunner
    from trt_hspan.runtime.torch_runner import TorchRunner

    reference = TorchRunner(arguments.checkpoint, threads=arguments.threads)
    scale = reference.scale
    assert scale is not None
    samples = (
        shipped_samples(scale) if arguments.images is None else samples_from_folder(arguments.images, scale)
    )
    samples = samples[: arguments.limit]
    if arguments.images is None:
        note("no --images: figures are of the one shipped photograph")
    networks = list(made_networks(arguments, folder, scale))
    note(f"comparing {len(networks)} networks on {len(samples)} pictures")
    runners = [OnnxRuntimeRunner(network.path, threads=arguments.threads) for network in networks]
    reports = validate_all(runners, reference, samples, min_psnr_db=-math.inf)
    low = samples[0].load()[0]
    top, left = (max(0, (side - TIMED_SIDE) // 2) for side in low.shape[:2])
    batch = tensor_from_image(np.ascontiguousarray(low[top : top + TIMED_SIDE, left : left + TIMED_SIDE]))
    seconds = []
    for runner in runners:
        with runner as active:
            active.run(batch)
            seconds.append(best_seconds(lambda active=active: active.run(batch), runs=4, budget_s=4.0)[0])
    return {
        "checkpoint": arguments.checkpoint,
        "images": "the shipped photograph" if arguments.images is None else str(arguments.images),
        "pictures": len(samples),
        "calibration": arguments.calibration,
        "tiles": arguments.tiles,
        "base": arguments.base,
        "threads": arguments.threads,
        "timed_pixels": list(batch.shape[2:]),
        "executed": runners[0].name + ", CPU; FP16 and BF16 emulated",
        "networks": [
            row(network, report, time)
            for network, report, time in zip(networks, reports, seconds, strict=True)
        ],
    }


def made_networks(arguments: argparse.Namespace, folder: Path, scale: int) -> Iterator[Network]:
    """Exports and quantizes, one file after the other."""
    from trt_hspan.export import export_onnx
    from trt_hspan.graph import save_onnx
    from trt_hspan.precision.crops import Crops, TilePlan, samples_from_place
    from trt_hspan.precision.quantize.pipeline import QuantizationRequest, quantize
    from trt_hspan.precision.quantize.source import source_from_path

    for precision in FLOATS:
        note(f"exporting {precision}")
        path = export_onnx(arguments.checkpoint, folder / f"{precision}.onnx", precision=precision)
        yield Network(label=precision, path=path)
    plan = TilePlan(count=arguments.tiles)
    source = source_from_path(folder / "fp32.onnx", base=arguments.base)
    requests = [(method, None) for method in arguments.methods]
    requests += [("mse", budget) for budget in arguments.budget_db]
    for method, budget in requests:
        label = method if budget is None else f"{method}, budget {budget:g} dB"
        note(f"quantizing, {label}")
        request = QuantizationRequest(
            precision="int8",
            calibration=arguments.calibration,
            method=method,
            budget_db=budget,
            held_out=None if budget is None else arguments.held_out,
            tiles=plan,
            use_cache=False,
        )
        path = folder / f"int8_{method}_{budget}.onnx"
        save_onnx(quantize(source, request).model, path)
        yield Network(label=f"int8, {label}", path=path)
    note("quantizing by ONNX Runtime's defaults")
    tiles = iter(Crops(samples_from_place(arguments.calibration, scale), plan))
    path = folder / "int8_onnxruntime.onnx"
    quantize_by_onnxruntime(folder / "fp32.onnx", path, tiles)
    yield Network(label="int8, ONNX Runtime defaults", path=path)


def quantize_by_onnxruntime(source: Path, target: Path, tiles: Iterator[Tile]) -> None:
    """`quantize_static` with every option left at its default; it does not look into the attention's function body."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    from trt_hspan.graph import INPUT_NAME
    from trt_hspan.media.pixels import tensor_from_image

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
        def get_next(self) -> dict[str, Any] | None:
            tile = next(tiles, None)
            return None if tile is None else {INPUT_NAME: tensor_from_image(tile.low)}

    quantize_static(str(source), str(target), Reader())


def row(network: Network, report: ValidationReport, seconds: float) -> dict[str, Any]:
    """The figures of one network; what is not finite is None."""
    from trt_hspan.graph import load_onnx, quantization_from_model

    facts = quantization_from_model(load_onnx(network.path))
    total = report.total
    return {
        "network": network.label,
        "psnr_worst_db": finite(total.worst_psnr_db),
        "psnr_mean_db": finite(total.mean_psnr_db),
        "psnr_y_db": finite(total.candidate_quality.psnr_y_db if total.candidate_quality else None),
        "psnr_y_loss_db": finite(total.psnr_y_loss_db),
        "ssim_loss": finite(total.ssim_loss),
        "max_abs_error": finite(total.max_abs_error),
        "size_bytes": network.path.stat().st_size,
        "quantized_mac_share": 0.0 if facts is None else facts.mac_share,
        "cpu_seconds": seconds,
    }


def finite(value: float | None) -> float | None:
    """The value itself where JSON can hold it."""
    return value if value is not None and math.isfinite(value) else None


def print_table(report: dict[str, Any]) -> None:
    """The report as a table for people."""
    from rich.console import Console
    from rich.table import Table

    height, width = report["timed_pixels"]
    title = (
        f"{report['checkpoint']} on {report['pictures']} pictures of {report['images']}, against PyTorch FP32"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("network")
    columns = ("PSNR worst dB", "PSNR mean dB", "PSNR-Y dB", "lost dB", "SSIM lost", "INT8 MACs", "size kB")
    for column in (*columns, f"CPU ms, {height}x{width}"):
        table.add_column(column, justify="right")
    for entry in report["networks"]:
        table.add_row(
            entry["network"],
            number(entry["psnr_worst_db"], ".2f"),
            number(entry["psnr_mean_db"], ".2f"),
            number(entry["psnr_y_db"], ".3f"),
            number(entry["psnr_y_loss_db"], "+.4f"),
            number(entry["ssim_loss"], "+.5f"),
            f"{entry['quantized_mac_share'] * 100:.0f} %",
            f"{entry['size_bytes'] / 1e3:,.0f}",
            f"{entry['cpu_seconds'] * 1e3:,.0f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(
        f"{report['executed']}, {report['threads']} threads. Calibrated on {report['tiles']} tiles "
        f"({report['calibration']}); INT8 leaves the rest in {report['base'].upper()}, ONNX Runtime in FP32.",
        highlight=False,
    )


def number(value: float | None, form: str) -> str:
    """The number, or a dash."""
    if value is None:
        return "-"
    text = format(value, form)
    return text if float(text) else text.replace("-", "+")  # what rounds to nothing has no minus


def note(text: str) -> None:
    """Progress, on stderr."""
    print(f"precision: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
