"""Does a network fit a board, in which tiles, and how fast can it be at best? Arithmetic only, nothing is measured."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.engine.manifest import EngineManifest, verify_manifest
from trt_hspan.errors import HspanError, UsageError
from trt_hspan.graph import checked_precision, load_onnx
from trt_hspan.jetson.boards import Board
from trt_hspan.jetson.network_cost import NetworkCost, network_cost
from trt_hspan.jetson.plugin_workspace import plugin_workspace_bytes
from trt_hspan.jetson.roofline import attention_work
from trt_hspan.precision.network import variants_from_path
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import DEFAULT_OVERLAP, SIDE_STEP, SMALLEST_SIDE, trimmed_tile
from trt_hspan.upscaling.tiling import TilePlan, tile_plan

_CHANNELS: Final = 3
_FLOAT_BYTES: Final = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the board while a tile is upscaled."""

    weights: int
    activations: int
    workspace: int
    tensors: int
    reserved: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True, kw_only=True)
class BoardPlan:
    """Whether a picture can be upscaled on a board, and how.

    Attributes:
        whole: whether it is taken as a whole; attention is then over all of it.
        memory: with the largest tile.
        floor_ms: no implementation is faster: arithmetic at the published peak, or traffic at the published
            bandwidth, whichever takes longer, for all tiles.
        floor_by: "arithmetic" or "memory traffic".
        attention_share: of the arithmetic, at supports too small to count.
    """

    board: Board
    cost: NetworkCost
    fits: bool
    whole: bool
    tiles: TilePlan
    memory: Memory
    floor_ms: float
    floor_by: str
    attention_share: float


def cost_from_path(network: str | Path, precision: str) -> NetworkCost:
    """The cost of an engine, with the figures of its manifest, of an ONNX file, or of a checkpoint in a precision."""
    path = Path(network)
    if path.suffix.lower() == ".onnx":
        return network_cost(load_onnx(path), where=path)
    if path.suffix.lower() != ".plan":
        model = variants_from_path(network).model(checked_precision(precision))
        return network_cost(model, where=network)
    manifest = verify_manifest(path)
    onnx_file = path.parent / manifest.onnx_file
    return cost_from_manifest(network_cost(load_onnx(onnx_file), where=onnx_file), manifest)


def cost_from_manifest(cost: NetworkCost, manifest: EngineManifest) -> NetworkCost:
    """Replaces the graph's estimates by what TensorRT reported when it built the engine."""
    if manifest.attention != "plugin":
        raise HspanError(
            "engine",
            "contains the attention as a function body, whose memory grows with the square of the pixels",
            "build it with --attention plugin, as Jetson engines are",
        )
    profile = manifest.largest_profile
    if profile.activation_memory_bytes is None:
        raise HspanError("engine", "its manifest gives no activation memory", "plan with --onnx instead")
    return dataclasses.replace(
        cost,
        weights_bytes=manifest.weights_memory_bytes or cost.weights_bytes,
        activation_bytes_per_pixel=profile.activation_memory_bytes
        / (profile.max[0] * profile.sizes[2].pixels),
        source=f"{manifest.flavor} {manifest.tensorrt_version}, from the manifest",
    )


def memory_for_tile(cost: NetworkCost, board: Board, tile: ImageSize) -> Memory:
    """Bytes while a tile of this size, in input pixels, is upscaled."""
    workspaces = (
        plugin_workspace_bytes(tile.pixels, a.score_channels, a.value_channels, cost.element_bytes)
        for a in cost.attention
    )
    return Memory(
        weights=cost.weights_bytes,
        activations=round(cost.activation_bytes_per_pixel * tile.pixels),
        workspace=max(workspaces, default=0),  # TensorRT's layers share it
        tensors=_CHANNELS * _FLOAT_BYTES * tile.pixels * (1 + cost.scale**2),
        reserved=board.reserved_bytes,
    )


