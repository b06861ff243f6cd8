"""Compiling for another machine with the target's CMake preset. Owns toolchains and build folders; packs nothing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.jetson_package.cross_sysroot import prepare_sysroot
from tools.jetson_package.cross_toolkit import find_cross_compiler, prepare_toolkit
from tools.jetson_package.targets import Target
from trt_hspan.errors import HspanError
from trt_hspan.files import error_from_os_error
from trt_hspan.native import cpu_attention as native
from trt_hspan.native.build import sha256_from_sources, sources_folder
from trt_hspan.native.cmake import progress_from_line, run_logged
from trt_hspan.native.plugin import LIBRARY_NAME, user_cache_folder
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.toolchain import find_cmake, find_ninja, find_tensorrt_headers

CPU_LIBRARY_NAME: Final = "libhspan_cpu.so"
RUNTIME_LIBRARY_NAME: Final = "libhspan_runtime.so"
PROGRAM_NAME: Final = "hspan-upscale"

_LOG_NAME: Final = "build.log"


@dataclass(frozen=True, kw_only=True)
class CrossBuild:
    """What was compiled for a target, stripped.

    Attributes:
        plugin, runtime, program, header: libhspan_plugin.so, libhspan_runtime.so, hspan-upscale and hspan/runtime.h.
        runtime_soname: what programs that use the C API ask the loader for.
        test_program: the C++ runtime's unit tests; None unless they were asked for.
        sysroot: the libraries that all of it was linked with.
        toolkit: CUDA's, whose lib64/ is the target's.
    """

    plugin: Path
    runtime: Path
    runtime_soname: str
    program: Path
    header: Path
    test_program: Path | None
    sysroot: Path
    toolkit: Path


def prepare_cross_folders(
    target: Target, *, on_progress: Callable[[BuildProgress], None] = lambda _: None
) -> tuple[Path, Path]:
    """Fetches what the target's CMake preset names, and links it where the preset looks: under build/cross.

    Returns:
        CUDA's toolkit and the sysroot.

    Raises:
        HspanError: something cannot be fetched.
    """

    def fetching(what: str) -> None:
        on_progress(BuildProgress(fraction=0.0, phase=f"fetching {what}"))

    cache, cross = user_cache_folder() / "cross", sources_folder() / "build" / "cross"
    with _alone(cache):
        toolkit = cache / target.toolkit
        prepare_toolkit(target.toolkit, toolkit, tell=fetching)
        sysroot = prepare_sysroot(cache / "sysroot", tell=fetching)
        _link(toolkit, cross / target.toolkit)
        _link(sysroot, cross / "sysroot")
        _link(find_tensorrt_headers(), cross / "tensorrt")
    return toolkit, sysroot


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Other processes that want the folder wait: builds for several targets may begin at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise error_from_os_error(folder, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_for_target(
    target: Target,
    *,
    jobs: int = 2,
    tests: bool = False,
    on_progress: Callable[[BuildProgress], None] = lambda _: None,
) -> CrossBuild:
    """Compiles plugin and C++ runtime in the build folder of the target's CMake preset.

    Args:
        target: what for.
        jobs: compilers at a time.
        tests: also the unit tests, which no package holds.
        on_progress: told about each step.

    Raises:
        HspanError: the cross compiler or something to fetch is missing, or a source does not compile.
    """
    find_cross_compiler()
    root = sources_folder()
    if not (root / "CMakePresets.json").is_file():
        raise HspanError(root, "holds no CMakePresets.json", "build packages in a checkout of this project")
    build = root / "build" / "cmake" / target.name
    toolkit, sysroot = prepare_cross_folders(target, on_progress=on_progress)
    options: list[str | Path] = [
        "--preset",
        target.name,
        "-S",
        root,
        f"-DHSPAN_SOURCE_SHA256={sha256_from_sources(root)}",
        f"-DHSPAN_BUILD_RUNTIME_TESTS={'ON' if tests else 'OFF'}",
    ]
    staging = _built(options, build, jobs, on_progress)
    runtime = (staging / "lib" / RUNTIME_LIBRARY_NAME).resolve()
    return CrossBuild(
        plugin=staging / "lib" / LIBRARY_NAME,
        runtime=runtime,
        runtime_soname=next(
            path.name for path in runtime.parent.glob(f"{RUNTIME_LIBRARY_NAME}.*") if path.is_symlink()
        ),
        program=staging / "bin" / PROGRAM_NAME,
        header=staging / "include" / "hspan" / "runtime.h",
        test_program=build / "tests" / "cpp" / "runtime" / "test_runtime" if tests else None,
        sysroot=sysroot,
        toolkit=toolkit,
    )


def build_cpu_library(
    target: Target, *, jobs: int = 2, on_progress: Callable[[BuildProgress], None] = lambda _: None
) -> Path:
    """The attention on main memory for the target's processor, stripped.

    Raises:
        HspanError: the cross compiler is missing, or a source does not compile.
    """
    find_cross_compiler()
    root = sources_folder()
    toolchain = root / "cmake" / "aarch64-linux-gnu.cmake"
    sources = root / "plugins" / "cpu"
    options: list[str | Path] = ["-S", sources, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    options.append(f"-DHSPAN_SOURCE_SHA256={native.sha256_from_sources(sources)}")
    build = root / "build" / "cmake" / f"{target.name}-cpu"
    return _built(options, build, jobs, on_progress) / "lib" / CPU_LIBRARY_NAME


def _built(
    options: Sequence[str | Path], build: Path, jobs: int, on_progress: Callable[[BuildProgress], None]
) -> Path:
    """Configures, builds and installs in `build`; the folder that lib/, bin/ and include/ are in."""
    staging = build / "staging"
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if (ninja := find_ninja()) else []
    cmake = find_cmake()
    commands: list[list[str | Path]] = [
        [cmake, *options, "-B", build, *generator, "-DCMAKE_INSTALL_LIBDIR=lib"],
        [cmake, "--build", build, "--parallel", str(jobs)],
        [cmake, "--install", build, "--strip", "--prefix", staging],
    ]
    try:
        build.mkdir(parents=True, exist_ok=True)
        with (build / _LOG_NAME).open("w") as log:
            for command in commands:
                for line in run_logged(command, dict(os.environ), log, build / _LOG_NAME):
                    if state := progress_from_line(line):
                        on_progress(state)
    except OSError as error:
        raise error_from_os_error(build, error) from error
    return staging


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.readlink() == target:
        return  # a compiler of another target's build may be looking through it
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target)
