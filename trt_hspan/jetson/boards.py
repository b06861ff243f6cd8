"""Jetson boards as NVIDIA publishes them, and which of them this device is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jetson.roofline import PeakRates
from trt_hspan.machine.jetson import DeviceFacts
from trt_hspan.records import dataclass_from_json

AUTO: Final = "auto"

# Linux has less than the module, because firmware keeps some: an Orin Nano 8GB shows 7.4 GiB, an AGX Thor 122.9.
_LEAST_SHARE: Final = 0.7


@dataclass(frozen=True, kw_only=True)
class Board:
    """One module.

    Attributes:
        reserved_bytes: left to the system, other programs and the CUDA context; an assumption, see
            docs/jetson-first-picture.md.
        rates: published peaks, at the GPU clock `gpu_mhz`.
        gpu_mhz: the GPU's highest clock without "Super" modes.
        power_mode: a power mode in which that clock is reached, as nvpmodel calls it.
        modules: NVIDIA's part numbers, as in the device tree's `compatible`.
        family: its name in the device tree's `model`.
        packages: those for it, as `make jetson` names them, with the releases of Jetson Linux that each is built for.
        workspace_mib: limit of TensorRT's scratch memory while it builds on the board.
    """

    name: str
    title: str
    memory_bytes: int
    reserved_bytes: int
    rates: PeakRates
    gpu_mhz: float
    power_mode: str
    modules: tuple[str, ...]
    family: str
    packages: Mapping[str, tuple[str, ...]]
    workspace_mib: int


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A board, and one phrase that says how it was recognized."""

    board: Board
    why: str


#: Those of boards.json: without "Super" clocks, what every carrier and cooler reaches. Reserved are 1.5 GiB for a
#: system without a desktop and the CUDA context, and an eighth of what is beyond 4 GiB.
BOARDS: Final = tuple(
    dataclass_from_json(entry, Board)
    for entry in json.loads(resources.files(__package__).joinpath("boards.json").read_text(encoding="utf-8"))
)


def board_from_name(name: str) -> Board:
    """The board that `--board` names. Raises: UsageError when there is none of that name."""
    for board in BOARDS:
        if board.name == name:
            return board
    raise UsageError("--board", f"got {name!r}, expected one of {board_names()}")


def board_names() -> str:
    """All names, for error lines."""
    return ", ".join(board.name for board in BOARDS)


def chosen_board(name: str, facts: DeviceFacts) -> Detection:
    """The board that `--board` names; "auto" is the one that this runs on."""
    if name == AUTO:
        return detected_board(facts)
    return Detection(board=board_from_name(name), why="named by --board")


def detected_board(facts: DeviceFacts) -> Detection:
    """The board with these facts: by the module's part number, else by the model's name; by memory among those."""
    if not facts.has_device_tree:
        raise HspanError(
            "--board auto",
            "this is not a Jetson: it has no /proc/device-tree/model",
            f"name the board: {board_names()}",
        )
    model = " ".join((facts.model or "a device without a model name").split())[:80]
    memory = facts.memory_bytes
    size = "unknown memory" if memory is None else f"{memory / (1 << 30):.1f} GiB of memory"
    by_module = [board for board in BOARDS if set(board.modules) & set(facts.modules)]
    by_name = [board for board in BOARDS if board.family.lower() in model.lower()]
    candidates = [
        board
        for board in by_module or by_name
        if memory is None or _LEAST_SHARE * board.memory_bytes <= memory <= board.memory_bytes
    ]
    if len(candidates) != 1:
        what = "is none of the known boards" if not candidates else "may be several of the known boards"
        raise HspanError(
            "--board auto", f"{model} with {size} {what}", f"name the closest one: {board_names()}"
        )
    how = f"module {', '.join(facts.modules)}" if by_module else "by its name"
    return Detection(board=candidates[0], why=f"{model} ({how}), {size}")
