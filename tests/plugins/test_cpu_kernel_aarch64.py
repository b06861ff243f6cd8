"""The CPU kernel compiled for aarch64, NEON, and run under emulation against float64."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@pytest.mark.skipif(
    COMPILER is None or EMULATOR is None,
    reason="needs Debian's g++-aarch64-linux-gnu and qemu-user-static",
)
def test_kernel_is_right_on_aarch64(tmp_path: Path) -> None:
    sources = ROOT / "plugins" / "cpu"
    # The flags of plugins/cpu/CMakeLists.txt.
    flags = "-std=c++17 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -Wno-psabi"
    program = tmp_path / "test"
    subprocess.run(
        [
            *(COMPILER, *flags.split(), "-static", "-pthread", "-I", sources, "-o", program),
            ROOT / "tests" / "cpp" / "cpu" / "test_cpu_attention.cpp",
            *(sources / name for name in ("attention.cpp", "kernel_baseline.cpp")),
        ],
        check=True,
    )
    result = subprocess.run([EMULATOR, program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "instruction set neon\n0 of 648 problems failed" in result.stdout
