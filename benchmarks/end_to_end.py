#!/usr/bin/env python3
"""The published x4 network on a CPU, whole pictures without tiles: this package beside the dense eager formulation.

The peer is the same network in PyTorch with the attention of the official code: a dense score matrix and
`entmax.sparsemax(k=128)`. All forms have the same seeded random weights (preset hspan-x4) and see the same crop of
a photograph. INT8 is calibrated on the built-in pictures (`minmax`, nearest rounding). Every measurement is a process
of its own: time is the best of the runs that a few seconds allow, by the clock on the wall and of the processor, which
beside other programs is the one to trust; memory the rise of resident memory during the first run, above the loaded
network; PSNR is against the peer's result, or against this package's in PyTorch where the peer does not fit in memory.

    python benchmarks/end_to_end.py [--json] [--threads 2] [--sizes 48 96 192]
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from measuring import (
    best_seconds,
    fits_in_memory,
    in_child,
    options_or_measurement,
    peak_memory_bytes,
    quick_int8_request,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

PRESET: Final = "hspan-x4"
FORMS: Final = {
    "eager": "dense eager, entmax",
    "torch": "this package, PyTorch",
    "torch-bf16": "this package, PyTorch BF16",
    "onnxruntime": "this package, ONNX Runtime",
    "openvino": "this package, OpenVINO",
    "openvino-bf16": "this package, OpenVINO BF16",
    "openvino-int8": "this package, OpenVINO INT8",
}
MODELS: Final = {
    "onnxruntime": "fp32.onnx",
    "openvino": "fp32.onnx",
    "openvino-bf16": "bf16.onnx",
    "openvino-int8": "int8.onnx",
}
# L x L float32 matrices of the dense form; measured at 96x96: 4.2 of them in memory at a time.
EAGER_SCORE_MATRICES: Final = 5
# A run that takes longer is not repeated.
REPEAT_BELOW_S: Final = 15.0


def picture(side: int) -> npt.NDArray[np.float32]:
    """(1, 3, side, side) RGB in [0, 1]: the middle of the shipped photograph."""
    from importlib.resources import as_file, files

    import numpy as np

    from trt_hspan.media.pictures import read_image

    with as_file(files("trt_hspan") / "data" / "chelsea.png") as path:
        image = read_image(path)
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    crop = image[top : top + side, left : left + side, :3].astype(np.float32) / 255
    return np.ascontiguousarray(crop.transpose(2, 0, 1)[None])


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As the official code: the whole score matrix, sparsemax of each row, a product with the values."""
    from entmax import sparsemax

    q, k, v = (tensor.flatten(2).transpose(1, 2) for tensor in (query, key, value))
    weights = sparsemax(q @ k.transpose(1, 2), dim=-1, k=128)
    return (weights @ v).transpose(1, 2).reshape(value.shape)


def measure(form: str, side: int, threads: int, folder: str) -> dict[str, Any]:
    """One measurement, in this process. The result goes to `folder`; it is compared with what lies there."""
    import numpy as np

    from trt_hspan.runtime.opening import open_runner
    from trt_hspan.runtime.runner import Runner

    runner: Runner
    if form in MODELS:
        library = form.partition("-")[0]
        runner = open_runner(Path(folder) / MODELS[form], device=f"cpu:{library}", threads=threads)
    else:
        import trt_hspan.model.hspan as network
        from trt_hspan.runtime.torch_runner import TorchRunner

        if form == "eager":
            network.high_similarity_pass_attention = dense_attention
        runner = TorchRunner(PRESET, threads=threads, precision="bf16" if form == "torch-bf16" else "fp32")
    batch = picture(side)
    with runner:
        runner.run(batch[..., :16, :16])  # what is loaded once does not count
        start, cpu_start = time.perf_counter(), time.process_time()
        output, peak = peak_memory_bytes(lambda: runner.run(batch))
        times = (time.perf_counter() - start, time.process_time() - cpu_start)
        if times[0] < REPEAT_BELOW_S:
            again = best_seconds(lambda: runner.run(batch), runs=2)
            times = (min(times[0], again[0]), min(times[1], again[1]))
    report: dict[str, Any] = {
        "form": form,
        "side": side,
        "seconds": times[0],
        "cpu_seconds": times[1],
        "peak_bytes": peak,
        "backend": runner.label,
    }
    for peer in ("eager", "torch"):
        reference = Path(folder) / f"{peer}_{side}.npy"
        if peer != form and reference.exists():
            error = float(np.mean((output.astype(np.float64) - np.load(reference)) ** 2))
            report["compared_with"] = peer
            report["psnr_db"] = 10 * math.log10(1 / error) if error > 0 else None
            break
    np.save(Path(folder) / f"{form}_{side}.npy", output)
    return report


