"""The package for Jetson Orin, made at most once per run, as a board's user unpacks it."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.arm64 import run_emulated

from trt_hspan.engine.plugin_build import sources_folder
from trt_hspan.packaging.archive import JetsonPackage
from trt_hspan.packaging.cross_build import CrossBuild, build_for_target
from trt_hspan.packaging.cross_toolkit import CROSS_COMPILER
from trt_hspan.packaging.jetson_package import build_jetson_packages
from trt_hspan.packaging.targets import target_from_name

ORIN = target_from_name("jetson-orin")


@dataclass(frozen=True)
class BoardPackage:
    """A package, its tree unpacked, and what stands in for the board's own libraries under emulation."""

    package: JetsonPackage
    root: Path
    build: CrossBuild

    @property
    def board_libraries(self) -> list[Path]:
        """libcrypto and CUDA's runtime. TensorRT and the driver are not among them."""
        return [self.build.sysroot / "usr" / "lib" / "aarch64-linux-gnu", self.build.toolkit / "lib64"]

    def upscale(
        self,
        *arguments: object,
        stdin: bytes = b"",
        stdout: int = subprocess.PIPE,
        extra: tuple[Path, ...] = (),
    ) -> subprocess.CompletedProcess[bytes]:
        """hspan-upscale under emulation."""
        return run_emulated(
            self.root / "bin" / "hspan-upscale",
            *arguments,
            libraries=[*extra, *self.board_libraries],
            stdin=stdin,
            stdout=stdout,
        )


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> BoardPackage:
    if shutil.which(CROSS_COMPILER) is None:
        pytest.skip(f"{CROSS_COMPILER} is not installed")
    folder = tmp_path_factory.mktemp("package")
    lock_file = sources_folder() / "build" / "cross" / ".lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other runs of the tests use the same build folder
        (package,) = build_jetson_packages([ORIN], folder)
        build = build_for_target(ORIN)
    with tarfile.open(package.archive) as tar:
        tar.extractall(folder, filter="tar")
    return BoardPackage(package, folder / package.archive.name.removesuffix(".tar.gz"), build)
