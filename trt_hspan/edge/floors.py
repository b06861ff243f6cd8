"""The least time of single runs, to stand beside measured ones. Owns no arithmetic of its own: see `plan`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trt_hspan.edge.boards import Board
from trt_hspan.edge.network_cost import network_cost
from trt_hspan.edge.plan import least_ms
from trt_hspan.engine.spec import ImageSize
from trt_hspan.upscaling.tiling import tile_plan


def floors_for_sizes(onnx_file: Path, board: Board, sizes: Iterable[ImageSize]) -> dict[ImageSize, float]:
    """Milliseconds that one run on one picture of each size takes at least, by the board's published peaks.

    Args:
        onnx_file: the network.
        board: whose peaks.
        sizes: of the input.

    Raises:
        HspanError: the file cannot be read, or as `network_cost`.
    """
    from trt_hspan.graph import load_onnx

    cost = network_cost(load_onnx(onnx_file), where=onnx_file)
    return {size: least_ms(cost, board, tile_plan(size.height, size.width, None, 0)) for size in sizes}
