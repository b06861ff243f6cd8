"""The request for an engine that is built on a board: which sizes, which memory limits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.engine.spec import EngineSpec, ProfileRequest
from trt_hspan.engine.tensorrt_api import installed_flavors
from trt_hspan.errors import HspanError
from trt_hspan.jetson.boards import Board
from trt_hspan.jetson.network_cost import network_cost
from trt_hspan.jetson.plan import BoardPlan, plan_for_board
from trt_hspan.machine.gpu import gpu_architectures, require_answers
from trt_hspan.machine.jetson import DeviceFacts
from trt_hspan.native.plugin import LIBRARY_NAME, default_plugin_path
from trt_hspan.sizes import ImageSize
from trt_hspan.upscaling.tile_size import AUTO_TILE_SIDE, SMALLEST_SIDE

_MIB: Final = 1 << 20
#: Where the .deb puts the plugin.
PACKAGED_PLUGIN: Final = Path("/opt/hspan/lib") / LIBRARY_NAME


@dataclass(frozen=True, kw_only=True)
class BoardBuild:
    """The request for `build_engine`, and the plan behind it."""

    spec: EngineSpec
    plan: BoardPlan


def board_build(
    onnx_file: Path,
    output: Path,
    board: Board,
    facts: DeviceFacts,
    *,
    size: ImageSize | None = None,
    plugin: Path | None = None,
    optimization_level: int | None = None,
) -> BoardBuild:
    """The request for an engine whose largest input is the largest tile that fits the board.

    TensorRT's memory pools are limited to what the board has: WORKSPACE to the board's share or what the attention's
    plugin requests, TACTIC_DRAM, which on Jetson is all GPU memory of a build, to what is free and not reserved.

    Args:
        size: of the pictures to upscale; None is 256x256, beyond which tiles take
            more time than pictures cut into tiles of that size.
        plugin: the plugin library; None as `device_plugin`.

    Raises:
        HspanError: the smallest tile does not fit the board or its free memory, or the model cannot be planned.
        UsageError: the model has a fixed size, and `size` is another.
    """
    from trt_hspan.graph import load_onnx, require_attention

    model = load_onnx(onnx_file)
    require_attention(model, onnx_file)
    cost = network_cost(model, where=onnx_file)
    plan = plan_for_board(cost, board, size or cost.fixed_size or ImageSize(AUTO_TILE_SIDE, AUTO_TILE_SIDE))
    _require_fit(plan, onnx_file)
    trial_bytes = _free_bytes(plan, facts)
    return BoardBuild(
        plan=plan,
        spec=EngineSpec(
            onnx=onnx_file,
            output=output,
            profiles=(ProfileRequest() if cost.fixed_size else _profile(plan),),
            flavor="tensorrt",
            attention="plugin",
            plugin=plugin or device_plugin(),
            workspace_mib=max(board.workspace_mib, -(plan.memory.workspace // -_MIB)),
            tactic_dram_mib=trial_bytes // _MIB,
            optimization_level=optimization_level,
        ),
    )


def require_builder(board: Board, architectures: tuple[str, ...] | None = None) -> None:
    """Raises HspanError unless this machine is the board, which TensorRT builds for, and has JetPack's TensorRT."""
    here = gpu_architectures() if architectures is None else architectures
    expected = f"sm_{board.rates.architecture}"
    if not here:
        require_answers()
        raise HspanError(
            "jetson build",
            "builds on the board itself, and no NVIDIA GPU with its driver is here",
            f"copy the ONNX file to the {board.title} and build there; trt-hspan jetson plan works anywhere",
        )
    if here[0] != expected:
        raise HspanError(
            "jetson build",
            f"this GPU is {here[0]}, that of the {board.title} is {expected}",
            "build on the board",
        )
    if "tensorrt" not in installed_flavors():
        raise HspanError(
            "tensorrt",
            "JetPack's Python module is missing",
            "sudo apt install nvidia-jetpack, and make virtual environments with --system-site-packages",
        )


def device_plugin() -> Path:
    """The plugin library on a device: TRT_HSPAN_PLUGIN if set, else the .deb's if it is there, else as elsewhere."""
    if "TRT_HSPAN_PLUGIN" not in os.environ and PACKAGED_PLUGIN.is_file():
        return PACKAGED_PLUGIN
    return default_plugin_path()


def _profile(plan: BoardPlan) -> ProfileRequest:
    """Up to the plan's tile, and tuned for it, since most tiles are of that size."""
    largest = plan.tiles.tile
    least = largest.within(ImageSize(SMALLEST_SIDE, SMALLEST_SIDE))
    return ProfileRequest(min=least, opt=largest, max=largest)


def _require_fit(plan: BoardPlan, where: Path) -> None:
    if plan.fits:
        return
    raise HspanError(
        where,
        f"does not fit the {plan.board.title}: {plan.tiles.tile} pixels need {plan.memory.total / 1e9:.2f} GB with "
        f"what the system keeps, it has {plan.board.memory_bytes / 1e9:.2f} GB",
        "take a smaller network or a larger board"
        if plan.cost.fixed_size is None
        else "export it for a smaller size, or without --static",
    )


def _free_bytes(plan: BoardPlan, facts: DeviceFacts) -> int:
    """What trial runs may take: all that is not reserved, but no more than is free now."""
    board = plan.board
    usable = board.memory_bytes - board.reserved_bytes
    needed = plan.memory.total - plan.memory.reserved
    if facts.available_bytes is None:
        return usable
    if facts.available_bytes < needed:
        raise HspanError(
            "memory",
            f"an engine for {plan.tiles.tile} needs {needed / 1e9:.2f} GB, "
            f"{facts.available_bytes / 1e9:.2f} GB are free",
            "end other programs (sudo systemctl isolate multi-user.target ends the desktop), or give a smaller --size",
        )
    return min(usable, facts.available_bytes)
