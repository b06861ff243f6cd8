"""The CUDA kernels under the SIMT emulation, compiled for aarch64 and run under qemu.

The same C++ tests as on the machine at hand, with another compiler back end, another fused multiply-add, another switch
between fibers and, for `char` and shifts, another platform's choices. Of the three lane orders only the shuffled one,
which goes without the sizes beyond 129 positions and the combinations that `attention_forward` has: qemu interprets
floating point, and they alone would take minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.arm64 import QEMU, SYSTEM_ROOT, needs_cross_compiler, needs_qemu
from support.cmake_folder import built_folder, run_ctest

from tools.jetson_package.cross_toolkit import CROSS_COMPILER

pytestmark = [needs_cross_compiler, needs_qemu]


@pytest.fixture(scope="module")
def aarch64_folder() -> Path:
    options = {
        "HSPAN_BUILD_PLUGIN": "OFF",
        "HSPAN_BUILD_TESTS": "ON",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": CROSS_COMPILER,
        "CMAKE_CROSSCOMPILING_EMULATOR": f"{QEMU};-L;{SYSTEM_ROOT}",
    }
    words = (f"-D{name}={value}" for name, value in options.items())
    return built_folder("emulation-aarch64", *words, targets=("test_emulation", "test_attention"))


@pytest.mark.parametrize("name", ["emulation", "attention_shuffled"])
def test_kernels_and_their_emulation_are_right_on_aarch64(name: str, aarch64_folder: Path) -> None:
    run_ctest(aarch64_folder, name)
