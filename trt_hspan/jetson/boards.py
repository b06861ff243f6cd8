"""Jetson boards as NVIDIA publishes them, and which of them this device is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jetson.roofline import PeakRates
from trt_hspan.machine.jetson import DeviceFacts

AUTO: Final = "auto"

_GIB: Final = 1 << 30
# Linux has less than the module, because firmware keeps some: an Orin Nano 8GB shows 7.4 GiB, an AGX Thor 122.9.
_LEAST_SHARE: Final = 0.7
_ORIN: Final = "Jetson Orin series data sheets; FP16 is half of the dense half of the GPU's sparse INT8 TOPS"
_THOR: Final = "Jetson Thor series data sheet; FP16 is an eighth of the sparse FP4 TFLOPS"


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


def _reserved(gib: int) -> int:
    """1.5 GiB for a system without a desktop and the CUDA context, and an eighth of what is beyond 4 GiB."""
    return _GIB * 3 // 2 + max(0, gib - 4) * _GIB // 8


def _orin(
    name: str, title: str, gib: int, rates: tuple[float, float, float], mode: str, *modules: str
) -> Board:
    sparse_tops, gbps, mhz = rates
    return Board(
        name=name,
        title=title,
        memory_bytes=gib * _GIB,
        reserved_bytes=_reserved(gib),
        rates=PeakRates(
            name=title,
            architecture=87,
            tensor_tflops=sparse_tops / 4,
            fp32_tflops=sparse_tops / 32,
            memory_gbps=gbps,
            source=_ORIN,
        ),
        gpu_mhz=mhz,
        power_mode=mode,
        modules=modules,
        family=" ".join(title.split()[1:3]),
        packages={"jetson-orin": ("36",), "jetson-orin-jp7": ("39",)},
        workspace_mib=256 * gib // 4,
    )


#: Without "Super" clocks: what every carrier and cooler reaches. Rates: sparse INT8 TOPS of the GPU, GB/s, MHz.
BOARDS: Final = (
    _orin("orin-nano-4g", "Jetson Orin Nano 4GB", 4, (20.0, 34.0, 625.0), "10W", "p3767-0004"),
    _orin("orin-nano-8g", "Jetson Orin Nano 8GB", 8, (40.0, 68.0, 625.0), "15W", "p3767-0003", "p3767-0005"),
    _orin("orin-nx-8g", "Jetson Orin NX 8GB", 8, (50.0, 102.4, 765.0), "MAXN", "p3767-0001"),
    _orin("orin-nx-16g", "Jetson Orin NX 16GB", 16, (60.0, 102.4, 918.0), "MAXN", "p3767-0000"),
    _orin(
        "agx-orin-32g", "Jetson AGX Orin 32GB", 32, (108.0, 204.8, 930.0), "MAXN", "p3701-0000", "p3701-0004"
    ),
    _orin(
        "agx-orin-64g", "Jetson AGX Orin 64GB", 64, (170.0, 204.8, 1300.0), "MAXN", "p3701-0000", "p3701-0005"
    ),
    Board(
        name="agx-thor",
        title="Jetson AGX Thor (T5000)",
        memory_bytes=128 * _GIB,
        reserved_bytes=_reserved(128),
        rates=PeakRates(
            name="Jetson AGX Thor (T5000)",
            architecture=110,
            tensor_tflops=2070.0 / 8,
            fp32_tflops=8.064,  # 2,560 cores, one multiply-add each, at 1.575 GHz
            memory_gbps=273.0,
            source=_THOR,
        ),
        gpu_mhz=1575.0,
        power_mode="MAXN",
        modules=("p3834-0008",),
        family="AGX Thor",
        packages={"jetson-thor": ("38", "39")},
        workspace_mib=8192,
    ),
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
