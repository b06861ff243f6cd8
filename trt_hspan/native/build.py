"""Compiling the TensorRT plugin and the attention on CPUs and GPUs: whether to, with what, and where to put them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, cache_folder, check_writable, locked_folder
from trt_hspan.machine.gpu import gpu_architectures
from trt_hspan.native import cpu_attention, cuda_attention
from trt_hspan.native.cmake import run_cmake
from trt_hspan.native.plugin import LIBRARY_NAME, PLACES, architecture_from_target, plugin_info_from_library
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.sources import LibraryPlaces, sources_folder
from trt_hspan.native.toolchain import (
    Toolchain,
    find_cmake,
    find_host_compiler,
    find_nvcc,
    find_toolchain,
    generator_options,
    supported_architectures,
)

#: What TensorRT-RTX builds engines for, and data center GPUs; PTX of the first serves all others that are newer.
DEFAULT_ARCHITECTURES: Final = (75, 80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class LibraryBuild:
    """A library in place, and whether it had to be compiled."""

    path: Path
    compiled: bool


@dataclass(frozen=True, kw_only=True)
class _Product:
    """A library: where it is and goes, and what CMake makes it of.

    Attributes:
        folder: of its CMakeLists.txt, below the sources.
        built: its path in CMake's build folder.
        compiler: what its sources are for: TensorRT's headers need nvcc too.
        choice: CMake's options that leave the kernels as they are: libraries of the same kernels share a build folder.
        state: reads the hash of the sources and the machine code's architectures from a file; None: it is no such
            library.
        check: raises for a wrong one.
    """

    name: str
    places: LibraryPlaces
    folder: str = ""
    built: str
    compiler: Literal["nvcc and TensorRT", "nvcc", "C++"]
    choice: tuple[str, ...] = ()
    state: Callable[[Path], tuple[str, tuple[int, ...]] | None]
    check: Callable[[Path], object]


def _state_of_plugin(path: Path) -> tuple[str, tuple[int, ...]] | None:
    try:
        info = plugin_info_from_library(path)
    except HspanError:
        return None
    return info.source_sha256, info.cubin_architectures


def _state_of_cpu_library(path: Path) -> tuple[str, tuple[int, ...]] | None:
    digest = cpu_attention.source_sha256_from_library(path)
    return None if digest is None else (digest, ())


_PLUGIN: Final = _Product(
    name="plugin",
    places=PLACES,
    built=f"plugins/{LIBRARY_NAME}",
    compiler="nvcc and TensorRT",
    choice=("-DHSPAN_BUILD_PLUGIN=ON", "-DHSPAN_BUILD_CUDA=OFF"),
    state=_state_of_plugin,
    check=plugin_info_from_library,
)
_CUDA: Final = _Product(
    name="CUDA library",
    places=cuda_attention.PLACES,
    built=f"plugins/{cuda_attention.LIBRARY_NAME}",
    compiler="nvcc",
    choice=("-DHSPAN_BUILD_PLUGIN=OFF", "-DHSPAN_BUILD_CUDA=ON"),
    state=cuda_attention.state_of_library,
    check=cuda_attention.CudaLibrary,
)
_CPU: Final = _Product(
    name="CPU library",
    places=cpu_attention.PLACES,
    folder="plugins/cpu",
    built=cpu_attention.LIBRARY_NAME,
    compiler="C++",
    state=_state_of_cpu_library,
    check=cpu_attention.NativeLibrary,  # which refuses what does not load or has another ABI
)


def build_library(
    product: _Product,
    output: str | os.PathLike[str] | None = None,
    *,
    architectures: Iterable[str | int] | None = None,
    nvcc: str | os.PathLike[str] | None = None,
    tensorrt_root: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
    on_progress: Callable[[BuildProgress], None] = lambda _: None,
) -> LibraryBuild:
    """Compiles a library, unless the one in place is up to date.

    It is up to date when it was made from the very same sources and contains machine code for the requested
    architectures. A compiler or headers named by hand always build.

    Args:
        product: which library; `build_plugin` and its like below have theirs.
        output: where the library goes; None compiles to `LibraryPlaces.own_path`, unless the one that would be used
            without it is up to date.
        architectures: compute capabilities ("sm_86", "8.6" or 86) to make machine code for, with PTX for the least;
            None is DEFAULT_ARCHITECTURES, as far as the compiler has them, and those of the GPUs at hand.
        nvcc, tensorrt_root: see `find_nvcc` and `find_tensorrt_headers`; None searches.
        jobs: compilations at a time; None is the number of processors.
        force: build from nothing.
        on_progress: called at each step.

    Raises:
        UsageError: an unknown architecture, or jobs below 1.
        HspanError: something needed is missing, the compiler has not an architecture, it reports an error (the log is
            kept and named), or the output cannot be written.
    """
    if jobs is not None and jobs < 1:
        raise UsageError("--jobs", f"got {jobs}, expected at least 1")
    requested: list[int] | None = [] if product.compiler == "C++" else None
    if architectures is not None:
        requested = sorted({architecture_from_target(each) for each in architectures})
        if not requested:
            raise UsageError("--arch", "no architecture given", "name at least one, such as --arch 86")
    present = target = Path(output or "")
    if output is None:
        present, target = product.places.path(), product.places.own_path()
    digest = product.places.sources_sha256(sources_folder())
    is_named = nvcc is not None or tensorrt_root is not None
    if not force and not is_named and _is_up_to_date(product, present, digest, requested):
        return LibraryBuild(present, compiled=False)
    check_writable(target)
    environment, choice = dict(os.environ), [*product.choice, f"-DHSPAN_SOURCE_SHA256={digest}"]
    if product.compiler == "C++":
        cmake, version = find_cmake(), ""
        options = [f"-DCMAKE_CXX_COMPILER={find_host_compiler()}"]
    else:
        for_tensorrt = product.compiler == "nvcc and TensorRT"
        toolchain = find_toolchain(nvcc=nvcc, tensorrt_root=tensorrt_root, for_tensorrt=for_tensorrt)
        cmake, version = toolchain.cmake, toolchain.cuda_version
        options = [
            f"-DCMAKE_CUDA_COMPILER={toolchain.nvcc}",
            f"-DCMAKE_CUDA_HOST_COMPILER={toolchain.host_compiler}",
            f"-DCMAKE_CXX_COMPILER={toolchain.host_compiler}",
            "-DHSPAN_ARCHITECTURES=" + ";".join(map(str, _compilable(toolchain, requested))),
        ]
        if toolchain.headers is not None:
            choice.append(f"-DHSPAN_TENSORRT_INCLUDE={toolchain.headers}")
        if toolchain.library_path is not None:
            paths = [str(toolchain.library_path), environment.get("LIBRARY_PATH", "")]
            environment["LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    sources = sources_folder() / product.folder
    # One folder of the cache for each way of compiling the kernels, so that only what changed is compiled again.
    key = "\n".join(map(str, [cmake, sources, version, *options]))
    folder = cache_folder() / "build" / hashlib.sha256(key.encode()).hexdigest()[:16]
    build = folder / "cmake"
    configure: list[str | Path] = [cmake, "-S", sources, "-B", build, *generator_options(), *options, *choice]
    with locked_folder(folder):
        if force:
            shutil.rmtree(build, ignore_errors=True)
        on_progress(BuildProgress(fraction=0.0, phase="configuring"))
        run_cmake(
            [
                [*configure, "-DCMAKE_BUILD_TYPE=Release"],
                [cmake, "--build", build, "--parallel", str(jobs or os.cpu_count() or 1)],
            ],
            folder / "build.log",
            where=product.name,
            environment=environment,
            on_progress=on_progress,
        )
        product.check(build / product.built)
        with atomic_path(target) as temporary:
            shutil.copyfile(build / product.built, temporary)
    return LibraryBuild(target, compiled=True)


#: Compile the TensorRT plugin, the attention on GPUs without TensorRT, from the same kernels, and that on CPUs, for
#: which architectures, nvcc and tensorrt_root have no use. Arguments and errors as `build_library`.
build_plugin = partial(build_library, _PLUGIN)
build_cuda_library = partial(build_library, _CUDA)
build_cpu_library = partial(build_library, _CPU)


def require_current(library: Path) -> None:
    """Raises: HspanError when a library of ours was compiled from other sources than those at hand."""
    (product,) = (each for each in (_PLUGIN, _CUDA, _CPU) if each.places.file_name == library.name)
    state = product.state(library)
    if state is None or state[0] != product.places.sources_sha256(sources_folder()):
        raise HspanError(
            library, "was compiled from other sources", "compile it again: trt-hspan plugin build"
        )


def _is_up_to_date(product: _Product, present: Path, digest: str, requested: list[int] | None) -> bool:
    state = product.state(present)
    if state is None or state[0] != digest:
        return False
    if requested is not None:
        return set(state[1]) == set(requested)
    try:
        supported = supported_architectures(find_nvcc())
    except HspanError:  # without a compiler, the library at hand has to do for all
        supported = None
    return set(_default_architectures(supported)) <= set(state[1])


def _default_architectures(supported: tuple[int, ...] | None) -> list[int]:
    here = {architecture_from_target(name) for name in gpu_architectures()}
    numbers = here.union(DEFAULT_ARCHITECTURES)
    return sorted(number for number in numbers if supported is None or number in supported)


def _compilable(toolchain: Toolchain, requested: list[int] | None) -> list[int]:
    supported = supported_architectures(toolchain.nvcc)
    if requested is None:
        return _default_architectures(supported)
    unknown = [number for number in requested if number not in supported]
    if unknown:
        names = ", ".join(f"sm_{number}" for number in unknown)
        raise HspanError(
            toolchain.nvcc,
            f"CUDA {toolchain.cuda_version} cannot compile for {names}",
            "choose among " + ", ".join(map(str, supported)) + ", or another CUDA toolkit by --nvcc",
        )
    return requested