def plan_for_board(cost: NetworkCost, board: Board, picture: ImageSize) -> BoardPlan:
    """The largest tiles that fit, up to the whole picture. Raises UsageError: the network takes another size only."""
    if cost.fixed_size not in (None, picture):
        raise UsageError(
            "--size",
            f"{picture}, but the network was exported for {cost.fixed_size} only",
            "give that size, or export it without --static",
        )
    largest = cost.fixed_size or _largest_tile(cost, board, picture)
    overlap = min(DEFAULT_OVERLAP, min(largest) // 4) if largest != picture else 0
    tiles = tile_plan(picture, trimmed_tile(picture, largest, overlap), overlap)
    memory = memory_for_tile(cost, board, tiles.tile)
    arithmetic, traffic, share = _floors(cost, board, tiles)
    return BoardPlan(
        board=board,
        cost=cost,
        fits=memory.total <= board.memory_bytes,
        whole=tiles.count == 1,
        tiles=tiles,
        memory=memory,
        floor_ms=max(arithmetic, traffic),
        floor_by="arithmetic" if arithmetic >= traffic else "memory traffic",
        attention_share=share,
    )


def least_ms(cost: NetworkCost, board: Board, tiles: TilePlan) -> float:
    """Milliseconds that no implementation beats on the board, for all tiles of a picture; see `BoardPlan.floor_ms`."""
    arithmetic, traffic, _ = _floors(cost, board, tiles)
    return max(arithmetic, traffic)


def floors_of_engine(engine: Path, board: Board, sizes: Sequence[ImageSize] = ()) -> dict[ImageSize, float]:
    """Milliseconds that a run on one picture of each size takes at least, by the board's published peaks.

    Without sizes, of the one that the engine is tuned for. Raises HspanError: the engine does not take a size.
    """
    manifest = verify_manifest(engine)
    sizes = sizes or (manifest.largest_profile.sizes[1],)
    for size in sizes:
        _require_in_profile(engine, manifest, size)
    path = engine.parent / manifest.onnx_file
    cost = network_cost(load_onnx(path), where=path)
    return {size: least_ms(cost, board, tile_plan(size, None, 0)) for size in sizes}


def _require_in_profile(engine: Path, manifest: EngineManifest, size: ImageSize) -> None:
    """Raises: HspanError for a size that the engine does not take, or not as a single picture."""
    shape = (3, *size)
    taking = [
        profile.min[0]
        for profile in manifest.profiles
        if all(a <= b <= c for a, b, c in zip(profile.min[1:], shape, profile.max[1:], strict=True))
    ]
    if 1 in taking:
        return
    if taking:
        raise HspanError(
            engine,
            f"takes at least {min(taking)} pictures of {size} in one run, and the floor is that of one",
            "build the engine for single pictures, or time it with trt-hspan bench",
        )
    least, _, most = manifest.largest_profile.sizes
    raise HspanError(
        f"--size {size}",
        f"{engine} takes {least} to {most}",
        "give a size in between, or build the engine with another --size",
    )


def _largest_tile(cost: NetworkCost, board: Board, picture: ImageSize) -> ImageSize:
    """The whole picture, or a square of S x S pixels, S the largest multiple of 8 that fits; cut to the picture."""

    def size(steps: int) -> ImageSize:
        return picture.within(ImageSize(steps * SIDE_STEP, steps * SIDE_STEP))

    def too_large(steps: int) -> bool:
        return memory_for_tile(cost, board, size(steps)).total > board.memory_bytes

    if memory_for_tile(cost, board, picture).total <= board.memory_bytes:
        return picture
    smallest = SMALLEST_SIDE // SIDE_STEP
    choices = range(smallest, (max(picture) - 1) // SIDE_STEP + 1)
    fitting = bisect.bisect_left(choices, True, key=too_large)
    return size(choices[fitting - 1] if fitting else smallest)


def _floors(cost: NetworkCost, board: Board, tiles: TilePlan) -> tuple[float, float, float]:
    """Milliseconds by arithmetic and by traffic, and the attention's share of the arithmetic."""
    convolution = attention = moved = 0.0
    attention_type = "fp32" if cost.precision == "fp32" else "fp16"
    rows, columns = (Counter(span.length for span in spans) for spans in (tiles.rows, tiles.columns))
    for (height, down), (width, across) in itertools.product(rows.items(), columns.items()):
        pixels, count = height * width, down * across
        convolution += count * 2 * cost.macs_per_pixel * pixels
        moved += count * (cost.weights_bytes + _CHANNELS * _FLOAT_BYTES * pixels * (1 + cost.scale**2))
        for block in cost.attention:
            work = attention_work(pixels, block.score_channels, block.value_channels, attention_type)
            attention += count * work.sparse_flops
            moved += count * work.bytes
    rates = board.rates
    peak = rates.fp32_tflops if cost.precision == "fp32" else rates.tensor_tflops
    faster = 2 if cost.precision in ("int8", "fp8") else 1  # at most: what stays in the base type is slower
    arithmetic = (convolution / faster + attention) / (peak * 1e9)
    total = convolution + attention
    return arithmetic, moved / (rates.memory_gbps * 1e6), attention / total if total else 0.0
