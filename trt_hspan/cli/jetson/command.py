"""`trt-hspan jetson`: plans for boards, and the commands for the board itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_hspan.cli.jetson import device as jetson_device
from trt_hspan.cli.jetson.watch import watch
from trt_hspan.errors import UsageError

if TYPE_CHECKING:
    from trt_hspan.jetson.network_cost import NetworkCost
    from trt_hspan.jetson.plan import BoardPlan

app = typer.Typer(
    help="Jetson boards: plan anywhere; build, validate, bench and serve on the board, without PyTorch.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command("build")(jetson_device.build)
app.command("validate")(jetson_device.validate)
app.command("bench")(jetson_device.bench)
app.command("reference")(jetson_device.reference)
app.command("watch")(watch)


@app.command("boards")
def boards(json: Annotated[bool, typer.Option("--json", help="Print the boards as JSON.")] = False) -> None:
    """List the boards that `plan` knows, with the published figures it uses."""
    import dataclasses

    from trt_hspan.cli.output import print_json, print_rows
    from trt_hspan.jetson.boards import BOARDS

    if json:
        print_json({"boards": [dataclasses.asdict(board) for board in BOARDS]})
        return
    rows = [
        [
            board.name,
            board.title,
            f"{board.memory_bytes >> 30}",
            f"{board.rates.tensor_tflops:.1f}",
            f"{board.rates.memory_gbps:.1f}",
            board.power_mode,
            board.target,
        ]
        for board in BOARDS
    ]
    columns = ["board", "module", "GiB", "FP16 TFLOPS", "GB/s", "power mode", "package"]
    print_rows("Jetson boards (published peaks, dense)", columns, rows)


@app.command("plan")
def plan(
    board: Annotated[
        str,
        typer.Option(help="`trt-hspan jetson boards` lists the names; auto is the one that this runs on."),
    ],
    size: Annotated[str, typer.Option(metavar="HxW", help="Of the picture or frame that goes in.")],
    scale: Annotated[
        int | None, typer.Option(help="2, 3 or 4: the published network of that scale, in FP16.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Another network: a checkpoint file or a preset, in --precision.")
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="Another network: an ONNX file.")] = None,
    engine: Annotated[
        Path | None, typer.Option(help="A built .plan: its manifest's memory figures are used.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of --scale and --checkpoint: fp32, fp16 or bf16.", show_default="fp16"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Tell whether a network fits a board, in which tiles, and the least time it can take."""
    from trt_hspan.cli.output import print_json
    from trt_hspan.jetson.boards import chosen_board
    from trt_hspan.jetson.plan import plan_for_board
    from trt_hspan.machine import jetson as device
    from trt_hspan.sizes import image_size_from_text

    chosen = chosen_board(board, device.this_device()).board
    picture = image_size_from_text(size, option="--size")
    sources = [source for source in (scale, checkpoint, onnx, engine) if source is not None]
    if len(sources) != 1:
        raise UsageError("jetson plan", "expected exactly one of --scale, --checkpoint, --onnx and --engine")
    if precision is not None and scale is None and checkpoint is None:
        raise UsageError(
            "--precision", "is for --scale and --checkpoint; a file holds its own", "leave it out"
        )
    cost = _cost(scale, checkpoint, onnx, engine, precision or "fp16")
    result = plan_for_board(cost, chosen, picture)
    if json:
        print_json(_report(result))
    else:
        _print(result)
    if not result.fits:
        raise typer.Exit(1)


def _cost(
    scale: int | None, checkpoint: str | None, onnx: Path | None, engine: Path | None, precision: str
) -> NetworkCost:
    if scale is not None:
        from trt_hspan.jetson.network_cost import published_cost

        return published_cost(scale, precision)
    from trt_hspan.cli.progress import progress
    from trt_hspan.graph import load_onnx
    from trt_hspan.jetson.network_cost import network_cost
    from trt_hspan.jetson.plan import cost_from_manifest

    if engine is not None:
        from trt_hspan.engine.manifest import verify_manifest

        manifest = verify_manifest(engine)
        path = engine.parent / manifest.onnx_file
        return cost_from_manifest(network_cost(load_onnx(path), where=path), manifest)
    if onnx is not None:
        return network_cost(load_onnx(onnx), where=onnx)
    assert checkpoint is not None
    import tempfile

    from trt_hspan.export import export_onnx
    from trt_hspan.graph import checked_precision

    with tempfile.TemporaryDirectory() as folder, progress(f"exporting {checkpoint}"):
        path = export_onnx(checkpoint, Path(folder) / "network.onnx", precision=checked_precision(precision))
        return network_cost(load_onnx(path), where=checkpoint)


def _print(plan: BoardPlan) -> None:
    from trt_hspan.cli.output import print_table

    report = _report(plan)
    memory = report["memory_bytes"]
    print_table(
        f"{plan.board.title}, {plan.tiles.picture} -> {plan.tiles.picture.scaled(plan.cost.scale)}",
        {
            "fits": "yes" if plan.fits else "no: even the smallest tile needs more than the board has",
            "tiles": report["tiles_text"],
            "memory": f"{plan.memory.total / 1e9:.2f} of {plan.board.memory_bytes / 1e9:.2f} GB with the largest tile",
            **{f"  {name}": f"{size / 1e6:,.0f} MB" for name, size in memory.items()},
            "memory model": plan.cost.source,
            "floor": f"{plan.floor_ms:,.1f} ms by {plan.floor_by}: a bound from published peaks, not a measurement",
            "attention": f"{plan.attention_share:.0%} of the arithmetic, at least",
            "power mode": f"{plan.board.power_mode} (nvpmodel), for the peaks above",
        },
    )


def _report(plan: BoardPlan) -> dict[str, Any]:
    import dataclasses

    tiles = plan.tiles
    whole = (
        "the whole picture at once"
        if plan.whole
        else (f"{tiles.count} of {tiles.tile} pixels; attention sees one tile at a time")
    )
    return {
        "board": plan.board.name,
        "fits": plan.fits,
        "whole": plan.whole,
        "tiles_text": whole,
        "tiles": tiles.count,
        "tile_height": tiles.tile.height,
        "tile_width": tiles.tile.width,
        "memory_bytes": dataclasses.asdict(plan.memory),
        "memory_total_bytes": plan.memory.total,
        "board_memory_bytes": plan.board.memory_bytes,
        "memory_model": plan.cost.source,
        "precision": plan.cost.precision,
        "floor_ms": plan.floor_ms,
        "floor_by": plan.floor_by,
        "attention_share_of_arithmetic": plan.attention_share,
        "measured": False,
    }
