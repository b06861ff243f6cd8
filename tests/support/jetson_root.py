"""Files of a Jetson's system, as they look on real ones, below a folder of the test's."""

from __future__ import annotations

from pathlib import Path

# Heads of /etc/nvpmodel.conf as JetPack 6.2 has it on an Orin Nano, shortened.
NVPMODEL_ORIN_NANO = """
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
GPU MAX_FREQ 612000000

< POWER_MODEL ID=1 NAME=25W >
GPU MAX_FREQ 918000000

< POWER_MODEL ID=2 NAME=MAXN_SUPER >
GPU MAX_FREQ -1

< POWER_MODEL ID=3 NAME=7W >
GPU MAX_FREQ 408000000

< PM_CONFIG DEFAULT=1 >
"""
NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
NANO_COMPATIBLE = ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")


def write_jetson_root(
    root: Path,
    *,
    model: str | None = NANO,
    compatible: tuple[str, ...] = NANO_COMPATIBLE,
    memory_kib: int = 7802000,
    available_kib: int = 6300000,
    swaps: str = "",
    status: str | None = "pmode:0000 fmode:fanNull",
    nvpmodel: str | None = NVPMODEL_ORIN_NANO,
    clock: tuple[int, int] | None = (306000000, 612000000),
    release: str | None = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
) -> Path:
    """Writes them; None leaves a file out."""
    swap_head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    gpu = "sys/class/devfreq/17000000.gpu"
    files = {
        "proc/device-tree/model": None if model is None else f"{model}\0",
        "proc/device-tree/compatible": "".join(f"{name}\0" for name in compatible),
        "proc/meminfo": f"MemTotal:  {memory_kib} kB\nMemFree:  1 kB\nMemAvailable:  {available_kib} kB\n",
        "proc/swaps": swap_head + swaps,
        "var/lib/nvpmodel/status": status,
        "etc/nvpmodel.conf": nvpmodel,
        "etc/nv_tegra_release": release,
        f"{gpu}/min_freq": None if clock is None else f"{clock[0]}\n",
        f"{gpu}/max_freq": None if clock is None else f"{clock[1]}\n",
    }
    for name, text in files.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    return root
