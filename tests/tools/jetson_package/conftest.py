"""What is built for Jetson Orin, once per run: the C++ runtime, and the package as a board's user unpacks it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.arm64 import run_emulated

from tools.jetson_package.archive import JetsonPackage
from tools.jetson_package.cross_build import CrossBuild, build_for_target
from tools.jetson_package.cross_toolkit import CROSS_COMPILER
from tools.jetson_package.jetson_package import build_jetson_packages
from tools.jetson_package.targets import target_from_name
from trt_hspan.files import locked_folder
from trt_hspan.native.sources import sources_folder

ORIN = target_from_name("jetson-orin")


@dataclass(frozen=True)
class OrinBuild:
    """What was compiled, and what stands in for the board's own libraries under emulation."""

    build: CrossBuild

    @property
    def board_libraries(self) -> list[Path]:
        """libcrypto and CUDA's runtime. TensorRT and the driver are not among them."""
        return [self.build.sysroot / "usr" / "lib" / "aarch64-linux-gnu", self.build.toolkit / "lib64"]

    def upscale(
        self, *arguments: object, stdin: bytes = b"", extra: tuple[Path, ...] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        """hspan-upscale under emulation."""
        libraries = [*extra, *self.board_libraries]
        return run_emulated(self.build.program, *arguments, libraries=libraries, stdin=stdin)


@dataclass(frozen=True)
class BoardPackage:
    """A package, and its tree unpacked."""

    package: JetsonPackage
    root: Path


def _alone() -> AbstractContextManager[None]:
    """Other processes of the tests use the same build folder."""
    return locked_folder(sources_folder() / "build" / "cross")


@pytest.fixture(scope="session")
def orin() -> OrinBuild:
    if shutil.which(CROSS_COMPILER) is None:
        pytest.skip(f"{CROSS_COMPILER} is not installed")
    with _alone():
        return OrinBuild(build_for_target(ORIN, tests=True))


@pytest.fixture(scope="session")
def board(orin: OrinBuild, tmp_path_factory: pytest.TempPathFactory) -> BoardPackage:
    folder = tmp_path_factory.mktemp("package")
    with _alone():
        (package,) = build_jetson_packages([ORIN], folder)
    with tarfile.open(package.archive) as tar:
        tar.extractall(folder, filter="tar")
    return BoardPackage(package, folder / package.archive.name.removesuffix(".tar.gz"))
