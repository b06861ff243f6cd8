"""The CUDA kernels under the SIMT emulation, compiled for aarch64 and run under qemu.

The same C++ tests as on the machine at hand, with another compiler back end, another fused multiply-add, another switch
between fibers and, for `char` and shifts, another platform's choices. Of the three lane orders only the shuffled one,
which goes without the sizes beyond 129 positions that `attention_forward` has: qemu interprets floating point, and they
alone would take minutes.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "plugins" / "kernels"
CPP_TESTS = ROOT / "tests" / "cpp"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

pytestmark = pytest.mark.skipif(
    COMPILER is None or EMULATOR is None,
    reason="needs Debian's g++-aarch64-linux-gnu and qemu-user-static",
)


def test_kernels_and_their_emulation_are_right_on_aarch64(tmp_path: Path) -> None:
    # The flags of tests/cpp/CMakeLists.txt, except -O2, which compiles for twice as long.
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    folders = [f"-I{folder}" for folder in (CPP_TESTS / "emulation", KERNELS, CPP_TESTS)]
    emulation = sorted((CPP_TESTS / "emulation").glob("*.cpp"))
    kernels = [*sorted(KERNELS.glob("*.cpp")), "-xc++", *sorted(KERNELS.glob("*.cu"))]
    operator = sorted(CPP_TESTS.glob("attention_*.cpp"))
    programs = {
        "test_emulation": [],
        "test_attention": [*operator, CPP_TESTS / "emulated_attention.cpp", *kernels],
    }
    for name, sources in programs.items():
        program = tmp_path / name
        command = [COMPILER, *flags, *folders, "-static", "-pthread", "-o", program]
        command += [CPP_TESTS / f"{name}.cpp", *emulation, *sources]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        assert compiled.returncode == 0, compiled.stderr
        result = subprocess.run([EMULATOR, program, "shuffled"], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout
        assert result.stdout.strip().endswith(" tests, 0 failed")
