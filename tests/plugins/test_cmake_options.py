"""The options of plugins/CMakeLists.txt: architectures and TensorRT's headers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trt_hspan.native.sources import sources_folder
from trt_hspan.native.toolchain import find_cmake, find_nvcc, find_tensorrt_headers


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_cmake_refuses_what_is_no_architecture(tmp_path: Path) -> None:
    command = [find_cmake(), "-S", sources_folder(), "-B", tmp_path, "-DHSPAN_ARCHITECTURES=86;ampere"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode != 0
    assert '"ampere" is no architecture' in completed.stderr


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs CMake with options, each time in the same folder, so that it examines the compilers once.

    Its nvcc lists the architectures of CUDA 12.4.
    """
    folder = tmp_path_factory.mktemp("configured")
    known = "\n".join(f"compute_{number}" for number in (75, 80, 86, 87, 89, 90))
    older = program(
        folder / "bin" / "nvcc",
        f'[ "$1" = --list-gpu-arch ] && {{ echo "{known}"; exit; }}\nexec {find_nvcc()} "$@"',
    )
    environment = {name: value for name, value in os.environ.items() if "tensorrt" not in name.lower()}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [find_cmake(), "-S", sources_folder(), "-B", folder / "build", *options]
        command += [f"-DCMAKE_CUDA_COMPILER={older}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.mark.parametrize(
    ("architectures", "outcome"),
    [("", "Architectures: 75;80;86;89;90"), ("86;100", "cannot compile for 100; choose among 75, 80, 86,")],
)
def test_cmake_leaves_out_of_the_default_what_an_older_nvcc_does_not_know(
    architectures: str, outcome: str, configure: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    completed = configure(
        f"-DHSPAN_ARCHITECTURES={architectures}", f"-DHSPAN_TENSORRT_INCLUDE={find_tensorrt_headers()}"
    )
    printed = " ".join((completed.stdout + completed.stderr).split())
    assert (completed.returncode == 0) == (architectures == "")
    assert re.search(re.escape(outcome) + r"(?!;)", printed), printed


def test_cmake_says_which_headers_are_missing(
    configure: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    completed = configure(
        "-UHSPAN_TENSORRT_INCLUDE", "-DHSPAN_ARCHITECTURES=86", "-DCMAKE_SYSTEM_IGNORE_PATH=/usr/include"
    )
    assert completed.returncode != 0
    assert "TensorRT headers not found (NvInferRuntime.h)" in completed.stderr
