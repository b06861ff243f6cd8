"""`trt-hspan jetson boards|plan`: does a network fit a board, in which tiles, and how fast can it be at best?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trt_hspan.cli import options
from trt_hspan.cli.jetson.board import board_option
from trt_hspan.cli.output import print_json, print_rows, print_table
from trt_hspan.cli.progress import progress
from trt_hspan.cli.request import option, refuse_options, takes_request
from trt_hspan.errors import UsageError
from trt_hspan.sizes import image_size_from_text

if TYPE_CHECKING:
    from trt_hspan.jetson.network_cost import NetworkCost
    from trt_hspan.jetson.plan import BoardPlan


@dataclass(frozen=True, kw_only=True)
class BoardsRequest:
    json: bool = options.json()


@takes_request
def boards(request: BoardsRequest) -> None:
    """List the boards that `plan` knows, with the published figures it uses."""
    from trt_hspan.jetson.boards import BOARDS

    if request.json:
        print_json({"boards": [asdict(board) for board in BOARDS]})
        return
    rows = [
        [
            board.name,
            board.title,
            f"{board.memory_bytes >> 30}",
            f"{board.rates.tensor_tflops:.1f}",
            f"{board.rates.memory_gbps:.1f}",
            board.power_mode,
            ", ".join(board.packages),
        ]
        for board in BOARDS
    ]
    columns = ["board", "module", "GiB", "FP16 TFLOPS", "GB/s", "power mode", "package"]
    print_rows("Jetson boards (published peaks, dense)", columns, rows)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    board: str = board_option(default=...)
    size: str = option("Of the picture or frame that goes in.", "HxW", default=...)
    scale: int | None = option("2, 3 or 4: the published network of that scale, in FP16.")
    checkpoint: str | None = option("Another network: a checkpoint file or a preset, in --precision.")
    onnx: Path | None = option("Another network: an ONNX file.")
    engine: Path | None = option("A built .plan: its manifest's memory figures are used.")
    precision: str | None = option("Of --scale and --checkpoint: fp32, fp16 or bf16.", shown="fp16")
    json: bool = options.json()

    def cost(self) -> NetworkCost:
        """Of the one network that was named. Raises: UsageError for none or several; HspanError as `cost_from_path`."""
        from trt_hspan.jetson.network_cost import published_cost
        from trt_hspan.jetson.plan import cost_from_path

        networks = [n for n in (self.scale, self.checkpoint, self.onnx, self.engine) if n is not None]
        if len(networks) != 1:
            raise UsageError(
                "jetson plan", "expected exactly one of --scale, --checkpoint, --onnx and --engine"
            )
        if self.scale is None and self.checkpoint is None:
            refuse_options(
                {"--precision": self.precision}, "is for --scale and --checkpoint; a file has its own"
            )
        (network,) = networks
        if isinstance(network, int):
            return published_cost(network, self.precision or "fp16")
        return cost_from_path(network, self.precision or "fp16")


@takes_request
def plan(request: PlanRequest) -> None:
    """Print whether a network fits a board, in which tiles, and the least time it can take."""
    from trt_hspan.jetson.boards import chosen_board
    from trt_hspan.jetson.plan import plan_for_board
    from trt_hspan.machine import jetson as device

    board = chosen_board(request.board, device.this_device()).board
    picture = image_size_from_text(request.size, option="--size")
    with progress("reading the network"):
        cost = request.cost()
    result = plan_for_board(cost, board, picture)
    if request.json:
        print_json(_report(result))
    else:
        _print(result)
    if not result.fits:
        raise typer.Exit(1)


def _print(plan: BoardPlan) -> None:
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
        "memory_bytes": asdict(plan.memory),
        "memory_total_bytes": plan.memory.total,
        "board_memory_bytes": plan.board.memory_bytes,
        "memory_model": plan.cost.source,
        "precision": plan.cost.precision,
        "floor_ms": plan.floor_ms,
        "floor_by": plan.floor_by,
        "attention_share_of_arithmetic": plan.attention_share,
        "measured": False,
    }