def write_int8(path: Path) -> None:
    """The network quantized to INT8."""
    from trt_hspan.graph import save_onnx
    from trt_hspan.precision.quantize.pipeline import quantize
    from trt_hspan.precision.quantize.source import source_from_path

    request = quick_int8_request(tiles=4, side=48)
    save_onnx(quantize(source_from_path(PRESET, base="fp32"), request).model, path)


def run_all(sides: list[int], threads: int) -> list[dict[str, Any]]:
    import torch

    from trt_hspan.cli.progress import progress
    from trt_hspan.export import export_onnx
    from trt_hspan.runtime.torch_runner import has_bf16_instructions

    lacks_bf16 = not has_bf16_instructions(torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="hspan-") as folder,
        progress("measuring", total=len(sides) * len(FORMS)) as bar,
    ):
        export_onnx(PRESET, Path(folder) / MODELS["openvino"])
        export_onnx(PRESET, Path(folder) / MODELS["openvino-bf16"], precision="bf16")
        bar.show("quantizing")
        write_int8(Path(folder) / MODELS["openvino-int8"])
        for side in sides:
            for form in FORMS:
                bar.show(f"{FORMS[form]}, {side}x{side}")
                if form.endswith("bf16") and lacks_bf16:
                    rows.append({"form": form, "side": side, "lacks": "BF16 instructions"})
                    bar.advance()
                    continue
                needed = EAGER_SCORE_MATRICES * 4 * side**4 if form == "eager" else 0
                if not fits_in_memory(needed):
                    row: dict[str, Any] = {"form": form, "side": side, "does_not_fit_bytes": needed}
                else:
                    row = in_child(
                        __file__, {"form": form, "side": side, "threads": threads, "folder": folder}
                    )
                rows.append(row)
                bar.advance()
    peers = {row["side"]: row for row in rows if row["form"] == "eager" and "seconds" in row}
    for row in rows:
        peer = peers.get(row["side"])
        if peer is not None and row is not peer and "seconds" in row:
            row["times_faster"] = peer["seconds"] / row["seconds"]
            row["times_faster_cpu"] = peer["cpu_seconds"] / row["cpu_seconds"]
            row["share_of_memory"] = row["peak_bytes"] / peer["peak_bytes"]
    return rows


def print_report(rows: list[dict[str, Any]], threads: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{PRESET}, whole pictures, {threads} threads", title_justify="left")
    table.add_column("input")
    table.add_column("form")
    for column in ("seconds", "faster", "CPU s", "faster", "peak MB", "of the peer's", "PSNR dB"):
        table.add_column(column, justify="right")
    for row in rows:
        start = [f"{row['side']}x{row['side']}", FORMS[row["form"]]]
        if "seconds" not in row:
            why = (
                f"lacks {row['lacks']}"
                if "lacks" in row
                else f"needs about {row['does_not_fit_bytes'] / 1e9:.0f} GB"
            )
            table.add_row(*start, why)
            continue
        table.add_row(
            *start,
            f"{row['seconds']:.2f}",
            f"{row['times_faster']:.1f}x" if "times_faster" in row else "",
            f"{row['cpu_seconds']:.2f}",
            f"{row['times_faster_cpu']:.1f}x" if "times_faster" in row else "",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['share_of_memory']:.2f}" if "share_of_memory" in row else "",
            f"{row['psnr_db']:.1f}" if row.get("psnr_db") else "",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    options = options_or_measurement(
        "Times the published x4 network on a CPU.",
        "benchmarks/end_to_end.py",
        ("--sizes", [48, 96, 192]),
        measure,
    )
    rows = run_all(options.sizes, options.threads)
    if options.json:
        print(json.dumps({"threads": options.threads, "rows": rows}, indent=2))
    else:
        print_report(rows, options.threads)


if __name__ == "__main__":
    main()
