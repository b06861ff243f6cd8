"""Compiling for another machine with the target's CMake preset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.jetson_package.cross_sysroot import prepare_sysroot
from tools.jetson_package.cross_toolkit import find_cross_compiler, prepare_toolkit
from tools.jetson_package.targets import Target
from trt_hspan.errors import HspanError
from trt_hspan.files import cache_folder, locked_folder
from trt_hspan.native.cmake import run_cmake
from trt_hspan.native.cpu_attention import LIBRARY_NAME as CPU_LIBRARY_NAME
from trt_hspan.native.cuda_attention import LIBRARY_NAME as CUDA_LIBRARY_NAME
from trt_hspan.native.plugin import LIBRARY_NAME
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.sources import (
    cpu_sources_sha256,
    cuda_sources_sha256,
    plugin_sources_sha256,
    sources_folder,
)
from trt_hspan.native.toolchain import find_cmake, find_tensorrt_headers, generator_options

RUNTIME_LIBRARY_NAME: Final = "libhspan_runtime.so"
PROGRAM_NAME: Final = "hspan-upscale"


@dataclass(frozen=True, kw_only=True)
class CrossBuild:
    """What was compiled for a target, stripped.

    Attributes:
        plugin, runtime, program, header: libhspan_plugin.so, libhspan_runtime.so, hspan-upscale and hspan/runtime.h.
        runtime_soname: what programs that use the C API ask the loader for.
        test_program: the C++ runtime's unit tests; None unless requested.
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
    toolkit_name: str, *, on_progress: Callable[[BuildProgress], None] = lambda _: None
) -> tuple[Path, Path]:
    """Fetches what CMake presets of this CUDA toolkit name, and links it where they look: under build/cross.

    Returns:
        CUDA's toolkit and the sysroot.

    Raises:
        HspanError: something cannot be fetched.
    """

    def fetching(what: str) -> None:
        on_progress(BuildProgress(fraction=0.0, phase=f"fetching {what}"))

    cache, cross = cache_folder() / "cross", sources_folder() / "build" / "cross"
    with locked_folder(cache):  # builds for several targets may begin at once
        toolkit = cache / toolkit_name
        prepare_toolkit(toolkit_name, toolkit, on_step=fetching)
        sysroot = prepare_sysroot(cache / "sysroot", on_step=fetching)
        _link(toolkit, cross / toolkit_name)
        _link(sysroot, cross / "sysroot")
        _link(find_tensorrt_headers(), cross / "tensorrt")
    return toolkit, sysroot


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
        tests: also the unit tests, which no package contains.
        on_progress: called at each step.

    Raises:
        HspanError: the cross compiler or something to fetch is missing, or a source does not compile.
    """
    toolkit, sysroot = prepare_cross_folders(target.toolkit, on_progress=on_progress)
    staging = _built_preset(
        target.name, jobs, on_progress, HSPAN_BUILD_RUNTIME_TESTS="ON" if tests else "OFF"
    )
    build = staging.parent
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


def build_gpu_libraries(
    preset: str,
    toolkit: str,
    *,
    jobs: int = 2,
    on_progress: Callable[[BuildProgress], None] = lambda _: None,
) -> list[Path]:
    """The plugin and the CUDA library, stripped, by the CMake preset of this name and the CUDA toolkit that it names.

    Raises:
        HspanError: as `build_for_target`.
    """
    prepare_cross_folders(toolkit, on_progress=on_progress)
    _built_preset(preset, jobs, on_progress, HSPAN_BUILD_CUDA="OFF")
    staging = (
        _built_preset(  # the same kernels, linked once more: each library carries the hash of its own sources
            preset,
            jobs,
            on_progress,
            HSPAN_BUILD_PLUGIN="OFF",
            HSPAN_BUILD_CUDA="ON",
            HSPAN_SOURCE_SHA256=cuda_sources_sha256(sources_folder()),
        )
    )
    return [staging / "lib" / name for name in (LIBRARY_NAME, CUDA_LIBRARY_NAME)]


def build_cpu_library(
    name: str, *, jobs: int = 2, on_progress: Callable[[BuildProgress], None] = lambda _: None
) -> Path:
    """The attention on main memory for 64-bit Arm, stripped, in a build folder of this name.

    Raises:
        HspanError: the cross compiler is missing, or a source does not compile.
    """
    find_cross_compiler()
    root = sources_folder()
    toolchain = root / "cmake" / "aarch64-linux-gnu.cmake"
    sources = root / "plugins" / "cpu"
    options: list[str | Path] = ["-S", sources, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    options.append(f"-DHSPAN_SOURCE_SHA256={cpu_sources_sha256(root)}")
    build = root / "build" / "cmake" / f"{name}-cpu"
    return _built(options, build, jobs, on_progress) / "lib" / CPU_LIBRARY_NAME


def _built_preset(
    preset: str, jobs: int, on_progress: Callable[[BuildProgress], None], **variables: str
) -> Path:
    find_cross_compiler()
    root = sources_folder()
    if not (root / "CMakePresets.json").is_file():
        raise HspanError(
            root, "contains no CMakePresets.json", "build packages in a checkout of this project"
        )
    variables = {"HSPAN_BUILD_PLUGIN": "ON", "HSPAN_SOURCE_SHA256": plugin_sources_sha256(root)} | variables
    options: list[str | Path] = ["--preset", preset, "-S", root]
    options += [f"-D{name}={value}" for name, value in variables.items()]
    return _built(options, root / "build" / "cmake" / preset, jobs, on_progress)


def _built(
    options: Sequence[str | Path], build: Path, jobs: int, on_progress: Callable[[BuildProgress], None]
) -> Path:
    """Configures, builds and installs in `build`; the folder that lib/, bin/ and include/ are in."""
    staging = build / "staging"
    cmake = find_cmake()
    commands: list[list[str | Path]] = [
        [cmake, *options, "-B", build, *generator_options(), "-DCMAKE_INSTALL_LIBDIR=lib"],
        [cmake, "--build", build, "--parallel", str(jobs)],
        [cmake, "--install", build, "--strip", "--prefix", staging],
    ]
    run_cmake(commands, build / "build.log", where=build.name, on_progress=on_progress)
    return staging


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.readlink() == target:
        return  # a compiler of another target's build may be looking through it
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target)
