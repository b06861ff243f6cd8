"""CMake build folders that tests share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from trt_hspan.files import locked_folder
from trt_hspan.native.toolchain import find_cmake

ROOT = Path(__file__).resolve().parents[2]


def built_folder(name: str, *options: str) -> Path:
    """build/`name`, configured with these options and built; compiles only what has changed."""
    folder = ROOT / "build" / name
    configure = [str(find_cmake()), "-S", str(ROOT), "-B", str(folder), *options]
    build = [str(find_cmake()), "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]
    with locked_folder(folder):  # pytest-xdist runs several processes with a session each
        for command in (configure, build):
            completed = subprocess.run(command, capture_output=True, text=True, check=False)
            assert completed.returncode == 0, completed.stdout + completed.stderr
    return folder
