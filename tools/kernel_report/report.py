"""The command that reports on the CUDA kernels without a GPU: compiler's figures, machine code, and roofline.

With --count instead: the warp instructions that the kernels issue on a photograph, counted on this CPU.

Two tables. The first is read from the machine code: registers, spills, shared memory, theoretical occupancy, and what
share of the loops' instructions are multiplications. The second is arithmetic on published rates: the least time
that any implementation of the operator can take. No figure here was measured on a GPU.

Machine code comes about in two ways, which can end at other registers: as in the plugin, where the PTX for the least
architecture is assembled for each, and by compiling for each directly. The exit code is 1 when a kernel spills in
either.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.kernel_report.counts import (
    KINDS,
    IssueFloor,
    KernelCount,
    attention_inputs,
    count_instructions,
    issue_floors,
    lifted,
    photograph_of_scikit_image,
)
from tools.kernel_report.plugin_code import KernelCode, inspect_kernels
from tools.kernel_report.plugin_loops import Loop
from tools.kernel_report.roofline import GPUS, LENGTHS, floor_ms
from tools.running import exit_code
from trt_hspan.errors import UsageError
from trt_hspan.jetson.roofline import attention_work
from trt_hspan.native.plugin import architecture_from_target
from trt_hspan.native.sources import sources_folder
from trt_hspan.sizes import image_size_from_text

COUNT = "counted on a CPU, not times"
BOUND = "bound from published peak rates, not a measurement"


def main() -> int:
    """Prints both tables. Returns: the exit code."""
    arguments = parsed_arguments()
    return exit_code("kernel_report", lambda: count(arguments) if arguments.count else _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    sizes = {"score_channels": arguments.score_channels, "value_channels": arguments.value_channels}
    bounds = roofline(**sizes, precision=arguments.precision)
    kernels = [] if arguments.roofline_only else inspected(arguments)
    spilling = [kernel for kernel in kernels if spilled_bytes(kernel)]
    if arguments.json:
        problem = {**sizes, "precision": arguments.precision, "label": BOUND}
        report = {"kernels": [record(kernel) for kernel in kernels], "roofline": {**problem, "rows": bounds}}
        print(json.dumps(report, indent=2))
    else:
        show(kernels, bounds, arguments)
    for kernel in spilling:
        what = (
            f"{kernel.kernel} for sm_{kernel.architecture}, PTX for {kernel.ptx_architecture}, "
            f"spills {spilled_bytes(kernel)} bytes of registers"
        )
        print(f"kernel_report: error: {kernel.source}: {what}", file=sys.stderr)
    return 1 if spilling else 0


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kernel_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print both tables as one JSON object")
    parser.add_argument(
        "--arch", action="append", metavar="86", help="a compute capability, repeatable; all from 7.5 to 12.1"
    )
    parser.add_argument(
        "--compilation",
        choices=["plugin", "direct", "both"],
        default="both",
        help="as in the plugin, for each architecture by itself, or both (both)",
    )
    parser.add_argument("--nvcc", metavar="PROGRAM", help="the CUDA compiler; searched for")
    parser.add_argument("--nvdisasm", metavar="PROGRAM", help="the disassembler; searched for")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (2)")
    parser.add_argument("--score-channels", type=int, default=96, help="C of the roofline (96, as published)")
    parser.add_argument(
        "--value-channels", type=int, default=192, help="D of the roofline (192, as published)"
    )
    parser.add_argument("--precision", default="fp16", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--roofline-only", action="store_true", help="compile nothing")
    parser.add_argument("--count", action="store_true", help="count instructions on a photograph instead")
    parser.add_argument(
        "--picture", type=Path, help="the photograph (scikit-image's astronaut, if it is installed)"
    )
    parser.add_argument(
        "--size", default="96x96", metavar="HxW", help="to which the photograph is reduced (96x96)"
    )
    parser.add_argument(
        "--network", default="hspan-tiny-x4", help="whose attention sees it: a name or a checkpoint"
    )
    parser.add_argument(
        "--published-channels",
        action="store_true",
        help="lift what the attention gets to 96 and 192 channels; scores stay",
    )
    return parser.parse_args()


def count(arguments: argparse.Namespace) -> int:
    """Prints instructions by kernel, and what follows for some GPUs."""
    size = image_size_from_text(arguments.size, option="--size")
    picture = arguments.picture or photograph_of_scikit_image()
    counts: list[KernelCount] = []
    for attention in attention_inputs(picture, size, arguments.network):
        taken = lifted(attention) if arguments.published_channels else attention
        counts += count_instructions(taken, arguments.precision)
    floors = issue_floors(counts)
    if arguments.json:
        kernels = [{**asdict(each), "tensor_share": each.tensor_share} for each in counts]
        report = {"label": COUNT, "kernels": kernels, "floors": [asdict(floor) for floor in floors]}
        print(json.dumps(report, indent=2))
    else:
        title = f"{arguments.network} on {picture.name} at {size}, {arguments.precision}: {COUNT}"
        show_counts(title, counts, floors)
    return 0


def inspected(arguments: argparse.Namespace) -> list[KernelCode]:
    if arguments.jobs < 1:
        raise UsageError("--jobs", f"got {arguments.jobs}, expected at least 1")
    from trt_hspan.cli.progress import progress

    with progress("compiling the kernels", total=1.0) as bar:
        return inspect_kernels(
            sources_folder(),
            architectures=[architecture_from_target(each) for each in arguments.arch]
            if arguments.arch
            else None,
            compilation=arguments.compilation,
            nvcc=arguments.nvcc,
            disassembler=arguments.nvdisasm,
            jobs=arguments.jobs,
            on_progress=lambda fraction, what: bar.show(what, fraction),
        )


def roofline(*, score_channels: int, value_channels: int, precision: str) -> list[dict[str, Any]]:
    """One row for each length: work, and the floor on each GPU, sparse and dense."""
    rows = []
    for length in LENGTHS:
        work = attention_work(length, score_channels, value_channels, precision)
        floors = {
            gpu.name: {
                "sparse_ms": floor_ms(work.sparse_flops, work.bytes, gpu, precision),
                "dense_ms": floor_ms(work.dense_flops, work.bytes, gpu, precision),
            }
            for gpu in GPUS
        }
        rows.append({"length": length, **asdict(work), "floor": floors})
    return rows


def spilled_bytes(kernel: KernelCode) -> int:
    return kernel.resources.spill_stores_bytes + kernel.resources.spill_loads_bytes


def record(kernel: KernelCode) -> dict[str, Any]:
    return {
        **asdict(kernel),
        "main_loop": loop_record(kernel.main_loop) if kernel.main_loop else None,
        "product_loops": [loop_record(loop) for loop in kernel.product_loops],
    }


def loop_record(loop: Loop) -> dict[str, Any]:
    return {**asdict(loop), "matrix_share": loop.matrix_share, "scalar_share": loop.scalar_share}


def matrix_shares(kernel: KernelCode) -> str:
    """The share of tensor core products in each loop that has some, in the order of the code."""
    return " ".join(f"{loop.matrix_share:.0%}" for loop in kernel.product_loops if loop.matrix) or "-"


def wide_console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = 160
    return console


def show_counts(title: str, counts: list[KernelCount], floors: list[IssueFloor]) -> None:
    console = wide_console()
    table = Table(title=title, title_justify="left")
    for column in ("block", "kernel", "million"):
        table.add_column(column, justify="left" if column == "kernel" else "right", no_wrap=True)
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for each in sorted(counts, key=lambda each: (each.block, -each.instructions)):
        shares = [f"{each.kinds[kind] / each.instructions:.1%}" for kind in KINDS]
        table.add_row(str(each.block), each.kernel.split("<")[0], f"{each.instructions / 1e6:.2f}", *shares)
    console.print(table)
    console.print(
        "million: warp instructions of the PTX for 8.0 that one call of the operator issues; then shares.\n"
    )
    table = Table(title="Floors in ms: no run can be shorter", title_justify="left")
    for column in ("block", "GPU", "issue", "tensor cores"):
        table.add_column(column, justify="left" if column == "GPU" else "right")
    for floor in floors:
        table.add_row(str(floor.block), floor.gpu, f"{floor.issue_ms:.3f}", f"{floor.tensor_ms:.3f}")
    console.print(table)
    console.print(
        "issue: instructions by 4 schedulers of every multiprocessor at boost clock, all of them busy;"
    )
    console.print("tensor cores: their products at the published peak rate.")


def show(kernels: list[KernelCode], bounds: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    console = wide_console()
    if kernels:
        table = Table(title="Kernels, from ptxas and the machine code", title_justify="left")
        table.add_column("kernel", overflow="fold")
        right = ("sm", "PTX", "threads", "registers", "spills", "shared", "occupancy")
        for column in (*right, "limited by", "HMMA", "FFMA"):
            table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
        for kernel in kernels:
            used = kernel.resources
            table.add_row(
                kernel.kernel,
                str(kernel.architecture),
                str(kernel.ptx_architecture),
                str(kernel.threads),
                str(used.registers),
                str(spilled_bytes(kernel)),
                f"{used.shared_bytes:,}",
                f"{kernel.occupancy.fraction:.0%}",
                kernel.occupancy.limited_by,
                matrix_shares(kernel),
                f"{kernel.main_loop.scalar_share:.0%}" if kernel.main_loop else "-",
            )
        console.print(table)
        console.print(
            "PTX: the architecture whose PTX was assembled for sm, as the plugin does, or sm itself;"
        )
        console.print("spills and shared memory in bytes; occupancy: theoretical, of resident warps;")
        console.print(
            "HMMA: share of tensor core products in each loop that has some, without loops inside it, in the"
        )
        console.print("order of the code; in the pass of collectKernel inner loops append to lists;")
        console.print("FFMA: share of FP32 multiply-adds in the innermost loop with the most products.\n")
    title = f"Floor in ms: {BOUND} ({arguments.precision}, C {arguments.score_channels}, D {arguments.value_channels})"
    table = Table(title=title, title_justify="left")
    for column in ("L", "GFLOP sparse", "GFLOP dense", "MB", *(gpu.name for gpu in GPUS)):
        table.add_column(column, justify="right")
    for row in bounds:
        floors = [f"{each['sparse_ms']:.3f} / {each['dense_ms']:.3f}" for each in row["floor"].values()]
        work = [
            f"{row['sparse_flops'] / 1e9:,.1f}",
            f"{row['dense_flops'] / 1e9:,.1f}",
            f"{row['bytes'] / 1e6:,.1f}",
        ]
        table.add_row(f"{row['length']:,}", *work, *floors)
    console.print(table)
    console.print("sparse: every score once; dense: every score and every value once. Rates from:")
    for gpu in GPUS:
        console.print(f"  {gpu.name}: {gpu.source}")
