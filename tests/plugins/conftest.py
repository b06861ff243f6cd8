"""The kernels compiled for the CPU, and the plugin library compiled for GPUs, each at most once per run."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from trt_hspan.engine.plugin_build import build_plugin
from trt_hspan.engine.plugin_toolchain import find_cmake

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def emulation_folder() -> Path:
    """A CMake build folder with the emulated kernels and their tests; built again only where sources changed."""
    folder = ROOT / "build" / "emulation"
    configure = [str(find_cmake()), "-S", str(ROOT), "-B", str(folder)]
    configure += ["-DHSPAN_BUILD_PLUGIN=OFF", "-DHSPAN_BUILD_TESTS=ON"]
    build = [str(find_cmake()), "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist runs several processes with a session each
        for command in (configure, build):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    """The plugin library at its default place, compiled with nvcc unless it is up to date."""
    return build_plugin().path
