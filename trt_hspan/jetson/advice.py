"""What on a device stands in the way of its published speed, or of a build, and the commands that change it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.jetson.boards import Board
from trt_hspan.machine.jetson import DeviceFacts
from trt_hspan.version import __version__

_GIB: Final = 1 << 30
# From this memory on, no swap is needed.
_ROOMY_BYTES: Final = 16 * _GIB
# A swap area is smaller than the file that it lies in, by a page.
_SWAP_TOLERANCE_BYTES: Final = _GIB // 16
# Clocks come in steps; the limit of a mode may lie a step away from the rounded figure of a data sheet.
_CLOCK_TOLERANCE: Final = 0.05
# Of a package on the board, seen from its virtual environment.
_MANIFEST: Final = Path("..") / "share" / "hspan" / "package.json"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One finding, and the commands that correct it, in order; none where a command cannot."""

    what: str
    commands: tuple[str, ...] = ()


def advice_for_board(board: Board, facts: DeviceFacts) -> list[Advice]:
    """What to correct before a build or a benchmark. Facts that the device does not report are skipped."""
    if not facts.has_device_tree:
        return []
    checks = (_power(board, facts), _clock(facts), _swap(board, facts), _release(board, facts))
    return [advice for advice in checks if advice is not None]


def _power(board: Board, facts: DeviceFacts) -> Advice | None:
    clock = facts.gpu_clock
    mode = "this power mode" if facts.power_mode is None else f"power mode {facts.power_mode}"
    if clock is not None:
        limit = clock.max_hz / 1e6
        if limit > board.gpu_mhz * (1 + _CLOCK_TOLERANCE):
            return Advice(
                what=f"in {mode} the GPU may run at {limit:.0f} MHz: faster than the {board.gpu_mhz:.0f} MHz behind "
                "the floor, which times may then go below"
            )
        if limit >= board.gpu_mhz * (1 - _CLOCK_TOLERANCE):
            return None
        what = f"in {mode} the GPU runs at {limit:.0f} MHz at most, the floor is for {board.gpu_mhz:.0f} MHz"
        return Advice(what=f"{what} ({board.power_mode})", commands=_mode_commands(board, facts))
    name = str(facts.power_mode or "").upper()
    if facts.power_mode is None or name == board.power_mode.upper() or name.startswith("MAXN"):
        return None  # the required mode, or one without limits
    return Advice(
        what=f"{mode} is in force, the floor is for {board.power_mode}", commands=_mode_commands(board, facts)
    )


def _mode_commands(board: Board, facts: DeviceFacts) -> tuple[str, ...]:
    for required in (board.power_mode.upper(), "MAXN"):
        for number, name in facts.power_modes.items():
            if name.upper().startswith(required):
                return (f"sudo nvpmodel -m {number}",)
    return ("nvpmodel -p --verbose", "sudo nvpmodel -m NUMBER")


def _clock(facts: DeviceFacts) -> Advice | None:
    clock = facts.gpu_clock
    if clock is None or clock.is_fixed:
        return None
    low, high = clock.min_hz / 1e6, clock.max_hz / 1e6
    return Advice(
        what=f"the GPU's clock follows the load, {low:.0f} to {high:.0f} MHz: times vary",
        commands=("sudo jetson_clocks",),
    )


def _swap(board: Board, facts: DeviceFacts) -> Advice | None:
    """Small boards build with swap on a disk as large as their memory, so that other programs can make room."""
    if facts.memory_bytes is None or board.memory_bytes >= _ROOMY_BYTES:
        return None
    on_disk = sum(swap.size_bytes for swap in facts.swaps if not swap.in_memory)
    missing = board.memory_bytes - on_disk - _SWAP_TOLERANCE_BYTES
    if missing <= 0:
        return None
    gib = -(missing // -_GIB)
    in_memory = sum(swap.size_bytes for swap in facts.swaps if swap.in_memory)
    zram = f", and {in_memory / _GIB:.1f} GiB of zram, which is compressed main memory" if in_memory else ""
    names = {swap.name for swap in facts.swaps}
    path = next(name for n in range(99) if (name := f"/swapfile{n or ''}") not in names)
    return Advice(
        what=f"{on_disk / _GIB:.1f} GiB of swap on a disk{zram}: with {board.memory_bytes // _GIB} GiB of memory a "
        "build may be killed",
        commands=(
            *(("sudo systemctl disable --now nvzramconfig",) if in_memory else ()),
            f"sudo fallocate -l {gib}G {path}",
            f"sudo chmod 600 {path}",
            f"sudo mkswap {path}",
            f"sudo swapon {path}",
            f"echo '{path} none swap sw 0 0' | sudo tee -a /etc/fstab",
        ),
    )


def _release(board: Board, facts: DeviceFacts) -> Advice | None:
    """Jetson Linux 36 is JetPack 6, 38 and 39 are JetPack 7."""
    if facts.release is None:
        return None
    release = facts.release.split(".", maxsplit=1)[0]
    fitting = next((name for name, releases in board.packages.items() if release in releases), None)
    installed = installed_package()
    if fitting is not None and installed in (None, fitting):
        return None
    this = f"this is Jetson Linux {facts.release}"
    if fitting is not None:
        return Advice(
            what=f"{this}; the package for it is {fitting}, not {installed}, whose plugin may not load",
            commands=(f"sudo apt install ./hspan-{fitting}_{__version__}_arm64.deb",),
        )
    built_for = "; ".join(f"{name} is built for {' and '.join(r)}" for name, r in board.packages.items())
    return Advice(
        what=f"{this}; the package {built_for}: the plugin may not load",
        commands=(f"trt-hspan plugin build --arch {board.rates.architecture}",),
    )


def installed_package(environment: Path = Path(sys.prefix)) -> str | None:
    """The package that a virtual environment belongs to, as `make jetson` names it; None without one."""
    try:
        name = json.loads((environment / _MANIFEST).read_text())["target"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(name)
