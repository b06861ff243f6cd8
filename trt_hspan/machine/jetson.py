"""A Jetson's own description of its board, release, memory and power, read from the files of its system.

Every fact may be missing: then it is None, or empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trt_hspan.machine.memory import bytes_from_meminfo

_RELEASE_FILE: Final = Path("/etc/nv_tegra_release")
_DEVICE_TREE: Final = "proc/device-tree"
# The GPU's clock: Orin under JetPack 6, under JetPack 5, and Thor.
_GPU_CLOCKS: Final = (
    "sys/class/devfreq/17000000.gpu",
    "sys/class/devfreq/17000000.ga10b",
    "sys/class/devfreq/gpu-gpc-0",
)
_POWER_MODE: Final = re.compile(r"<\s*POWER_MODEL\s+ID\s*=\s*(\d{1,4})\s+NAME\s*=\s*([^\s>]+)")
_DEFAULT_MODE: Final = re.compile(r"<\s*PM_CONFIG\s+DEFAULT\s*=\s*(\d{1,4})")
_RELEASE: Final = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_LONGEST: Final = 1 << 20  # no file that is read here comes near


@dataclass(frozen=True, kw_only=True)
class Swap:
    """One area of swap. `in_memory`: compressed main memory (zram), which adds little to it."""

    name: str
    size_bytes: int
    in_memory: bool


@dataclass(frozen=True, kw_only=True)
class PowerMode:
    """nvpmodel's number and name; the name is None where its configuration has none for the number."""

    number: int
    name: str | None

    def __str__(self) -> str:
        return self.name or f"mode {self.number}"


@dataclass(frozen=True, kw_only=True)
class GpuClock:
    """Limits between which the GPU's clock follows the load, in Hz. Equal limits: `jetson_clocks` has fixed it."""

    min_hz: int
    max_hz: int

    @property
    def is_fixed(self) -> bool:
        """Whether the clock does not follow the load."""
        return self.min_hz == self.max_hz


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """One device.

    Attributes:
        model: the device tree's, such as "NVIDIA Jetson AGX Orin Developer Kit".
        modules: part numbers in the device tree, such as "p3767-0005".
        release: Jetson Linux, such as "36.4.3".
        memory_bytes: of Linux: the module's, less what the firmware keeps.
        available_bytes: what a program may take without swapping.
        power_modes: names by number.
    """

    model: str | None = None
    modules: tuple[str, ...] = ()
    release: str | None = None
    memory_bytes: int | None = None
    available_bytes: int | None = None
    swaps: tuple[Swap, ...] = ()
    power_mode: PowerMode | None = None
    power_modes: Mapping[int, str] = field(default_factory=dict)
    gpu_clock: GpuClock | None = None

    @property
    def has_device_tree(self) -> bool:
        """Whether the device tree names a device; only then are the other facts those of a board."""
        return self.model is not None or bool(self.modules)


def is_jetson() -> bool:
    """Whether this is a Jetson with NVIDIA's Linux."""
    return _RELEASE_FILE.exists()


def this_device() -> DeviceFacts:
    """The machine that this runs on."""
    return device_from_root(Path("/"))


def device_from_root(root: Path) -> DeviceFacts:
    """Reads the facts from the files of a system whose root folder this is."""
    memory = bytes_from_meminfo(root / "proc/meminfo")
    modes = {int(number): name for number, name in _POWER_MODE.findall(_text(root / "etc/nvpmodel.conf"))}
    release = _RELEASE.search(_text(root / _RELEASE_FILE.relative_to("/")))
    return DeviceFacts(
        model=_text(root / _DEVICE_TREE / "model") or None,
        modules=tuple(
            dict.fromkeys(re.findall(r"p\d{4}-\d{4}", _text(root / _DEVICE_TREE / "compatible").lower()))
        ),
        release=None if release is None else f"{release[1]}.{release[2]}",
        memory_bytes=memory.get("MemTotal"),
        available_bytes=memory.get("MemAvailable"),
        swaps=_swaps(_text(root / "proc/swaps")),
        power_mode=_power_mode(root, modes),
        power_modes=modes,
        gpu_clock=_gpu_clock(root),
    )


def _power_mode(root: Path, names: Mapping[int, str]) -> PowerMode | None:
    """What nvpmodel has written down, else what its configuration sets at the start."""
    chosen = re.search(r"pmode:\s*(\d{1,4})", _text(root / "var/lib/nvpmodel/status"))
    chosen = chosen or _DEFAULT_MODE.search(_text(root / "etc/nvpmodel.conf"))
    return None if chosen is None else PowerMode(number=int(chosen[1]), name=names.get(int(chosen[1])))


def _gpu_clock(root: Path) -> GpuClock | None:
    for folder in _GPU_CLOCKS:
        limits = [_text(root / folder / name) for name in ("min_freq", "max_freq")]
        if all(re.fullmatch(r"\d{1,12}", limit) for limit in limits):
            return GpuClock(min_hz=int(limits[0]), max_hz=int(limits[1]))
    return None


def _swaps(text: str) -> tuple[Swap, ...]:
    areas = re.findall(r"^(/\S+)\s+\w+\s+(\d+)\s", text, re.MULTILINE)
    return tuple(
        Swap(name=name, size_bytes=int(kib) << 10, in_memory=name.startswith("/dev/zram"))
        for name, kib in areas
    )


def _text(path: Path) -> str:
    """The file's text without NULs and line ends around it; empty when it cannot be read."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_LONGEST)
    except OSError:
        return ""
    return data.decode(errors="replace").replace("\0", "\n").strip()
