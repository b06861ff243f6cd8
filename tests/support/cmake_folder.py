"""CMake build folders that tests share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from trt_hspan.files import locked_folder
from trt_hspan.native.toolchain import find_cmake

ROOT = Path(__file__).resolve().parents[2]


def built_folder(name: str, *options: str, targets: Sequence[str] = ("all",)) -> Path:
    """build/`name`, configured with these options, its targets built; compiles only what has changed."""
    folder = ROOT / "build" / name
    configure = [str(find_cmake()), "-S", str(ROOT), "-B", str(folder), *options]
    build = [
        str(find_cmake()),
        "--build",
        str(folder),
        "--parallel",
        str(os.cpu_count() or 1),
        "--target",
        *targets,
    ]
    with locked_folder(folder):  # pytest-xdist runs several processes with a session each
        for command in (configure, build):
            completed = subprocess.run(command, capture_output=True, text=True, check=False)
            assert completed.returncode == 0, completed.stdout + completed.stderr
    return folder


def find_ctest() -> str:
    """ctest beside the CMake that is used."""
    return str(find_cmake().with_name("ctest"))


def run_ctest(folder: Path, name: str) -> None:
    """Runs one test of a build folder.

    Raises:
        AssertionError: with its output, when it fails or is none.
    """
    command = [find_ctest(), "--output-on-failure", "--tests-regex", f"^{name}$", "--no-tests=error"]
    completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout
