"""Compiling the TensorRT plugin and the attention on CPUs and GPUs: whether to, with what, and where to put them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.files import atomic_path, cache_folder, check_writable, locked_folder
from trt_hspan.machine.gpu import gpu_architectures
from trt_hspan.native import cpu_attention, cuda_attention
from trt_hspan.native.cmake import run_cmake
from trt_hspan.native.plugin import (
    LIBRARY_NAME,
    PLACES,
    architecture_from_target,
    plugin_info_from_library,
)
from trt_hspan.native.progress import BuildProgress
from trt_hspan.native.sources import (
    LibraryPlaces,
    cpu_sources_sha256,
    cuda_sources_sha256,
    plugin_sources_sha256,
    sources_folder,
)
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

OnProgress = Callable[[BuildProgress], None]


@dataclass(frozen=True)
class LibraryBuild:
    """A library in place, and whether it had to be compiled."""

    path: Path
    compiled: bool


def build_plugin(
    output: str | os.PathLike[str] | None = None,
    *,
    architectures: Iterable[str | int] | None = None,
    nvcc: str | os.PathLike[str] | None = None,
    tensorrt_root: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> LibraryBuild:
    """Compiles the plugin library, unless the one in place is up to date.

    It is up to date when it was made from the very same sources and contains machine code for the requested
    architectures. A compiler or headers named by hand always build.

    Args:
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
    product = _Product(
        name="plugin",
        places=_places_of(PLACES, output),
        digest=plugin_sources_sha256(sources_folder()),
        built=f"plugins/{LIBRARY_NAME}",
        check=plugin_info_from_library,
        choice=("-DHSPAN_BUILD_PLUGIN=ON", "-DHSPAN_BUILD_CUDA=OFF"),
        state=_state_of_plugin,
    )
    return _build_for_gpus(
        product,
        architectures,
        jobs=jobs,
        force=force,
        is_named=nvcc is not None or tensorrt_root is not None,
        find=lambda: find_toolchain(nvcc=nvcc, tensorrt_root=tensorrt_root),
        on_progress=on_progress,
    )


