"""Compiling the attention's native CPU library with CMake: whether it must be, and putting it in place."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trt_hspan.errors import HspanError
from trt_hspan.files import atomic_path
from trt_hspan.native.cpu_attention import (
    LIBRARY_NAME,
    NativeLibrary,
    default_library_path,
    sha256_from_sources,
    source_sha256_from_library,
    sources_folder,
)


@dataclass(frozen=True)
class NativeBuild:
    """A library in place, and whether anything had to be done for it."""

    path: Path
    compiled: bool


def build_native_library(
    output: str | os.PathLike[str] | None = None, *, jobs: int | None = None, force: bool = False
) -> NativeBuild:
    """Compiles the library, unless the one in place was compiled from the very same sources.

    Args:
        output: where it goes; None is `default_library_path()`.
        jobs: compilations at a time; None is the number of processors.
        force: compile in any case.

    Raises:
        HspanError: no sources, no CMake, no C++17 compiler, an error of the compiler, or an output that cannot be
            written.
    """
    target = default_library_path() if output is None else Path(output)
    sources = sources_folder()
    if sources is None:
        raise HspanError("plugin", "this installation holds no sources", "install trt-hspan again")
    digest = sha256_from_sources(sources)
    if not force and source_sha256_from_library(target) == digest:
        return NativeBuild(target, compiled=False)
    with atomic_path(target) as temporary, tempfile.TemporaryDirectory(prefix="hspan-cpu-") as folder:
        _run(_cmake(), "-S", sources, "-B", folder, f"-DHSPAN_SOURCE_SHA256={digest}", *_generator())
        _run(_cmake(), "--build", folder, "--parallel", str(jobs or os.cpu_count() or 1))
        built = Path(folder) / LIBRARY_NAME
        NativeLibrary(built)  # what does not load or has another ABI is not put in place
        shutil.copyfile(built, temporary)
    return NativeBuild(target, compiled=True)


def _cmake() -> str:
    program = _program("cmake")
    if program is None:
        raise HspanError(
            "cmake", "not found", "pip install 'trt-hspan[plugin]', or install CMake 3.22 or later"
        )
    return program


def _generator() -> list[str]:
    ninja = _program("ninja")
    return [] if ninja is None else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]


def _program(name: str) -> str | None:
    """A program on the path, or as the Python wheel of this name installs it beside the interpreter."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _run(*command: str | Path) -> None:
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if result.returncode == 0:
        return
    told = _first_error([line.strip() for line in result.stdout.splitlines() if line.strip()])
    if re.search("CMAKE_CXX_COMPILER|find (the )?compiler", told):
        raise HspanError("plugin", f"no C++ compiler: {told}", "install g++, or set CXX")
    raise HspanError(
        "plugin", f"the CPU library does not compile: {told}", "it needs a C++17 compiler: GCC 9 or Clang 12"
    )


def _first_error(lines: list[str]) -> str:
    for index, line in enumerate(lines):
        if line.startswith("CMake Error"):
            return " ".join(lines[index + 1 : index + 4]).partition(" Call Stack")[0][:300]
        if re.search(r"\berror:", line):
            return line[:300]
    return lines[-1][:300] if lines else "no message"
