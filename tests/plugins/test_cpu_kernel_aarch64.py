"""The CPU kernel compiled for aarch64, NEON, and run under emulation against float64."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.arm64 import needs_cross_compiler, needs_qemu, run_emulated

from tools.jetson_package.cross_toolkit import CROSS_COMPILER

ROOT = Path(__file__).resolve().parents[2]


@needs_cross_compiler
@needs_qemu
def test_kernel_is_right_on_aarch64(tmp_path: Path) -> None:
    sources = ROOT / "plugins" / "cpu"
    # The flags of plugins/cpu/CMakeLists.txt.
    flags = "-std=c++17 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -Wno-psabi"
    program = tmp_path / "test"
    subprocess.run(
        [
            *(CROSS_COMPILER, *flags.split(), "-static", "-pthread", "-I", sources, "-o", program),
            ROOT / "tests" / "cpp" / "cpu" / "test_cpu_attention.cpp",
            *(sources / name for name in ("attention.cpp", "kernel_baseline.cpp")),
        ],
        check=True,
    )
    result = run_emulated(program)
    assert result.returncode == 0, result.stdout
    assert b"instruction set neon\n0 of 648 problems failed" in result.stdout