def build_cuda_library(
    output: str | os.PathLike[str] | None = None,
    *,
    architectures: Iterable[str | int] | None = None,
    nvcc: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> LibraryBuild:
    """Compiles the library of the attention on GPUs, without TensorRT, unless the one in place is up to date.

    Arguments and errors as `build_plugin`, which compiles the same kernels.
    """
    product = _Product(
        name="CUDA library",
        places=_places_of(cuda_attention.PLACES, output),
        digest=cuda_sources_sha256(sources_folder()),
        built=f"plugins/{cuda_attention.LIBRARY_NAME}",
        check=cuda_attention.CudaLibrary,
        choice=("-DHSPAN_BUILD_PLUGIN=OFF", "-DHSPAN_BUILD_CUDA=ON"),
        state=cuda_attention.state_of_library,
    )
    return _build_for_gpus(
        product,
        architectures,
        jobs=jobs,
        force=force,
        is_named=nvcc is not None,
        find=lambda: find_toolchain(nvcc=nvcc, for_tensorrt=False),
        on_progress=on_progress,
    )


def build_cpu_library(
    output: str | os.PathLike[str] | None = None,
    *,
    jobs: int | None = None,
    force: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> LibraryBuild:
    """Compiles the library of the attention on CPUs, unless the one in place was compiled from the very same sources.

    Arguments and errors as `build_plugin`.
    """
    parallel = _checked_jobs(jobs)
    present, target = _places_of(cpu_attention.PLACES, output)
    sources = sources_folder()
    digest = cpu_sources_sha256(sources)
    if not force and cpu_attention.source_sha256_from_library(present) == digest:
        return LibraryBuild(present, compiled=False)
    check_writable(target)
    recipe = _Recipe(
        name="CPU library",
        cmake=find_cmake(),
        sources=sources / "plugins" / "cpu",
        options=(f"-DCMAKE_CXX_COMPILER={find_host_compiler()}",),
        digest=digest,
        built=cpu_attention.LIBRARY_NAME,
        check=cpu_attention.NativeLibrary,  # which refuses what does not load or has another ABI
    )
    _compile(recipe, target, jobs=parallel, force=force, on_progress=on_progress)
    return LibraryBuild(target, compiled=True)


@dataclass(frozen=True, kw_only=True)
class _Product:
    """A library with code for GPUs: where it is and goes, what it is made of, and what CMake is to build.

    `state` reads the hash of the sources and the machine code's architectures from a file; None: it is no such library.
    """

    name: str
    places: tuple[Path, Path]
    digest: str
    built: str
    check: Callable[[Path], object]
    choice: tuple[str, ...]
    state: Callable[[Path], tuple[str, tuple[int, ...]] | None]


def _build_for_gpus(
    product: _Product,
    architectures: Iterable[str | int] | None,
    *,
    jobs: int | None,
    force: bool,
    is_named: bool,
    find: Callable[[], Toolchain],
    on_progress: OnProgress,
) -> LibraryBuild:
    parallel = _checked_jobs(jobs)
    requested = (
        None if architectures is None else sorted({architecture_from_target(each) for each in architectures})
    )
    if requested == []:
        raise UsageError("--arch", "no architecture given", "name at least one, such as --arch 86")
    present, target = product.places
    if not force and not is_named and _is_up_to_date(product, requested):
        return LibraryBuild(present, compiled=False)
    check_writable(target)
    toolchain = find()
    numbers = _compilable(toolchain, requested)
    environment = dict(os.environ)
    if toolchain.library_path is not None:
        paths = [str(toolchain.library_path), environment.get("LIBRARY_PATH", "")]
        environment["LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    headers = () if toolchain.headers is None else (f"-DHSPAN_TENSORRT_INCLUDE={toolchain.headers}",)
    recipe = _Recipe(
        name=product.name,
        cmake=toolchain.cmake,
        sources=sources_folder(),
        options=(
            f"-DCMAKE_CUDA_COMPILER={toolchain.nvcc}",
            f"-DCMAKE_CUDA_HOST_COMPILER={toolchain.host_compiler}",
            f"-DCMAKE_CXX_COMPILER={toolchain.host_compiler}",
            "-DHSPAN_ARCHITECTURES=" + ";".join(map(str, numbers)),
        ),
        choice=(*product.choice, *headers),
        cuda_version=toolchain.cuda_version,
        digest=product.digest,
        built=product.built,
        check=product.check,
    )
    _compile(recipe, target, jobs=parallel, force=force, on_progress=on_progress, environment=environment)
    return LibraryBuild(target, compiled=True)


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How a library is compiled: `built` is its path in the build folder, `check` raises for a wrong one.

    `choice` are CMake's options that leave the kernels as they are: libraries of the same kernels share a build folder.
    """

    name: str
    cmake: Path
    sources: Path
    options: tuple[str, ...]
    choice: tuple[str, ...] = ()
    cuda_version: str = ""
    digest: str
    built: str
    check: Callable[[Path], object]


def _compile(
    recipe: _Recipe,
    target: Path,
    *,
    jobs: int,
    force: bool,
    on_progress: OnProgress,
    environment: dict[str, str] | None = None,
) -> None:
    """Compiles in a folder of the cache that belongs to this recipe, so that only what changed is compiled again."""
    key = "\n".join(map(str, [recipe.cmake, recipe.sources, recipe.cuda_version, *recipe.options]))
    folder = cache_folder() / "build" / hashlib.sha256(key.encode()).hexdigest()[:16]
    build = folder / "cmake"
    configure: list[str | Path] = [
        recipe.cmake,
        "-S",
        recipe.sources,
        "-B",
        build,
        *generator_options(),
        *recipe.options,
        *recipe.choice,
    ]
    configure += ["-DCMAKE_BUILD_TYPE=Release", f"-DHSPAN_SOURCE_SHA256={recipe.digest}"]
    with locked_folder(folder):
        if force:
            shutil.rmtree(build, ignore_errors=True)
        on_progress(BuildProgress(fraction=0.0, phase="configuring"))
        run_cmake(
            [configure, [recipe.cmake, "--build", build, "--parallel", str(jobs)]],
            folder / "build.log",
            where=recipe.name,
            environment=environment,
            on_progress=on_progress,
        )
        recipe.check(build / recipe.built)
        with atomic_path(target) as temporary:
            shutil.copyfile(build / recipe.built, temporary)


def _checked_jobs(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise UsageError("--jobs", f"got {jobs}, expected at least 1")
    return jobs or os.cpu_count() or 1


def _places_of(places: LibraryPlaces, output: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    """The library that would be used as it is, and where one goes that is compiled."""
    return (Path(output),) * 2 if output is not None else (places.path(), places.own_path())


def _is_up_to_date(product: _Product, requested: list[int] | None) -> bool:
    state = product.state(product.places[0])
    if state is None or state[0] != product.digest:
        return False
    compiled = set(state[1])
    if requested is not None:
        return compiled == set(requested)
    try:
        supported = supported_architectures(find_nvcc())
    except HspanError:  # without a compiler, the library at hand has to do for all
        supported = None
    return set(_default_architectures(supported)) <= compiled


def _state_of_plugin(path: Path) -> tuple[str, tuple[int, ...]] | None:
    try:
        info = plugin_info_from_library(path)
    except HspanError:
        return None
    return info.source_sha256, info.cubin_architectures


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
